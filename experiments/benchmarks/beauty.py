"""The Amazon Beauty sequences, their semantic IDs, and RoleGen's backbone on them.

The benchmarks against third parties share them. IDs of all sides: residual k-means of 3 levels of
256 codes, and a fourth code that distinguishes items of equal first three codes, 0 for the first.

Legend: U users, I items, N events, B rows or requests, n history items, k beams, L codes an item,
Q items scored.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import amazon_beauty
from rolegen_jax import config as c
from rolegen_jax import sharding
from rolegen_jax.data import batches
from rolegen_jax.data.adapters import ADAPTERS, log_path
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.data.events import validate
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions, find_occasions
from rolegen_jax.models.backbone import PURCHASE
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids.embeddings import text_embeddings
from rolegen_jax.semantic_ids.residual_kmeans import residual_kmeans
from rolegen_jax.semantic_ids.stage import embed
from rolegen_jax.semantic_ids.trie import Trie, build_trie
from rolegen_jax.training import losses, state, steps

QUANTISED = 3  # levels of residual k-means
HISTORY = 20  # items that TIGER reads, the latest
SCORED_AT_ONCE = 2048  # items


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
  """A log of purchases in order, leave-one-out: a user's last item is the test item.

  The one before it is for validation. Training may use item[offsets[u]:offsets[u + 1] - 2] of user
  u, validation predicts item[offsets[u + 1] - 2] from those.
  """

  log: InteractionLog
  occasions: Occasions

  @property
  def item(self) -> np.ndarray:
    """int32 [N], sorted by user and time."""
    return self.log.item

  @property
  def offsets(self) -> np.ndarray:
    """int64 [U + 1]; user u has rows offsets[u]:offsets[u + 1]."""
    return self.log.offsets

  def held_out(self, split: str) -> np.ndarray:
    """Return the row of every user's 'valid' or 'test' item, int64 [U]."""
    return self.offsets[1:] - dict(valid=2, test=1)[split]

  def histories(self, rows_B: np.ndarray, width: int = HISTORY) -> np.ndarray:
    """Return the last `width` items before each row, int32 [B, width], right-aligned, -1 = none."""
    index = rows_B[:, None] + np.arange(-width, 0)
    first = self.offsets[self.log.user[rows_B]]
    is_event = index >= first[:, None]
    return np.where(is_event, self.item[np.maximum(index, 0)], -1).astype(np.int32)

  def training_rows(self) -> np.ndarray:
    """Return the training rows with something before them: a third party's examples, int64 [.]."""
    row, user = np.arange(len(self.item)), self.log.user
    return row[(row > self.offsets[user]) & (row < self.held_out('valid')[user])]

  def full_histories(self, count: int, width: int, seed: int = 0) -> np.ndarray:
    """Return what `count` users bought before their test item, the latest, int32 [count, width].

    Where too few users bought `width` items, whole histories of users in random order are joined
    and cut into pieces.
    """
    rng, end = np.random.default_rng(seed), self.held_out('test')
    long_enough = np.flatnonzero(end - self.offsets[:-1] >= width)
    if len(long_enough) >= count:
      users = np.sort(rng.choice(long_enough, count, replace=False))
      return self.histories(end[users], width)
    users = rng.permutation(len(end))
    joined = np.concatenate([self.item[self.offsets[u] : end[u]] for u in users])
    return np.resize(joined, (count, width)).astype(np.int32)


@functools.cache
def sequences() -> Sequences:
  """Return the Beauty log under $ROLEGEN_DATA. Raises DataError when it is not there.

  22,363 users, 12,101 items, 198,502 purchases.
  """
  data = config().data
  path = log_path(data)
  events, items, _ = ADAPTERS[data.format](path, data)
  log = InteractionLog.build(*validate(events, items, f'{path} (events)', f'{path} (items)'))
  return Sequences(log, find_occasions(log, data))


@functools.cache
def codes() -> np.ndarray:
  """Return the ID of every item of `sequences()`, int32 [I, 4], all distinct.

  They are made from training events and the items' text.
  """
  log, occasions = sequences().log, sequences().occasions
  ids = config().semantic_ids
  mesh = sharding.make_mesh(c.MeshConfig(), jax.local_devices()[:1])
  text = text_embeddings(log.items, ids.text)
  embeddings = embed(log, occasions, text, ids)
  result = residual_kmeans(embeddings, QUANTISED, ids.codes, ids.iterations, ids.seed, mesh)
  return distinct(result.codes, ids.codes)


