"""RoleGen: both models, what they share, and what they do together at inference.

`RoleGen(config, items)` holds structure only: config, vocabulary, layout and graph definitions.
Parameters are passed in, as `{'backbone': ..., 'reasoner': ...}` where both models are needed, so
every method is a pure function.

Shapes: B users, W worlds, P candidates per world, A retrieved items.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from rolegen_jax import sharding
from rolegen_jax.config import Config
from rolegen_jax.data.batches import Examples
from rolegen_jax.models import functional, lora
from rolegen_jax.models.backbone import PURCHASE, Backbone
from rolegen_jax.models.decode import Ranking, Ready, recommend
from rolegen_jax.models.evidence import Evidence
from rolegen_jax.models.functional import ModelFn, Params
from rolegen_jax.models.kinds import Kinds
from rolegen_jax.models.memory import (
  Candidates,
  Conditioning,
  Memory,
  QueryState,
  RetrievedShares,
)
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Layout, build_prompt
from rolegen_jax.reasoning.rollout import Rollout, role_chances, sample_rollout
from rolegen_jax.reasoning.sampling import RolloutSettings
from rolegen_jax.semantic_ids.trie import Trie, default_capacity
from rolegen_jax.sharding import rollout_layout
from rolegen_jax.vocab import Vocabulary


class Recommendation(NamedTuple):
  """Items for B users, and what was reasoned about them."""

  ranking: Ranking  # [B, k]
  rollout: Rollout | None  # None without a reasoner


def history_keys(seed: int, examples: Examples) -> jax.Array:
  """Return a key per user [B] that depends on the seed, the user's history and the time alone.

  So what is recommended does not depend on who else is in the batch. Histories are told apart by a
  multilinear hash of 32 bits.
  """
  history = examples.history
  fields = [history.item, history.event, history.timestamp, history.count]
  values = jnp.stack(fields, axis=-1).reshape(len(history.item), -1)
  values = jnp.concatenate([values, examples.timestamp[:, None]], axis=1).astype(jnp.uint32)
  odd = np.random.default_rng(0).integers(0, 2**31, values.shape[1]) * 2 + 1
  hashes = jnp.sum(values * odd.astype(np.uint32), axis=1, dtype=jnp.uint32)
  # High bits of a sum of products are the well mixed ones.
  hashes ^= hashes >> 16
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), hashes)


class RoleGen:
  """The structure of both models under one config.

  `model_fns` builds each model, `trained` and `frozen` the parts of them that stages train and the
  rest. Nothing is frozen unless `reasoner.train` says so.
  """

  def __init__(self, config: Config, items: int = default_capacity(0), text: int = 0):
    """Build the structure for a catalogue with room for `items` items, the smallest by default.

    text: width of their text vectors; 0 = none.
    """
    self.config, self._sizes = config, (items, text)
    self.vocab = Vocabulary.of(config)
    self.layout = Layout(config.reasoner, self.vocab)
    self.model_fns: dict[str, ModelFn] = {
      'backbone': lambda rngs: Backbone(config.backbone, self.vocab, items, text, rngs=rngs),
      'reasoner': lambda rngs: Reasoner(config.reasoner, self.vocab, rngs=rngs),
    }
    self.trained: dict[str, ModelFn] = dict(self.model_fns)
    self.frozen: dict[str, ModelFn] = {}
    if config.reasoner.train != 'all':
      reasoner = self.model_fns['reasoner']
      self.trained['reasoner'] = functional.Part(reasoner, lora.trains)
      self.frozen['reasoner'] = functional.Part(reasoner, lora.frozen)
    structures = {name: functional.abstract(make) for name, make in self.model_fns.items()}
    self.graphdefs: dict[str, nnx.GraphDef] = {
      name: graphdef for name, (graphdef, _, _) in structures.items()
    }
    # A part of the reasoner that is trained before it.
    self.kinds_fn: ModelFn | None = None
    if config.reasoner.kinds:
      sizes = config.reasoner.kinds, self.vocab.codes, config.reasoner.attributes
      self.kinds_fn = lambda rngs: Kinds(*sizes, rngs=rngs)
      self.graphdefs['kinds'] = functional.abstract(self.kinds_fn)[0]
    self.axes: dict[str, Params] = {name: axes for name, (_, _, axes) in structures.items()}

  def of(self, config: Config) -> RoleGen:
    """Return the structure under another config for the same catalogue."""
    return RoleGen(config, *self._sizes)

  def bind(self, name: str, params: Params) -> Any:
    """Return the module of this name over parameters."""
    return functional.bind(self.graphdefs[name], params)

  @property
  def decoding(self) -> sharding.Table:
    """The layout of everything that decodes."""
    return sharding.ROLLOUTS[self.config.mesh.rollout]

  def gathered(self, name: str, params: Params) -> Any:
    """Return the module to decode with, parameters in the layout in force and without gradients."""
    sizes = dict(backbone=self.config.backbone.temporal, reasoner=self.config.reasoner.transformer)[
      name
    ]
    params = jax.lax.stop_gradient(params)
    return self.bind(name, rollout_layout(params, self.axes[name], sizes.dtype))

  def rollout(
    self,
    reasoner_params: Params,
    examples: Examples,
    trie: Trie,
    keys_B: jax.Array,
    intervene: ArrayLike = True,
    noise: ArrayLike = 1.0,
    search: bool = False,
  ) -> Rollout:
    """Sample W worlds per user, each user by a key of its own.

    The parameters carry no gradient and are gathered once before the decoding loop. `intervene`,
    `noise` and `search` are those of `sample_rollout` and `RolloutSettings`.
    """
    loop, common = self.config.loop, self.config.loop.noise == 'common'
    settings = RolloutSettings(loop.worlds, loop.interventions, noise, common, search)
    with jax.named_scope('rollout'), sharding.layout(self.decoding):
      reasoner = self.gathered('reasoner', reasoner_params)
      prompt = build_prompt(
        self.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
      )
      rollout = sample_rollout(reasoner, self.layout, prompt, trie, keys_B, settings, intervene)
    return sharding.constrain_rows(rollout)

  def role_chances(
    self, reasoner_params: Params, examples: Examples, trie: Trie, intent_B: jax.Array, draws: int
  ) -> jax.Array:
    """Return the chances fp32 [B, M, R] of each event's roles, by so many chains drawn at 1.

    Roles are those towards the coarse code `intent`; where it is -1, each chain draws its own.
    """
    layout = Layout(dataclasses.replace(self.config.reasoner, temperature=1.0), self.vocab)
    with sharding.layout(self.decoding):
      prompt = build_prompt(
        layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
      )
      keys = history_keys(self.config.seed, examples)
      reasoner = self.gathered('reasoner', reasoner_params)
      return role_chances(reasoner, layout, prompt, trie, intent_B, keys, draws)

  def reasoning(self, rollout: Rollout, keep_B: jax.Array) -> Conditioning:
    """Return the candidates of all worlds, and what the factual one says else.

    Rows where `keep` is False get nothing.
    """
    b, w, p = rollout.candidates.shape
    worlds = jnp.broadcast_to(jnp.repeat(jnp.arange(w), p), (b, w * p))
    candidates = Candidates(
      item=rollout.candidates.reshape(b, w * p),
      world=worlds,
      log_prob=rollout.candidate_log_prob.reshape(b, w * p),
    )
    return self._conditioning(rollout, 0, candidates, keep_B)

  def world_reasoning(
    self, rollout: Rollout, world: jax.Array, has_candidates: ArrayLike = True
  ) -> Conditioning:
    """Return what one world alone says, with or without its candidates.

    World and `has_candidates` may be traced.
    """
    item = jnp.where(has_candidates, rollout.candidates[:, world], -1)
    candidates = Candidates(
      item=item,
      world=jnp.broadcast_to(world, item.shape).astype(jnp.int32),
      log_prob=rollout.candidate_log_prob[:, world],
    )
    return self._conditioning(rollout, world, candidates, jnp.ones(item.shape[:1], bool))

  def _conditioning(
    self, rollout: Rollout, world: ArrayLike, candidates: Candidates, keep_B: jax.Array
  ) -> Conditioning:
    """Return the parts that `loop.experts` names: given candidates, the rest of a world."""

    def masked(x: jax.Array, nothing: float) -> jax.Array:
      return jnp.where(keep_B[:, None], x, nothing)

    retrieved = masked(rollout.retrieved[:, world], -1)
    return self._only_experts(
      candidates=candidates._replace(item=masked(candidates.item, -1)),
      retrieved=RetrievedShares(retrieved, rollout.retrieved_share[:, world]),
      intent=masked(rollout.intent[:, world], NEG_INF),
    )

  def _only_experts(self, **said: Any) -> Conditioning:
    """Return the parts that `loop.experts` names."""
    experts = self.config.loop.experts
    return Conditioning(**{name: part for name, part in said.items() if name in experts})

  def equations_say(self, reasoner: Reasoner, evidence: Evidence, trie: Trie) -> Conditioning:
    """Return what the structural equations say of histories, without a chain."""
    keep, levels = self.config.reasoner.retrieved, self.vocab.levels
    priors = reasoner.intent.priors(evidence, keep, trie.item_codes, levels)
    retrieved = RetrievedShares(priors.retrieved.item, priors.retrieved.shares())
    return self._only_experts(retrieved=retrieved, intent=priors.intent)

  @staticmethod
  def query(
    backbone: Backbone, memory: Memory, timestamp_B: jax.Array, key: jax.Array | None = None
  ) -> QueryState:
    """Ask one query a row: which item is purchased at this time? `key` turns dropout on."""
    event = jnp.full_like(timestamp_B, PURCHASE)[:, None]
    return backbone.attend(memory, event, timestamp_B[:, None], jnp.ones_like(event), key)

  def recommend(
    self,
    params: dict[str, Params],
    examples: Examples,
    trie: Trie,
    beams: int,
    reasoning: bool = True,
    intervene: ArrayLike = True,
  ) -> Recommendation:
    """Return the top `beams` items of every user, a function of the user's example alone.

    With `reasoning` (static) False, the backbone stands alone.
    """
    rollout, said = None, Conditioning()
    if reasoning:
      rollout, said = self.reason(params['reasoner'], examples, trie, intervene)
    return Recommendation(self.rank(params['backbone'], examples, said, trie, beams), rollout)

  def reason(
    self, reasoner_params: Params, examples: Examples, trie: Trie, intervene: ArrayLike = True
  ) -> tuple[Rollout, Conditioning]:
    """Return every user's worlds, and what they say to `rank`.

    Unless worlds share their noise, each names its likeliest items that no world before it has.
    """
    search = self.config.loop.noise != 'common'
    with sharding.layout(self.decoding):
      keys = history_keys(self.config.seed, examples)
      rollout = self.rollout(reasoner_params, examples, trie, keys, intervene, search=search)
      return rollout, self.reasoning(rollout, jnp.ones(examples.timestamp.shape, bool))

  def rank(
    self,
    backbone_params: Params,
    examples: Examples,
    said: Conditioning,
    trie: Trie,
    beams: int,
    allow: jax.Array | None = None,
    ready: Ready | None = None,
  ) -> Ranking:
    """Return the top `beams` items of every user, given what the reasoner said.

    With `allow`, uint32 [B], a user gets items of these regions only (`semantic_ids/trie.py`).
    ready: what of it is computed already.
    """
    with sharding.layout(self.decoding):
      backbone = self.gathered('backbone', backbone_params)
      if ready is None:
        memory = backbone.encode(examples.history, backbone.items(trie))
      else:
        memory = backbone.memory(ready.states, examples.history)
      query_state = self.query(backbone, memory, examples.timestamp)
      table = None if ready is None else ready.table
      return recommend(backbone, query_state, said, trie, beams, allow, table)
