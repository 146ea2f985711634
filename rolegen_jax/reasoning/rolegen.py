"""RoleGen: both models, what they share, and what they do together at inference.

`RoleGen(config)` holds structure only (config, vocabulary, layout, graph definitions); parameters are passed in as
`{'backbone': ..., 'reasoner': ...}`, so every method is a pure function.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import Config
from rolegen_jax.data.rows import Cases
from rolegen_jax.models import functional
from rolegen_jax.models.backbone import PURCHASE, Backbone, Memory, Recall
from rolegen_jax.models.decode import Ranking, beam_search
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, build_prompt
from rolegen_jax.reasoning.rollout import Rollout, reason
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.sharding import ROLLOUT, constrain_rows, layout, rollout_layout
from rolegen_jax.vocab import Vocabulary


class Recommendation(NamedTuple):
  ranking: Ranking  # [B, k]
  rollout: Rollout | None  # the chains behind it; None without a reasoner


class RoleGen:

  def __init__(self, config: Config):
    self.config = config
    self.vocab = Vocabulary.of(config)
    self.layout = Layout(config.reasoner, self.vocab)
    self.makers = {
        'backbone': lambda rngs: Backbone(config.backbone, self.vocab, rngs=rngs),
        'reasoner': lambda rngs: Reasoner(config.reasoner, self.vocab, rngs=rngs),
    }
    self.graphdefs = {name: functional.abstract(make)[0] for name, make in self.makers.items()}

  def bind(self, name: str, params) -> nnx.Module:
    return functional.bind(self.graphdefs[name], params)

  def reason(self, reasoner_params, cases: Cases, trie: Trie, key, intervene=True, noise: float = 1.0) -> Rollout:
    """W worlds per user from a reasoner whose parameters carry no gradient, gathered once before the decoding loop."""
    loop = self.config.loop
    with jax.named_scope('rollout'), layout(ROLLOUT):
      reasoner = self.bind('reasoner', rollout_layout(jax.lax.stop_gradient(reasoner_params)))
      prompt = build_prompt(self.layout, cases.history, cases.timestamp, trie.item_codes)
      rollout = reason(reasoner, self.layout, prompt, trie, key, loop.worlds, loop.remove_share, intervene, noise)
    return constrain_rows(rollout)

  def add_reasoning(self, backbone: Backbone, memory: Memory, rollout: Rollout, keep_B, trie: Trie) -> Memory:
    """Memory with the factual roles and the candidates of all worlds; rows where `keep` is False get neither."""
    b, w, p = rollout.candidates.shape
    roles = jnp.where(keep_B[:, None], rollout.roles[:, 0], -1)
    items = jnp.where(keep_B[:, None], rollout.candidates.reshape(b, w * p), -1)
    worlds = jnp.broadcast_to(jnp.repeat(jnp.arange(w), p), (b, w * p))
    log_prob = rollout.candidate_log_prob.reshape(b, w * p)
    return backbone.add_candidates(backbone.add_roles(memory, roles), items, worlds, log_prob, trie.item_codes)

  def add_world(self, backbone: Backbone, memory: Memory, rollout: Rollout, world, trie: Trie) -> Memory:
    """Memory with the roles and candidates of one world alone (index may be traced)."""
    roles, items = rollout.roles[:, world], rollout.candidates[:, world]
    marks = jnp.broadcast_to(world, items.shape).astype(jnp.int32)
    log_prob = rollout.candidate_log_prob[:, world]
    return backbone.add_candidates(backbone.add_roles(memory, roles), items, marks, log_prob, trie.item_codes)

  @staticmethod
  def ask(backbone: Backbone, memory: Memory, timestamp_B, key=None) -> Recall:
    """One query a row: which item is purchased at `timestamp`."""
    event = jnp.full_like(timestamp_B, PURCHASE)[:, None]
    return backbone.recall(memory, event, timestamp_B[:, None], jnp.ones_like(event), key)

  def recommend(self, params, cases: Cases, trie: Trie, key, beams: int, reasoning: bool = True, intervene=True, noise: float = 1.0) -> Recommendation:
    """The top `beams` items of every case. `reasoning` (static) False: the backbone alone."""
    with layout(ROLLOUT):
      backbone = self.bind('backbone', rollout_layout(params['backbone']))
      memory, rollout = backbone.encode(cases.history, trie.item_codes), None
      if reasoning:
        rollout = self.reason(params['reasoner'], cases, trie, key, intervene, noise)
        memory = self.add_reasoning(backbone, memory, rollout, jnp.ones(cases.timestamp.shape, bool), trie)
      return Recommendation(beam_search(backbone, self.ask(backbone, memory, cases.timestamp), memory, trie, beams), rollout)