def distinct(codes_IxL: np.ndarray, most: int) -> np.ndarray:
  """Return the codes with one more, the number of earlier items that share them, int32 [I, L + 1].

  Raises ValueError where more than `most` items share one ID.
  """
  unique = np.unique(codes_IxL, axis=0, return_inverse=True, return_counts=True)
  _, group, sizes = unique
  if sizes.max() > most:
    raise ValueError(f'{sizes.max()} items share one ID, one more code distinguishes {most}')
  group = group.ravel()
  order = np.argsort(group, kind='stable')
  rank = np.empty(len(group), np.int64)
  rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
  return np.concatenate([codes_IxL, rank[:, None]], axis=1).astype(np.int32)


def config() -> c.Config:
  """Return the config: IDs of 4 x 256 and a backbone of 4.6 M parameters.

  It generates semantic IDs, as the others do, and no other expert finds or scores items.
  """
  base = amazon_beauty.get_config()
  ids = c.SemanticIdConfig(levels=QUANTISED + 1, codes=256, text='hashed_ngrams')
  temporal = c.TransformerConfig(layers=5, width=256, heads=4, kv_heads=2, head_dim=64, mlp=464)
  backbone = dataclasses.replace(
    base.backbone, temporal=temporal, context=32, dropout=0.1, experts=('generative',)
  )
  # Budgets are in seconds, so the last step is unknown: a constant rate after the warmup.
  constant = dataclasses.replace(base.warmup.optimizer, final_share=1.0)
  warmup = dataclasses.replace(base.warmup, steps=1_000_000, optimizer=constant)
  sized = dataclasses.replace(base, semantic_ids=ids, backbone=backbone, warmup=warmup)
  return sized.validated()


class Work(NamedTuple):
  """What one update trained on."""

  sequences: int
  targets: int


