"""SASRec as published, with settings of its own (`evaluation.sasrec`): the trained baseline.

A causal transformer over item embeddings predicts the next items; input and output embeddings are
tied. Kang & McAuley, ICDM 2018 (arXiv 1808.09781), with softmax in place of its sampled binary loss
(Klenitskiy & Vasilev, RecSys 2023, arXiv 2309.07602): over the whole catalogue where that is small,
else over uniform negatives that the positions of a step share. Every event that has an earlier one
is predicted, to respect ties from the last position with a strictly smaller timestamp. A model of
each width is trained until validation NDCG@10 stops rising, and the best one is kept.

It is small enough for one device: every process that calls it trains the same model on its first
local device.

Shapes: B rows, n events in a row, P positions of a step (B n), S negatives, I items, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, MeshConfig, SasrecConfig, TransformerConfig
from rolegen_jax.data.batches import Trajectories, histories, pack_windows, packed_rows
from rolegen_jax.evaluation.baselines import (
  BaselineInputs,
  Ranking,
  tuning_rows,
)
from rolegen_jax.evaluation.metrics import Pairs, ndcg, ranks
from rolegen_jax.models import functional
from rolegen_jax.models.layers import param
from rolegen_jax.models.numerics import NEG_INF, dropout, is_possible
from rolegen_jax.models.transformer import Dropout, Transformer
from rolegen_jax.runtime.compile import jit
from rolegen_jax.runtime.progress import progress, say
from rolegen_jax.serving.history_filter import held_items
from rolegen_jax.sharding import make_mesh

_MLP = 4  # hidden width of the gated MLP, in widths of the model
_WARMUP = 50  # steps in which the learning rate rises
_ROWS = 256  # occasions scored at once
_CHECKED = 16_384  # packed rows that are in memory at once, at most


def transformer(config: SasrecConfig, width: int) -> TransformerConfig:
  """Return the stack of a model of this width."""
  return TransformerConfig(
    layers=config.blocks,
    width=width,
    heads=config.heads,
    kv_heads=config.heads,
    head_dim=width // config.heads,
    mlp=_MLP * width,
  )


class SASRec(nnx.Module):
  """Item embeddings, tied, and a causal transformer."""

  def __init__(self, items: int, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.embedding = param(rngs, (items, config.width), ('vocab', 'embed'), fan_in=config.width)
    self.transformer = Transformer(config, rngs=rngs)

  def __call__(
    self,
    item_Bxn: jax.Array,
    segment_Bxn: jax.Array,
    rate: float = 0.0,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Return states [B, n, D] after each event, causal within segments (0 = padding).

    `key` turns dropout on.
    """
    n = item_Bxn.shape[1]
    embedding_key, block_key = (None, None) if key is None else jax.random.split(key)
    # Scaled as in the paper: tied rows are small, and would drown in what the blocks add to the
    # residual stream.
    x = self.embedding[...][jnp.maximum(item_Bxn, 0)] * self.embedding.shape[1] ** 0.5
    x = dropout(x, rate, embedding_key)
    same = (segment_Bxn[:, :, None] == segment_Bxn[:, None, :]) & (segment_Bxn[:, None, :] > 0)
    positions = jnp.broadcast_to(jnp.arange(n), item_Bxn.shape)
    mask = same & jnp.tril(jnp.ones((n, n), bool))
    return self.transformer(x, positions, mask, Dropout(rate, block_key)).astype(jnp.float32)


def tie_source(rows: Trajectories) -> np.ndarray:
  """Return the last earlier position of each event's segment, int64 [B, n]; -1 if there is none.

  Earlier means a smaller timestamp: events at the same time do not count.
  """
  n = rows.item.shape[1]
  changed = np.ones(rows.item.shape, bool)
  changed[:, 1:] = (np.diff(rows.timestamp, axis=1) != 0) | (np.diff(rows.segment, axis=1) != 0)
  source = np.maximum.accumulate(np.where(changed, np.arange(n), 0), axis=1) - 1
  same = np.take_along_axis(rows.segment, np.maximum(source, 0), 1) == rows.segment
  return np.where((source >= 0) & same & (rows.segment > 0), source, -1)


def cross_entropy(state_PxD: jax.Array, embedding_IxD: jax.Array, target_P: jax.Array) -> jax.Array:
  """Return the full-softmax cross-entropy over the catalogue, [P]."""
  logits = state_PxD @ embedding_IxD.T
  return optax.softmax_cross_entropy_with_integer_labels(logits, target_P)


