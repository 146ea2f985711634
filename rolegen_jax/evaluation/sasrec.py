"""SASRec with cross-entropy, in the same stack as the backbone: the trained baseline.

A causal transformer over item embeddings predicts the next items; input and output embeddings are
tied. Kang & McAuley, ICDM 2018 (arXiv 1808.09781), with softmax in place of its sampled binary loss
(Klenitskiy & Vasilev, RecSys 2023, arXiv 2309.07602). To respect ties, an event is predicted from
the last position with a strictly smaller timestamp. Items already seen may be recommended, as
dormant users mostly buy those, unless `serving.filter_history` bars them.

It is small enough for one device: every process that calls it trains the same model on its first
local device.

Shapes: B rows, n events in a row, P supervised positions of a step, S negatives, C candidates,
I items, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, Config, MeshConfig, TransformerConfig
from rolegen_jax.data.batches import Trajectories, histories, pack_windows, packed_rows
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.evaluation.baselines import (
  BaselineInputs,
  Ranking,
  tuning_rows,
  validation_score,
)
from rolegen_jax.evaluation.metrics import Pairs
from rolegen_jax.models import functional
from rolegen_jax.models.layers import param
from rolegen_jax.models.numerics import NEG_INF, dropout, is_possible
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.runtime.compile import jit
from rolegen_jax.runtime.progress import progress
from rolegen_jax.serving.history_filter import held_items
from rolegen_jax.sharding import make_mesh

FULL_SOFTMAX_ITEMS = 20_000  # larger catalogues use sampled softmax
NEGATIVES = 4096  # uniform negatives of a step, beside the other targets of the step
POSITIONS = 32  # supervised positions per row of a step, drawn in proportion to their loss weight
LEARNING_RATE, WARMUP = 1e-3, 50  # Adam; steps
CHECK_EVERY = 100  # steps between validations
PATIENCE = 3  # validations without improvement before it stops
_ROWS = 256  # occasions scored at once


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
    # Scaled as in the paper: tied rows are small, and would drown in what the blocks add to the
    # residual stream.
    x = self.embedding[...][jnp.maximum(item_Bxn, 0)] * self.embedding.shape[1] ** 0.5
    x = dropout(x, rate, key)
    same = (segment_Bxn[:, :, None] == segment_Bxn[:, None, :]) & (segment_Bxn[:, None, :] > 0)
    positions = jnp.broadcast_to(jnp.arange(n), item_Bxn.shape)
    mask = same & jnp.tril(jnp.ones((n, n), bool))
    return self.transformer(x, positions, mask).astype(jnp.float32)


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
  """Return the mean full-softmax cross-entropy over the catalogue."""
  logits = state_PxD @ embedding_IxD.T
  return optax.softmax_cross_entropy_with_integer_labels(logits, target_P).mean()


def sampled_cross_entropy(
  state_PxD: jax.Array,
  embedding_IxD: jax.Array,
  target_P: jax.Array,
  negative_S: jax.Array,
  log_share_I: jax.Array,
) -> jax.Array:
  """Estimate `cross_entropy` from the step's own targets and uniform negatives.

  A candidate's logit is lowered by the log of how often its item is expected among the candidates,
  P times its share of the targets plus S / I, so that the sum over candidates estimates the sum
  over the catalogue (logQ: Yi et al., RecSys 2019). The target itself is always there: its logit
  stands as it is, and its chance copies are masked.
  """
  positions, items = len(target_P), len(embedding_IxD)
  candidate_C = jnp.concatenate([target_P, negative_S])
  log_targets = jnp.log(positions) + log_share_I[candidate_C]
  log_expected_C = jnp.logaddexp(log_targets, jnp.log(len(negative_S) / items))
  logits_PxC = state_PxD @ embedding_IxD[candidate_C].T - log_expected_C
  others = jnp.where(candidate_C == target_P[:, None], NEG_INF, logits_PxC)
  own_Px1 = (state_PxD * embedding_IxD[target_P]).sum(-1, keepdims=True)
  log_total = jax.nn.logsumexp(jnp.concatenate([own_Px1, others], 1), axis=1)
  return (log_total - own_Px1[:, 0]).mean()


class _Batches:
  """All packed rows of the training events, and which positions of them are supervised."""

  def __init__(self, log: InteractionLog, occasions: Occasions, config: Config):
    width = config.backbone.context
    packed = pack_windows(log.offsets, occasions.train_end(log), width)
    if not packed.size:
      raise ValueError('SASRec: no user has two training events')
    self.rows = packed_rows(log, packed, np.arange(packed[0].max() + 1), width)
    self.source = tie_source(self.rows)
    bought = self.rows.event == EVENT_NAMES.index('purchase')
    weight = np.where(bought, config.backbone.purchase_weight, config.backbone.view_weight)
    self.weight = np.where(self.source >= 0, weight, 0.0)
    self.usable = np.flatnonzero(self.weight.sum(1) > 0)
    if not len(self.usable):
      raise ValueError('SASRec: no training event has an earlier event of the same user')
    supervised = self.source >= 0
    share = np.bincount(
      self.rows.item[supervised], self.weight[supervised], minlength=len(log.items)
    )
    self.log_share = jnp.log(jnp.maximum(share / share.sum(), 1e-12))
    self.sampled = len(log.items) > FULL_SOFTMAX_ITEMS
    self.size = config.warmup.batch

  def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return (item, segment) [B, n] and (row, source, target) [P] of one step.

    Drawing by weight makes the plain mean the weighted loss.
    """
    chosen = rng.choice(self.usable, self.size)
    cumulative = np.cumsum(self.weight[chosen])
    drawn = rng.random(self.size * POSITIONS) * cumulative[-1]
    flat = np.searchsorted(cumulative, drawn, side='right')
    row, column = np.divmod(np.minimum(flat, len(cumulative) - 1), self.rows.item.shape[1])
    source, target = self.source[chosen][row, column], self.rows.item[chosen][row, column]
    return (
      self.rows.item[chosen],
      self.rows.segment[chosen],
      row.astype(np.int32),
      source.astype(np.int32),
      target,
    )


