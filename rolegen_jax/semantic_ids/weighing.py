"""How much behavior counts against text in semantic IDs: chosen by what codes say of conversions.

Items of one coarse code should be wanted together. Which embeddings give such codes depends on the
log: titles may mislead, and co-occurrence may be sparse. So items are quantized under several
weights, and counting predicts the validation conversions through each one's coarse codes,

  log p(item | history) = log p(code | history) + log p(item | code)
  p(code | history) = (faded share of the history's events in the code, with a prior of PRIORS
                       events spread like what is bought)
  p(item | code) by training events

The weight by which they are likeliest is taken. No model is trained.

Shapes: N conversions, n events of a history, I items, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, SemanticIdConfig
from rolegen_jax.data.log import InteractionLog, ranges
from rolegen_jax.data.occasions import VALID, Occasions
from rolegen_jax.features.item_transitions import DAY
from rolegen_jax.runtime.progress import say
from rolegen_jax.semantic_ids.embeddings import Sides
from rolegen_jax.semantic_ids.residual_kmeans import residual_kmeans

WEIGHTS = (0.5, 1.0, 2.0, 4.0)  # of the collaborative part; that of the text is 1
MOST = 4_000  # conversions
EVENTS = 128  # of a history, the latest
DAYS, PRIORS = (3.0, 10.0, 30.0), (1.0, 3.0, 10.0)  # how events fade; events
PURCHASE = EVENT_NAMES.index('purchase')


class Asked(NamedTuple):
  """Validation conversions, and the events before them."""

  target: np.ndarray  # int [N]
  row: np.ndarray  # int [N * n], which conversion an event is before
  item: np.ndarray  # int [N * n]
  age: np.ndarray  # fp [N * n], days

  @classmethod
  def of(cls, log: InteractionLog, occasions: Occasions) -> Asked:
    """Take at most MOST, evenly."""
    first = occasions.target_offsets[:-1]
    is_asked = (occasions.split == VALID) & (occasions.context_end > log.offsets[occasions.user])
    asked = np.flatnonzero(is_asked)
    place, of_asked = ranges(first[asked], (occasions.target_offsets[1:] - first)[asked])
    chosen = np.linspace(0, len(place) - 1, min(len(place), MOST)).astype(np.int64)
    occasion = asked[of_asked[chosen]]
    end = occasions.context_end[occasion]
    start = np.maximum(log.offsets[occasions.user[occasion]], end - EVENTS)
    event, row = ranges(start, end - start)
    age = (occasions.timestamp[occasion][row] - log.timestamp[event]) / DAY
    return cls(occasions.target[place[chosen]], row, log.item[event], age)


def nll(asked: Asked, code_I: np.ndarray, count_I: np.ndarray, bought_I: np.ndarray) -> float:
  """Return the NLL of conversions by counting through coarse codes, nats.

  count: training events of the items. bought: training purchases.
  """
  n, codes = len(asked.target), int(code_I.max()) + 1
  base = np.bincount(code_I, weights=bought_I, minlength=codes) + 0.5
  base /= base.sum()
  known = count_I + 0.5
  within = np.log(known / np.bincount(code_I, weights=known, minlength=codes)[code_I])
  target = code_I[asked.target]
  is_target = code_I[asked.item] == target[asked.row]
  best = np.inf
  for days in DAYS:
    faded = np.exp(-asked.age / days)
    total = np.bincount(asked.row, weights=faded, minlength=n)
    of_target = np.bincount(asked.row, weights=faded * is_target, minlength=n)
    for prior in PRIORS:
      log_prob = np.log((of_target + prior * base[target]) / (total + prior))
      best = min(best, -float(log_prob.mean()))
  return best - float(within[asked.target].mean())


def best_weight(
  sides: Sides, log: InteractionLog, occasions: Occasions, config: SemanticIdConfig, mesh: Mesh
) -> float:
  """Return the best of WEIGHTS; 1 where there is nothing to weigh or to choose by."""
  if sides.collaborative is None or sides.text is None:
    return 1.0
  asked = Asked.of(log, occasions)
  if not len(asked.target):
    return 1.0
  count_I, bought_I = occasions.train_events(log), _bought(log, occasions)
  found = {}
  for weight in WEIGHTS:
    points = sides.together(weight)
    coarse = residual_kmeans(points, 1, config.codes, config.iterations, config.seed, mesh)
    found[weight] = nll(asked, coarse.codes[:, 0], count_I, bought_I)
  said = ', '.join(f'{value:.3f} by {weight:g}' for weight, value in found.items())
  say(f'semantic IDs: NLL of {len(asked.target)} validation conversions by counting, {said}')
  return min(found, key=lambda weight: found[weight])


def _bought(log: InteractionLog, occasions: Occasions) -> np.ndarray:
  """Return the training purchases of all items, int [I]."""
  train_end, total = occasions.train_end(log), np.zeros(log.items.height, np.int64)
  for part in log.parts():
    used = part.training(train_end) & (part.log.event == PURCHASE)
    total += np.bincount(part.log.item[used], minlength=len(total))
  return total