def sampled_cross_entropy(
  state_PxD: jax.Array, embedding_IxD: jax.Array, target_P: jax.Array, negative_S: jax.Array
) -> jax.Array:
  """Return the cross-entropy of each target against uniform negatives, [P].

  Chance copies of the target are masked.
  """
  own_P = (state_PxD * embedding_IxD[target_P]).sum(-1)
  logits_PxS = state_PxD @ embedding_IxD[negative_S].T
  others = jnp.where(negative_S == target_P[:, None], NEG_INF, logits_PxS)
  return jnp.logaddexp(own_P, jax.nn.logsumexp(others, axis=1)) - own_P


class Batch(NamedTuple):
  """Packed rows, and what is predicted of them."""

  item: np.ndarray  # int32 [B, n]
  segment: np.ndarray  # int32 [B, n]; 0 = padding
  source: np.ndarray  # int32 [B, n], the position that predicts this one
  weight: np.ndarray  # fp32 [B, n]; 0 = not predicted


class _Batches:
  """The packed rows of the training events, made as they are drawn."""

  def __init__(self, inputs: BaselineInputs):
    self._log, self._config = inputs.log, inputs.config.evaluation.sasrec
    self._packed = pack_windows(self._log.offsets, inputs.train_end, self._config.context)
    if not self._packed.size:
      raise ValueError('SASRec: no user has two training events')
    n_rows = int(self._packed[0].max()) + 1
    usable = [
      self._rows(np.arange(first, min(first + _CHECKED, n_rows))).weight.sum(1) > 0
      for first in range(0, n_rows, _CHECKED)
    ]
    self._usable = np.flatnonzero(np.concatenate(usable))
    if not len(self._usable):
      raise ValueError('SASRec: no training event has an earlier event of the same user')

  def _rows(self, numbers: np.ndarray) -> Batch:
    """Return the packed rows of these numbers."""
    rows = packed_rows(self._log, self._packed, numbers, self._config.context)
    source = tie_source(rows)
    weight = np.where(rows.event == EVENT_NAMES.index('purchase'), 1.0, self._config.view_weight)
    weight = np.where(source >= 0, weight, 0.0).astype(np.float32)
    return Batch(rows.item, rows.segment, np.maximum(source, 0).astype(np.int32), weight)

  def draw(self, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield batches without end: all rows in random order, and again."""
    n_rows, size, left = len(self._usable), self._config.batch, np.zeros(0, np.int64)
    while True:
      while len(left) < size:
        left = np.append(left, rng.permutation(n_rows))
      chosen, left = left[:size], left[size:]
      yield self._rows(self._usable[chosen])


class Fit(NamedTuple):
  """A trained SASRec."""

  # (item, segment) [B, n], histories, and None or barred items, bool [B, I] -> (int32 the items
  # that follow, best first, fp32 their log p) [B, min(k, I)]; -1 = no more are allowed.
  top: Callable[..., tuple[np.ndarray, np.ndarray]]
  settings: dict[str, Any]  # for the report


class _Trained(NamedTuple):
  """The best checked step of one model; `top` takes the parameters before its arguments."""

  score: float
  params: Any
  top: Callable
  settings: dict[str, Any]


def sasrec(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Train on training events, keep the best step by validation, rank the whole catalogue.

  The seed is the run's. Occasions without context get the popular items. The contract is that of
  the other baselines; raises ValueError when there is nothing to train on.
  """
  fitted = fit(inputs, k)
  return Ranking(_rank(fitted.top, inputs, rows, k), fitted.settings)


def fit(inputs: BaselineInputs, k: int) -> Fit:
  """Return the model of `sasrec`, for histories of any time."""
  config, batches = inputs.config.evaluation.sasrec, _Batches(inputs)
  mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
  with jax.set_mesh(mesh):  # its own, whatever mesh the caller has set
    trained = [_train(inputs, batches, width, k, mesh) for width in config.widths]
    best = max(trained, key=lambda model: model.score)

  def top_on_mesh(
    item: np.ndarray, segment: np.ndarray, barred: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    with jax.set_mesh(mesh):
      items, log_probs = best.top(best.params, item, segment, barred)
      return np.asarray(items), np.asarray(log_probs)

  return Fit(top_on_mesh, best.settings)


def _train(inputs: BaselineInputs, batches: _Batches, width: int, k: int, mesh: Mesh) -> _Trained:
  """Train a model of one width until validation NDCG@10 stops rising."""
  config, n_items, seed = inputs.config.evaluation.sasrec, len(inputs.log.items), inputs.config.seed
  key_init, key_steps = jax.random.split(jax.random.key(seed))
  graphdef, params = functional.init(
    lambda rngs: SASRec(n_items, transformer(config, width), rngs=rngs), key_init, mesh
  )
  schedule = optax.schedules.linear_schedule(0.0, config.learning_rate, _WARMUP)
  optimizer = optax.adam(schedule, b2=config.b2)
  step, top = _step_program(graphdef, optimizer, n_items, config), _top_program(graphdef, k)
  tuning = tuning_rows(inputs.log, inputs.occasions)
  pairs = Pairs.of(inputs.occasions, tuning)
  opt_state, drawn = optimizer.init(params), batches.draw(np.random.default_rng(seed))
  best_score, best_step, best_params, losses = -1.0, 0, params, []
  for index in progress(range(1, config.steps + 1), f'SASRec of width {width}'):
    key = jax.random.fold_in(key_steps, index)
    params, opt_state, loss = step(params, opt_state, next(drawn), key)
    losses.append(loss)
    if index % config.check_every and index != config.steps:
      continue
    lists = _rank(functools.partial(top, params), inputs, tuning, 10)
    score = float(ndcg(ranks(lists, pairs), 10).mean()) if len(tuning) else float(index)
    if score > best_score:
      best_score, best_step, best_params = score, index, params
    elif index - best_step >= config.patience * config.check_every:
      break
  n_read = config.negatives
  settings = dict(
    width=width,
    blocks=config.blocks,
    heads=config.heads,
    context=config.context,
    dropout=config.dropout,
    softmax='full' if n_items <= config.full_softmax else f'{n_read} uniform negatives',
    steps=index,
    kept_step=best_step,
    loss=float(np.mean(jax.device_get(losses[-config.check_every :]))),
  )
  if len(tuning):
    settings |= {'validation NDCG@10': round(best_score, 4), 'validation_occasions': len(tuning)}
    say(f'SASRec of width {width}: validation NDCG@10 {best_score:.4f} at step {best_step}')
  return _Trained(best_score, best_params, top, settings)


def _step_program(
  graphdef: Any, optimizer: optax.GradientTransformation, n_items: int, config: SasrecConfig
) -> Callable:
  """Return (params, optimizer state, batch, key) -> (params, optimizer state, loss)."""

  def loss_of(params: Any, batch: Batch, key: jax.Array) -> jax.Array:
    key_drop, key_negative = jax.random.split(key)
    model = functional.bind(graphdef, params)
    state = model(batch.item, batch.segment, config.dropout, key_drop)
    state = jnp.take_along_axis(state, batch.source[..., None], axis=1)
    state = state.reshape(-1, state.shape[-1])
    target, weight = jnp.maximum(batch.item, 0).ravel(), batch.weight.ravel()
    if n_items <= config.full_softmax:
      nll = cross_entropy(state, model.embedding[...], target)
    else:
      negative = jax.random.randint(key_negative, (config.negatives,), 0, n_items)
      nll = sampled_cross_entropy(state, model.embedding[...], target, negative)
    return (nll * weight).sum() / weight.sum()

  @jit
  def step(params: Any, opt_state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, jax.Array]:
    loss, grads = jax.value_and_grad(loss_of)(params, batch, key)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  return step


def _top_program(graphdef: Any, k: int) -> Callable:
  """Return `Fit.top` with the parameters before its arguments."""

  @jit
  def top(
    params: Any, item: jax.Array, segment: jax.Array, barred: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    model = functional.bind(graphdef, params)
    logits = model(item, segment)[:, -1] @ model.embedding[...].T
    allowed = logits if barred is None else jnp.where(barred, NEG_INF, logits)
    best, index = jax.lax.top_k(allowed, min(k, logits.shape[1]))
    log_total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    return jnp.where(is_possible(best), index, -1), best - log_total

  return top


def _rank(top: Callable, inputs: BaselineInputs, rows: np.ndarray, k: int) -> np.ndarray:
  """Return lists int32 [O, k], in fixed-shape chunks so that one program serves all of them."""
  log, occasions = inputs.log, inputs.occasions
  ranked = np.full((len(rows), k), -1, np.int32)
  for start in range(0, len(rows), _ROWS):
    chunk = rows[start : start + _ROWS]
    padded = np.pad(chunk, (0, _ROWS - len(chunk)), mode='edge')
    user, end = occasions.user[padded], occasions.context_end[padded]
    history = histories(log, user, end, inputs.config.evaluation.sasrec.context)
    barred = held_items(log, user, end).toarray() if inputs.bars_history else None
    items = np.asarray(top(history.item, history.segment, barred)[0])[: len(chunk), :k]
    ranked[start : start + len(chunk), : items.shape[1]] = items
  empty = occasions.context_end[rows] == log.offsets[occasions.user[rows]]
  listed = min(k, len(log.items))
  ranked[empty, :listed] = inputs.popular[:listed]
  return ranked