class Fit(NamedTuple):
  """A trained SASRec."""

  # (item, segment) [B, n], histories, and None or barred items, bool [B, I] -> (int32 the items
  # that follow, best first, fp32 their log p) [B, min(k, I)]; -1 = no more are allowed.
  top: Callable[..., tuple[np.ndarray, np.ndarray]]
  settings: dict[str, Any]  # for the report


def sasrec(inputs: BaselineInputs, rows: np.ndarray, k: int) -> Ranking:
  """Train on training events, keep the best step by validation, rank the whole catalogue.

  Width, layers, context, dropout and loss weights are the backbone's; `evaluation.sasrec_steps`
  steps at most; the seed is the run's. Occasions without context get the popular items. The
  contract is that of the other baselines; raises ValueError when there is nothing to train on.
  """
  fitted = fit(inputs, k)
  return Ranking(_rank(fitted.top, inputs, rows, k), fitted.settings)


def fit(inputs: BaselineInputs, k: int) -> Fit:
  """Return the model of `sasrec`, for histories of any time."""
  mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
  with jax.set_mesh(mesh):  # its own, whatever mesh the caller has set
    params, top, settings = _train(inputs, k, mesh)

  def top_on_mesh(
    item: np.ndarray, segment: np.ndarray, barred: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    with jax.set_mesh(mesh):
      items, log_probs = top(params, item, segment, barred)
      return np.asarray(items), np.asarray(log_probs)

  return Fit(top_on_mesh, settings)


def _train(inputs: BaselineInputs, k: int, mesh: Mesh) -> tuple[Any, Callable, dict[str, Any]]:
  """Return (parameters, `Fit.top` with the parameters before its arguments, settings)."""
  log, occasions, config = inputs.log, inputs.occasions, inputs.config
  batches, items = _Batches(log, occasions, config), len(log.items)
  rng = np.random.default_rng(config.seed)
  key_init, key_steps = jax.random.split(jax.random.key(config.seed))
  graphdef, params = functional.init(
    lambda rngs: SASRec(items, config.backbone.temporal, rngs=rngs), key_init, mesh
  )
  optimizer = optax.adam(optax.schedules.linear_schedule(0.0, LEARNING_RATE, WARMUP))
  step = _step_program(graphdef, optimizer, batches, config, key_steps)

  @jit
  def top(
    params: Any, item: jax.Array, segment: jax.Array, barred: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    model = functional.bind(graphdef, params)
    logits = model(item, segment)[:, -1] @ model.embedding[...].T
    allowed = logits if barred is None else jnp.where(barred, NEG_INF, logits)
    best, index = jax.lax.top_k(allowed, min(k, items))
    log_total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    return jnp.where(is_possible(best), index, -1), best - log_total

  tuning = tuning_rows(log, occasions)
  pairs = Pairs.of(occasions, tuning)

  def validate(params: Any) -> float:
    lists = _rank(functools.partial(top, params), inputs, tuning, k)
    return validation_score(lists, pairs)

  opt_state = optimizer.init(params)
  best_score, best_step, best_params, losses = -1.0, 0, params, []
  for index in progress(range(1, config.evaluation.sasrec_steps + 1), 'SASRec'):
    params, opt_state, loss = step(params, opt_state, batches.draw(rng), index)
    losses.append(loss)
    if index % CHECK_EVERY and index != config.evaluation.sasrec_steps:
      continue
    if not len(tuning):
      best_step, best_params = index, params
    elif (score := validate(params)) > best_score:
      best_score, best_step, best_params = score, index, params
    elif index - best_step >= PATIENCE * CHECK_EVERY:
      break
  settings = dict(
    softmax=f'sampled: in-batch + {NEGATIVES} uniform, logQ' if batches.sampled else 'full',
    steps=index,
    kept_step=best_step,
    loss=float(np.mean(jax.device_get(losses[-CHECK_EVERY:]))),
    validation_occasions=len(tuning),
  )
  return best_params, top, settings


def _step_program(
  graphdef: Any,
  optimizer: optax.GradientTransformation,
  batches: _Batches,
  config: Config,
  key_steps: jax.Array,
) -> Callable:
  """Return (params, optimizer state, batch, step number) -> (params, optimizer state, loss)."""

  def loss_of(params: Any, batch: Any, negative: jax.Array, key: jax.Array) -> jax.Array:
    item, segment, row, source, target = batch
    model = functional.bind(graphdef, params)
    state = model(item, segment, config.backbone.dropout, key)[row, source]
    embedding = model.embedding[...]
    if batches.sampled:
      return sampled_cross_entropy(state, embedding, target, negative, batches.log_share)
    return cross_entropy(state, embedding, target)

  @jit
  def step(params: Any, opt_state: Any, batch: Any, index: int) -> tuple[Any, Any, jax.Array]:
    key_drop, key_negative = jax.random.split(jax.random.fold_in(key_steps, index))
    negative = jax.random.randint(key_negative, (NEGATIVES,), 0, len(batches.log_share))
    loss, grads = jax.value_and_grad(loss_of)(params, batch, negative, key_drop)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  return step


def _rank(top: Callable, inputs: BaselineInputs, rows: np.ndarray, k: int) -> np.ndarray:
  """Return lists int32 [O, k], in fixed-shape chunks so that one program serves all of them."""
  log, occasions, config = inputs.log, inputs.occasions, inputs.config
  ranked = np.full((len(rows), k), -1, np.int32)
  listed = min(k, len(log.items))
  for start in range(0, len(rows), _ROWS):
    chunk = rows[start : start + _ROWS]
    padded = np.pad(chunk, (0, _ROWS - len(chunk)), mode='edge')
    user, end = occasions.user[padded], occasions.context_end[padded]
    history = histories(log, user, end, config.backbone.context)
    barred = held_items(log, user, end).toarray() if config.serving.filter_history else None
    items, _ = top(history.item, history.segment, barred)
    ranked[start : start + len(chunk), :listed] = items[: len(chunk)]
  empty = occasions.context_end[rows] == log.offsets[occasions.user[rows]]
  ranked[empty, :listed] = inputs.popular[:listed]
  return ranked
