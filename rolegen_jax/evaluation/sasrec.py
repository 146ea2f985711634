"""SASRec with cross-entropy, in the same stack as the backbone: the trained baseline.

A causal transformer over item embeddings predicts the next items; input and output embeddings are tied. Kang & McAuley, ICDM
2018 (arXiv 1808.09781), with softmax in place of its sampled binary loss (Klenitskiy & Vasilev, RecSys 2023, arXiv
2309.07602). To respect ties, an event is predicted from the last position with a strictly smaller timestamp. Items already
seen may be recommended: dormant users mostly buy those.

Small enough for one device: every process that calls it trains the same model on its first local device.

Legend: B rows, n events in a row, P supervised positions of a step, S negatives, I items, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, Config, MeshConfig, TransformerConfig
from rolegen_jax.data.batches import Trajectories, histories, pack_windows, packed_rows
from rolegen_jax.evaluation.baselines import Ranking, popular_items, tuning_rows, validation_score
from rolegen_jax.evaluation.metrics import Pairs
from rolegen_jax.models import functional
from rolegen_jax.models.layers import param
from rolegen_jax.models.numerics import dropout
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.runtime.progress import progress
from rolegen_jax.sharding import make_mesh

FULL_SOFTMAX_ITEMS = 20_000  # larger catalogues use sampled softmax
NEGATIVES = 4096  # uniform negatives of a step, beside the other targets of the step
POSITIONS = 32  # supervised positions per row of a step, drawn in proportion to their loss weight
LEARNING_RATE, WARMUP = 1e-3, 50  # Adam; steps
CHECK_EVERY = 100  # steps between looks at validation
PATIENCE = 3  # looks without a better validation before it stops
_ROWS = 256  # occasions scored at once


class SASRec(nnx.Module):
  def __init__(self, items: int, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.embedding = param(rngs, (items, config.width), ('vocab', 'embed'), fan_in=config.width)
    self.transformer = Transformer(config, rngs=rngs)

  def __call__(self, item_Bxn, segment_Bxn, rate: float = 0.0, key=None):
    """States [B, n, D] after each event, causal within segments (0 = padding); `key` turns dropout on."""
    n = item_Bxn.shape[1]
    # Scaled as in the paper: tied rows are small, and would drown in what the blocks add to the residual stream.
    x = self.embedding[...][jnp.maximum(item_Bxn, 0)] * self.embedding.shape[1] ** 0.5
    x = dropout(x, rate, key)
    same = (segment_Bxn[:, :, None] == segment_Bxn[:, None, :]) & (segment_Bxn[:, None, :] > 0)
    positions = jnp.broadcast_to(jnp.arange(n), item_Bxn.shape)
    return self.transformer(x, positions, same & jnp.tril(jnp.ones((n, n), bool))).astype(
      jnp.float32
    )


def tie_source(rows: Trajectories) -> np.ndarray:
  """int64 [B, n]: for each event the last position of its segment with a strictly smaller timestamp; -1 where none is."""
  n = rows.item.shape[1]
  changed = np.ones(rows.item.shape, bool)
  changed[:, 1:] = (np.diff(rows.timestamp, axis=1) != 0) | (np.diff(rows.segment, axis=1) != 0)
  source = np.maximum.accumulate(np.where(changed, np.arange(n), 0), axis=1) - 1
  same = np.take_along_axis(rows.segment, np.maximum(source, 0), 1) == rows.segment
  return np.where((source >= 0) & same & (rows.segment > 0), source, -1)


def cross_entropy(state_PxD, embedding_IxD, target_P):
  """Mean full-softmax cross-entropy over the catalogue."""
  return optax.softmax_cross_entropy_with_integer_labels(
    state_PxD @ embedding_IxD.T, target_P
  ).mean()


def sampled_cross_entropy(state_PxD, embedding_IxD, target_P, negative_S, log_share_I):
  """The same, estimated from the step's own targets and uniform negatives (catalogues of any size).

  A candidate's logit is lowered by the log of how often its item is expected among the candidates, P times its share of the
  targets plus S / I, so that the sum over candidates estimates the sum over the catalogue (logQ: Yi et al., RecSys 2019).
  The target itself is always there: its logit stands as it is, and its chance copies are masked.
  """
  positions, items = len(target_P), len(embedding_IxD)
  candidate_C = jnp.concatenate([target_P, negative_S])
  expected_C = jnp.logaddexp(
    jnp.log(positions) + log_share_I[candidate_C], jnp.log(len(negative_S) / items)
  )
  others = jnp.where(
    candidate_C == target_P[:, None], -1e9, state_PxD @ embedding_IxD[candidate_C].T - expected_C
  )
  own_Px1 = (state_PxD * embedding_IxD[target_P]).sum(-1, keepdims=True)
  return (jax.nn.logsumexp(jnp.concatenate([own_Px1, others], 1), axis=1) - own_Px1[:, 0]).mean()


class _Batches:
  """Steps of training: all packed rows of the training events, and which positions of them are supervised."""

  def __init__(self, log, occasions, config: Config):
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
    share = np.bincount(
      self.rows.item[self.source >= 0], self.weight[self.source >= 0], minlength=len(log.items)
    )
    self.log_share = jnp.log(jnp.maximum(share / share.sum(), 1e-12))
    self.size = config.warmup.batch

  def draw(self, rng: np.random.Generator):
    """(item, segment) [B, n] and (row, source, target) [P]: drawing by weight makes the plain mean the weighted loss."""
    chosen = rng.choice(self.usable, self.size)
    heap = np.cumsum(self.weight[chosen])
    flat = np.searchsorted(heap, rng.random(self.size * POSITIONS) * heap[-1], side='right')
    row, column = np.divmod(np.minimum(flat, len(heap) - 1), self.rows.item.shape[1])
    source, target = self.source[chosen][row, column], self.rows.item[chosen][row, column]
    return (
      self.rows.item[chosen],
      self.rows.segment[chosen],
      row.astype(np.int32),
      source.astype(np.int32),
      target,
    )


class Fit(NamedTuple):
  top: Callable  # (item, segment) [B, n], histories -> numpy int32 [B, min(k, I)], the items that follow, best first
  settings: dict  # for the report


def sasrec(log, occasions, rows: np.ndarray, config: Config, k: int) -> Ranking:
  """Trains on training events, keeps the best step by validation, and ranks the whole catalogue for occasions `rows`.

  Width, layers, context, dropout and loss weights are the backbone's; `evaluation.sasrec_steps` steps at most. Occasions
  without context get the popular items. Same contract as the baselines; raises ValueError when there is nothing to train on.
  """
  found = fit(log, occasions, config, k)
  return Ranking(_rank(found.top, log, occasions, rows, config.backbone.context, k), found.settings)


def fit(log, occasions, config: Config, k: int) -> Fit:
  """The model of `sasrec`, for histories of any time."""
  mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
  with jax.set_mesh(mesh):  # its own, whatever mesh the caller has set
    params, top, settings = _train(log, occasions, config, k, mesh)

  def top_there(item, segment):
    with jax.set_mesh(mesh):
      return np.asarray(top(params, item, segment))

  return Fit(top_there, settings)


def _train(log, occasions, config: Config, k: int, mesh):
  batches, items = _Batches(log, occasions, config), len(log.items)
  sampled = items > FULL_SOFTMAX_ITEMS
  rng = np.random.default_rng(config.evaluation.seed)
  key_init, key_steps = jax.random.split(jax.random.key(config.evaluation.seed))
  graphdef, params = functional.init(
    lambda rngs: SASRec(items, config.backbone.temporal, rngs=rngs), key_init, mesh
  )
  tx = optax.adam(optax.schedules.linear_schedule(0.0, LEARNING_RATE, WARMUP))

  def loss_of(params, batch, negative, key):
    item, segment, row, source, target = batch
    model = functional.bind(graphdef, params)
    state = model(item, segment, config.backbone.dropout, key)[row, source]
    if sampled:
      return sampled_cross_entropy(state, model.embedding[...], target, negative, batches.log_share)
    return cross_entropy(state, model.embedding[...], target)

  @jax.jit
  def step(params, opt_state, batch, index):
    key_drop, key_negative = jax.random.split(jax.random.fold_in(key_steps, index))
    negative = jax.random.randint(key_negative, (NEGATIVES,), 0, items)
    loss, grads = jax.value_and_grad(loss_of)(params, batch, negative, key_drop)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  @jax.jit
  def top(params, item, segment):
    model = functional.bind(graphdef, params)
    return jax.lax.top_k(model(item, segment)[:, -1] @ model.embedding[...].T, min(k, items))[1]

  rank = lambda params, rows: _rank(
    lambda *a: top(params, *a), log, occasions, rows, config.backbone.context, k
  )
  tuning = tuning_rows(log, occasions)
  pairs = Pairs.of(occasions, tuning)
  opt_state, best, best_params, losses = tx.init(params), (-1.0, 0), params, []
  for index in progress(range(1, config.evaluation.sasrec_steps + 1), 'SASRec'):
    params, opt_state, loss = step(params, opt_state, batches.draw(rng), index)
    losses.append(loss)
    if index % CHECK_EVERY and index != config.evaluation.sasrec_steps:
      continue
    if not len(tuning):
      best, best_params = (-1.0, index), params
    elif (score := validation_score(rank(params, tuning), pairs)) > best[0]:
      best, best_params = (score, index), params
    elif index - best[1] >= PATIENCE * CHECK_EVERY:
      break
  settings = dict(
    softmax=f'sampled: in-batch + {NEGATIVES} uniform, logQ' if sampled else 'full',
    steps=index,
    kept_step=best[1],
    loss=float(np.mean(jax.device_get(losses[-CHECK_EVERY:]))),
    validation_occasions=len(tuning),
  )
  return best_params, top, settings


def _rank(top, log, occasions, rows, context: int, k: int) -> np.ndarray:
  """int32 [O, k], in fixed-shape chunks so that one program serves all of them."""
  ranked = np.full((len(rows), k), -1, np.int32)
  listed = min(k, len(log.items))
  for start in range(0, len(rows), _ROWS):
    chunk = rows[start : start + _ROWS]
    padded = np.pad(chunk, (0, _ROWS - len(chunk)), mode='edge')
    history = histories(log, occasions.user[padded], occasions.context_end[padded], context)
    ranked[start : start + len(chunk), :listed] = top(history.item, history.segment)[: len(chunk)]
  empty = occasions.context_end[rows] == log.offsets[occasions.user[rows]]
  ranked[empty, :listed] = popular_items(log, occasions)[:listed]
  return ranked
