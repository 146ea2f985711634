"""Deletion curves: how much less likely does the backbone find a conversion without the k events that somebody calls its cause?

Whoever names the right events lowers log p(y) more by taking them out than chance does (as for attributions of pixels: Samek et al.,
IEEE TNNLS 2017). The reasoner names them without knowing y. A conversion of the backbone, not of the user: see `reasoning/roles.py`.

Shapes: N cases, M last events, V variants of a case, B rows, n events.
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
from rolegen_jax.reasoning.predict import over
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import Trie

DEPTHS = (1, 2, 4)  # events taken out
DRAWS = 4  # random choices of a case, whose mean is chance
MOST = 1000  # cases, evenly drawn from all that can be asked


@dataclasses.dataclass(frozen=True)
class Deleted:
  """V variants of every case, one after the other: row v * N + i is case i without some of its last M events."""

  table: ExampleTable
  removed: np.ndarray  # bool [V, N, M]

  def __len__(self) -> int:
    return self.removed.shape[0] * len(self.table)

  def rows(self, index: np.ndarray, width: int) -> Examples:
    variant, example = np.divmod(index, len(self.table))
    examples = self.table.rows(example, width)
    removed = np.pad(self.removed[variant, example], ((0, 0), (width - self.removed.shape[2], 0)))
    # Those taken out become padding, which stands first; the others keep their order.
    order = np.argsort(~removed & (examples.history.segment > 0), axis=1, kind='stable')
    take = lambda a, none: np.take_along_axis(np.where(removed, none, a), order, axis=1)
    item, *rest = examples.history
    history = Trajectories(take(item, -1), *(take(a, 0) for a in rest))
    return examples._replace(
      history=history, excites=self.table.excitation.of(self.table.user[example], history.item)
    )


def highest(score_NxM: np.ndarray, k: int) -> np.ndarray:
  """bool [N, M]: the k events of each case with the highest scores; -inf where there is none."""
  chosen = np.argsort(-score_NxM, axis=1, kind='stable')[:, :k]
  marked = np.zeros(score_NxM.shape, bool)
  np.put_along_axis(marked, chosen, True, axis=1)
  return marked


def deletion_curves(
  rolegen: RoleGen,
  backbone,
  table: ExampleTable,
  scores: dict[str, np.ndarray],
  trie: Trie,
  mesh: Mesh,
  config: EvaluationConfig,
) -> dict[str, dict[str, dict[int, Interval]]]:
  """By name of `scores` (fp [N, M], higher = taken out earlier; last M events of `table`, whose targets are known), and 'random':
  what taking out the first k costs, in nats of log p(y), by k; {drop, minus_random}, the second paired by case.

  Examples with no more than max(DEPTHS) events among the last M are left out; {} when no case is left; at most MOST are asked.
  """
  m = next(iter(scores.values())).shape[1]
  real = np.arange(m) >= m - np.minimum(table.end - table.log.offsets[table.user], m)[:, None]
  usable = np.flatnonzero((real.sum(1) > max(DEPTHS)) & (table.target >= 0))
  if not len(usable):
    return {}
  usable = usable[np.linspace(0, len(usable) - 1, min(len(usable), MOST)).astype(np.int64)]
  table, real = table.picked(usable), real[usable]
  rng = np.random.default_rng(config.seed)
  ranked = {name: score[usable] for name, score in scores.items()} | {
    f'draw {i}': rng.random(real.shape) for i in range(DRAWS)
  }
  variants = [np.zeros_like(real)] + [
    highest(np.where(real, score, -np.inf), k) for score in ranked.values() for k in DEPTHS
  ]

  def batch(params, trie, number, examples):
    del number
    model = rolegen.bind('backbone', params)
    memory = model.encode(examples.history, trie.item_codes)
    return (
      model.log_prob(
        rolegen.query(model, memory, examples.timestamp),
        memory,
        examples.target[:, None],
        trie.item_codes,
      )[0][:, 0],
    )

  (log_prob,) = over(
    rolegen,
    batch,
    (backbone, jax.device_put(trie, sharding.sharding(mesh))),
    Deleted(table, np.stack(variants)),
    mesh,
    'deletion curves',
  )
  whole, *rest = log_prob.reshape(len(variants), -1)
  drop = dict(zip(ranked, (whole - np.array(rest)).reshape(len(ranked), len(DEPTHS), -1)))
  chance = np.mean([drop[f'draw {i}'] for i in range(DRAWS)], axis=0)
  interval = lambda x: {
    k: bootstrap(x[i], np.arange(len(table)), config.bootstrap, config.seed)
    for i, k in enumerate(DEPTHS)
  }
  curves = {
    name: dict(drop=interval(drop[name]), minus_random=interval(drop[name] - chance))
    for name in scores
  }
  return curves | dict(random=dict(drop=interval(chance)))