class Ours:
  """RoleGen's Generative Behavioral Backbone on one device; no reasoner takes part.

  The interface of all models of these benchmarks:

    update() -> Work            trains on one batch
    serve(item_Bxn, beams)      items int [B, beams] from histories, best first, -1 = none
    rank(rows_B, beams)         the same, from what is before rows of the log
    parameters, batch, cycle (updates of a representative round), loss, compile_s (of the update)

  Training rows hold several users' whole sequences (packed), and every item of a sequence but its
  first is a target: one pass trains about six targets a sequence.
  """

  cycle = 1

  def __init__(
    self, sequences: Sequences, codes_IxL: np.ndarray, config: c.Config, batch: int, seed: int = 0
  ) -> None:
    self.sequences, self.codes_IxL, self.config = sequences, codes_IxL, config
    self.batch, self.mesh = batch, sharding.make_mesh(config.mesh, jax.local_devices()[:1])
    self.trie = self.catalogue()
    self.rolegen = RoleGen(config, *self.trie.sizes)
    width = config.backbone.context
    packed = batches.pack_windows(sequences.offsets, sequences.held_out('valid'), width)
    n_rows = int(packed[0].max()) + 1
    make_rows = functools.partial(_packed_rows, sequences.log, packed, width)
    self.batches = Batches(n_rows, batch, seed, make_rows)
    self.model_fns = {'backbone': self.rolegen.model_fns['backbone']}
    warmup = config.warmup
    self.optimizers = {'backbone': state.optimizer(warmup.optimizer, warmup.steps)}
    with jax.set_mesh(self.mesh):
      key = jax.random.key(seed)
      self.state = state.create(self.model_fns, self.optimizers, self.mesh, key)
    self.parameters = sum(p.size for p in jax.tree.leaves(self.state.params))
    self.compile_s = 0.0  # of the update
    self.serve_compile_s: dict[tuple[int, int, int], float] = {}  # by (B, n, k)
    self._program, self._serve_programs = None, {}

  def catalogue(self, allowed_I: np.ndarray | None = None) -> Trie:
    """Return the tables of the items that `allowed_I` bool [I] names, on the device."""
    log = self.sequences.log
    in_training = np.arange(len(log.item)) < self.sequences.held_out('valid')[log.user]
    counts = np.bincount(log.item[in_training], minlength=len(self.codes_IxL))
    codes = self.config.semantic_ids.codes
    trie = build_trie(self.codes_IxL, codes, allowed=allowed_I, counts=counts)
    return jax.device_put(trie, sharding.sharding(self.mesh))

  def update(self) -> Work:
    """Run a full update: batch, forward, backward, optimizer. The first one compiles."""
    rows = next(self.batches)
    with jax.set_mesh(self.mesh):
      if self._program is None:
        self._program = self._compile_update(rows)
      self.state, metrics = self._program(self.state, rows, self.trie)
    self.loss = float(jax.block_until_ready(metrics['loss']))
    jax.block_until_ready(self.state)
    # Windows of a row are numbered from 1; all items of a sequence but its first are targets.
    sequences = int(rows.segment.max(axis=1).sum())
    return Work(sequences, int((rows.segment > 0).sum()) - sequences)

  def _compile_update(self, rows: Trajectories):
    optimizer = self.optimizers['backbone']
    update = functools.partial(
      steps.supervised_step, self.rolegen, 'backbone', losses.warmup_loss, optimizer
    )
    layout = state.shardings(self.model_fns, self.optimizers, self.mesh)
    compiled = jit(update, donate_argnums=0, out_shardings=(layout, None))
    started = time.perf_counter()
    program = compiled.lower(self.state, rows, self.trie).compile()
    self.compile_s = time.perf_counter() - started
    return program

  def rank(self, rows_B: np.ndarray, beams: int) -> np.ndarray:
    log, size = self.sequences.log, self.config.evaluation.batch
    ranked = []
    for start in range(0, len(rows_B), size):
      part = rows_B[start : start + size]
      filled = np.resize(part, size)  # the last batch is filled up and cut
      history = batches.histories(log, log.user[filled], filled, self.config.backbone.context)
      ranking = self._recommend(_examples(history, log.timestamp[filled]), beams, self.trie)
      ranked.append(ranking.item[: len(part)])
    return np.concatenate(ranked)

  def serve(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    return self.ranking(item_Bxn, beams).item

  def ranking(self, item_Bxn: np.ndarray, beams: int, trie: Trie | None = None):
    """Return the `Ranking` of full histories of purchases, on the host."""
    return self._recommend(_purchases(item_Bxn), beams, trie or self.trie)

  def _recommend(self, examples: Examples, beams: int, trie: Trie):
    """Return the `Ranking`; a new shape is compiled first."""
    params, key = self.state.params['backbone'], (*examples.history.item.shape, beams)

    def recommend(params, examples, trie):
      models = {'backbone': params}
      return self.rolegen.recommend(models, examples, trie, beams, reasoning=False).ranking

    with jax.set_mesh(self.mesh):
      if key not in self._serve_programs:
        started = time.perf_counter()
        self._serve_programs[key] = jit(recommend).lower(params, examples, trie).compile()
        self.serve_compile_s[key] = time.perf_counter() - started
      return jax.device_get(self._serve_programs[key](params, examples, trie))

  def score_all(self, item_Bxn: np.ndarray) -> np.ndarray:
    """Return the score of every item, fp32 [B, I], without tree and beams: log p but a constant."""
    n_items, params = len(self.codes_IxL), self.state.params['backbone']
    shape = -(-n_items // SCORED_AT_ONCE), min(SCORED_AT_ONCE, n_items)
    chunks = np.resize(np.arange(n_items, dtype=np.int32), shape)
    scores = []
    with jax.set_mesh(self.mesh):
      for row in item_Bxn:
        examples = _purchases(row[None])
        parts = [self._score(params, examples, self.trie, chunk)[0] for chunk in chunks]
        scores.append(np.concatenate(jax.device_get(parts))[:n_items])
    return np.stack(scores)

  @functools.cached_property
  def _score(self):
    def score(params, examples, trie, item_M):
      backbone = self.rolegen.bind('backbone', params)
      items = backbone.items(trie)
      memory = backbone.encode(examples.history, items)
      query_state = self.rolegen.query(backbone, memory, examples.timestamp)
      item = jnp.broadcast_to(item_M, (len(examples.timestamp), len(item_M)))
      weight = jnp.zeros(item.shape)
      members = backbone.members(query_state, item, weight, Conditioning(), items)
      return backbone.experts.terms(members).sum(-1)

    return jit(score)


def _packed_rows(log, packed: np.ndarray, width: int, rows: np.ndarray) -> Trajectories:
  return batches.packed_rows(log, packed, rows, width)


def _purchases(item_Bxn: np.ndarray) -> Examples:
  """Return purchases one rank apart, and a question about the next."""
  b, n = item_Bxn.shape
  ones = np.ones((b, n), np.int32)
  rank = np.broadcast_to(np.arange(1, n + 1, dtype=np.int32), (b, n))
  history = Trajectories(item_Bxn.astype(np.int32), PURCHASE * ones, ones, rank, ones)
  return _examples(history, np.full(b, n + 1))


def _examples(history: Trajectories, timestamp_B: np.ndarray) -> Examples:
  return Examples(history, timestamp_B.astype(np.int32), None, None, None, None)
