"""RoleGen: both models, what they share, and what they do together at inference.

`RoleGen(config)` holds structure only (config, vocabulary, layout, graph definitions); parameters are passed in as
`{'backbone': ..., 'reasoner': ...}`, so every method is a pure function.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import Config
from rolegen_jax.data.batches import Examples
from rolegen_jax.models import functional, lora
from rolegen_jax.models.backbone import NEG_INF, PURCHASE, Backbone, Memory, QueryState
from rolegen_jax.models.decode import Ranking, beam_search
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, build_prompt
from rolegen_jax.reasoning.rollout import Rollout, sample_rollout
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.sharding import ROLLOUTS, constrain_rows, layout, rollout_layout
from rolegen_jax.vocab import Vocabulary


class Recommendation(NamedTuple):
  ranking: Ranking  # [B, k]
  rollout: Rollout | None  # the chains behind it; None without a reasoner


class RoleGen:
  def __init__(self, config: Config):
    self.config = config
    self.vocab = Vocabulary.of(config)
    self.layout = Layout(config.reasoner, self.vocab)
    self.model_fns = {
      'backbone': lambda rngs: Backbone(config.backbone, self.vocab, rngs=rngs),
      'reasoner': lambda rngs: Reasoner(config.reasoner, self.vocab, rngs=rngs),
    }
    # What builds the parts that stages train, and the rest of those models: nothing, unless `reasoner.train` says so.
    self.trained, self.frozen = dict(self.model_fns), {}
    if config.reasoner.train != 'all':
      part = functools.partial(functional.Part, self.model_fns['reasoner'])
      self.trained['reasoner'], self.frozen['reasoner'] = part(lora.trains), part(lora.frozen)
    structures = {name: functional.abstract(make) for name, make in self.model_fns.items()}
    self.graphdefs = {name: graphdef for name, (graphdef, _, _) in structures.items()}
    self.axes = {name: axes for name, (_, _, axes) in structures.items()}

  def bind(self, name: str, params) -> nnx.Module:
    return functional.bind(self.graphdefs[name], params)

  @property
  def decoding(self) -> dict:
    """The layout table of everything that decodes."""
    return ROLLOUTS[self.config.mesh.rollout]

  def gathered(self, name: str, params) -> nnx.Module:
    """The module over parameters in the layout in force, to decode with: they carry no gradient."""
    sizes = dict(backbone=self.config.backbone.temporal, reasoner=self.config.reasoner.transformer)[
      name
    ]
    return self.bind(
      name, rollout_layout(jax.lax.stop_gradient(params), self.axes[name], sizes.dtype)
    )

  def rollout(
    self, reasoner_params, examples: Examples, trie: Trie, key, intervene=True, noise: float = 1.0
  ) -> Rollout:
    """W worlds per user from a reasoner whose parameters carry no gradient, gathered once before the decoding loop."""
    loop = self.config.loop
    with jax.named_scope('rollout'), layout(self.decoding):
      reasoner = self.gathered('reasoner', reasoner_params)
      prompt = build_prompt(
        self.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
      )
      rollout = sample_rollout(
        reasoner,
        self.layout,
        prompt,
        trie,
        key,
        loop.worlds,
        loop.interventions,
        intervene,
        noise,
        loop.noise == 'common',
      )
    return constrain_rows(rollout)

  def add_reasoning(
    self, backbone: Backbone, memory: Memory, rollout: Rollout, keep_B, trie: Trie
  ) -> Memory:
    """Memory with the factual roles, intent and calls and the candidates of all worlds, as far as `loop.backbone_inputs` has them; rows where `keep` is
    False get nothing."""
    b, w, p = rollout.candidates.shape
    worlds = jnp.broadcast_to(jnp.repeat(jnp.arange(w), p), (b, w * p))
    flat = lambda x: x.reshape(b, w * p)
    told = flat(rollout.candidates), worlds, flat(rollout.candidate_log_prob)
    return self._add(backbone, memory, rollout, 0, told, keep_B, trie)

  def add_world(
    self, backbone: Backbone, memory: Memory, rollout: Rollout, world, trie: Trie
  ) -> Memory:
    """Memory with what one world alone says (index may be traced)."""
    items, log_prob = rollout.candidates[:, world], rollout.candidate_log_prob[:, world]
    told = items, jnp.broadcast_to(world, items.shape).astype(jnp.int32), log_prob
    return self._add(backbone, memory, rollout, world, told, jnp.ones(items.shape[:1], bool), trie)

  def _add(
    self, backbone: Backbone, memory: Memory, rollout: Rollout, world, told, keep_B, trie: Trie
  ) -> Memory:
    """Candidates as `told`, the rest as that world has it."""
    kept = lambda x, otherwise: jnp.where(keep_B[:, None], x, otherwise)
    backbone_inputs = self.config.loop.backbone_inputs
    if 'roles' in backbone_inputs:
      memory = backbone.add_roles(memory, kept(rollout.roles[:, world], -1))
    if 'candidates' in backbone_inputs:
      items, *about = told
      memory = backbone.add_candidates(memory, kept(items, -1), *about, trie.item_codes)
    if 'retrieved' in backbone_inputs:
      memory = backbone.add_retrieved(
        memory, kept(rollout.retrieved[:, world], -1), rollout.retrieved_share[:, world]
      )
    if 'intent' in backbone_inputs:
      memory = backbone.add_intent(memory, kept(rollout.intent[:, world], NEG_INF), trie.item_codes)
    return memory

  @staticmethod
  def query(backbone: Backbone, memory: Memory, timestamp_B, key=None) -> QueryState:
    """One query a row: which item is purchased at `timestamp`."""
    event = jnp.full_like(timestamp_B, PURCHASE)[:, None]
    return backbone.attend(memory, event, timestamp_B[:, None], jnp.ones_like(event), key)

  def recommend(
    self,
    params,
    examples: Examples,
    trie: Trie,
    key,
    beams: int,
    reasoning: bool = True,
    intervene=True,
    noise: float = 1.0,
  ) -> Recommendation:
    """The top `beams` items of every case. `reasoning` (static) False: the backbone alone."""
    with layout(self.decoding):
      backbone = self.gathered('backbone', params['backbone'])
      memory, rollout = backbone.encode(examples.history, trie.item_codes), None
      if reasoning:
        rollout = self.rollout(params['reasoner'], examples, trie, key, intervene, noise)
        memory = self.add_reasoning(
          backbone, memory, rollout, jnp.ones(examples.timestamp.shape, bool), trie
        )
      return Recommendation(
        beam_search(
          backbone, self.query(backbone, memory, examples.timestamp), memory, trie, beams
        ),
        rollout,
      )
