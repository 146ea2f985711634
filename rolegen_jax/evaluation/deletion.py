"""Deletion and insertion curves: do the events named as its cause make a conversion likelier?

Whoever names the right k events lowers the backbone's log p(y) more by removing them, and raises it
more by adding them where all the last events are missing, than chance and the latest k do (as for
attributions of pixels: Samek et al., IEEE TNNLS 2017; Petsiuk et al., BMVC 2018). This is a
conversion of the backbone, not of the user: see `reasoning/roles.py`.

Shapes: N examples, M last events, V variants of an example, B rows, n events.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import EvaluationConfig
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.evaluation.metrics import Interval, bootstrap
from rolegen_jax.reasoning.batched import over
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import Trie

DEPTHS = (1, 2, 4)  # events removed, or added
DRAWS = 2  # random choices per example, whose mean is chance
MOST = 500  # examples, evenly drawn from all that qualify
RECENCY = 'the latest events'

Curves = dict[str, dict[str, dict[int, Interval]]]


@dataclasses.dataclass(frozen=True)
class Deleted:
  """V variants of every example: row v * N + i is example i without some of its last M events."""

  table: ExampleTable
  removed: np.ndarray  # bool [V, N, M]

  def __len__(self) -> int:
    return self.removed.shape[0] * len(self.table)

  def rows(self, index: np.ndarray, width: int) -> Examples:
    """Return the variants of these numbers, histories of `width` events."""
    variant, example = np.divmod(index, len(self.table))
    examples = self.table.rows(example, width)
    removed = np.pad(self.removed[variant, example], ((0, 0), (width - self.removed.shape[2], 0)))
    # Removed events become padding, which stands first; the others keep their order.
    order = np.argsort(~removed & (examples.history.segment > 0), axis=1, kind='stable')

    def remove(field: np.ndarray, fill: int) -> np.ndarray:
      return np.take_along_axis(np.where(removed, fill, field), order, axis=1)

    item, *others = examples.history
    history = Trajectories(remove(item, -1), *(remove(field, 0) for field in others))
    excites = self.table.excitation.of(self.table.user[example], history.item)
    return examples._replace(history=history, excites=excites)


def highest(score_NxM: np.ndarray, k: int) -> np.ndarray:
  """Return bool [N, M]: the k events of each example with the highest scores."""
  chosen = np.argsort(-score_NxM, axis=1, kind='stable')[:, :k]
  mask = np.zeros(score_NxM.shape, bool)
  np.put_along_axis(mask, chosen, True, axis=1)
  return mask


def deletion_curves(
  rolegen: RoleGen,
  backbone: dict,
  table: ExampleTable,
  scores: dict[str, np.ndarray],
  trie: Trie,
  mesh: Mesh,
  config: EvaluationConfig,
) -> Curves:
  """Return what the first k events are worth when they are removed and when they alone are left.

  `scores` (fp [N, M], higher = named earlier) are of the last M events of `table`; its targets are
  known. For each of them, for the latest events, and for 'random', the result has {drop, gain} by
  k, nats of log p(y): what removing the events costs, and what adding them to a history without its
  last M events brings; and minus_random, minus_recency (of `drop`), gain_minus_random and
  gain_minus_recency, paired by example.
  Examples with no more than max(DEPTHS) events among the last M are left out; {} when none is left;
  at most MOST are used.
  """
  m = next(iter(scores.values())).shape[1]
  n_events = np.minimum(table.end - table.log.offsets[table.user], m)
  exists = np.arange(m) >= m - n_events[:, None]
  usable = np.flatnonzero((exists.sum(1) > max(DEPTHS)) & (table.target >= 0))
  if not len(usable):
    return {}
  spaced = np.linspace(0, len(usable) - 1, min(len(usable), MOST)).astype(np.int64)
  usable = usable[spaced]
  table, exists = table.picked(usable), exists[usable]
  rng = np.random.default_rng(config.seed)
  ranked = {name: score[usable] for name, score in scores.items()}
  ranked[RECENCY] = np.broadcast_to(np.arange(m, dtype=float), exists.shape)
  ranked |= {f'draw {i}': rng.random(exists.shape) for i in range(DRAWS)}
  named = [
    highest(np.where(exists, score, -np.inf), k) for score in ranked.values() for k in DEPTHS
  ]
  variants = [np.zeros_like(exists), *named, exists, *(exists & ~chosen for chosen in named)]
  log_prob = _log_probs(rolegen, backbone, Deleted(table, np.stack(variants)), trie, mesh)
  deleted, inserted = log_prob.reshape(2, 1 + len(named), -1)
  shape = len(ranked), len(DEPTHS), -1
  drop = dict(zip(ranked, (deleted[0] - deleted[1:]).reshape(shape)))
  gain = dict(zip(ranked, (inserted[1:] - inserted[0]).reshape(shape)))
  return _intervals(drop, gain, [*scores, RECENCY], table.user, config)


def _log_probs(
  rolegen: RoleGen, backbone: dict, variants: Deleted, trie: Trie, mesh: Mesh
) -> np.ndarray:
  """Return log p(target) of every variant, fp32 [V * N]."""

  def batch(params: dict, trie: Trie, examples: Examples) -> tuple[jax.Array]:
    model = rolegen.bind('backbone', params)
    memory = model.encode(examples.history, model.items(trie))
    query_state = rolegen.query(model, memory, examples.timestamp)
    return (model.log_prob(query_state, examples.target, examples.history.item, trie),)

  fixed = (backbone, jax.device_put(trie, sharding.sharding(mesh)))
  (log_prob,) = over(rolegen, batch, fixed, variants, mesh, 'deletion curves')
  return log_prob


def _intervals(
  drop: dict[str, np.ndarray],
  gain: dict[str, np.ndarray],
  names: list[str],
  user_N: np.ndarray,
  config: EvaluationConfig,
) -> Curves:
  """Return means with intervals over users of drops and gains [depths, N] by who names events."""
  draws = [f'draw {i}' for i in range(DRAWS)]
  chance, gained = (np.mean([x[draw] for draw in draws], axis=0) for x in (drop, gain))

  def by_depth(values: np.ndarray) -> dict[int, Interval]:
    return {
      k: bootstrap(value, user_N, config.bootstrap, config.seed) for k, value in zip(DEPTHS, values)
    }

  curves = {
    name: dict(
      drop=by_depth(drop[name]),
      gain=by_depth(gain[name]),
      minus_random=by_depth(drop[name] - chance),
      minus_recency=by_depth(drop[name] - drop[RECENCY]),
      gain_minus_random=by_depth(gain[name] - gained),
      gain_minus_recency=by_depth(gain[name] - gain[RECENCY]),
    )
    for name in names
  }
  return curves | dict(random=dict(drop=by_depth(chance), gain=by_depth(gained)))
