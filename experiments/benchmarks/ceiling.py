"""How much the context simulator leaves to reasoning: the best possible hits against counting.

  python -m experiments.benchmarks.ceiling    # minutes a seed on one core

Nothing is trained. `bayes` ranks by what a history tells of a shopper to whoever knows the rules of
the simulator, `truth` knows the shopper's hidden traits too (docs/context_simulator.md). Counting
rules are the baselines of the report that train nothing, tuned as there, on validation. Targets are
those of dormant occasions of the test split. SIMULATED DATA.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile

import numpy as np

from experiments.benchmarks import harness
from rolegen_jax.cli import entry
from rolegen_jax.config import Config
from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import baselines, metrics
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.simulator import world
from rolegen_jax.simulator.context.inference import best_lists
from rolegen_jax.simulator.context.world import ContextWorld

KS = (1, 10, 50)
SLICE = 'dormant'
SYSTEMS = (
  'truth',
  'bayes',
  'counting',
  'item_transitions',
  'recency',
  'item_knn',
  'popularity',
)
COLORS = (harness.SKY, harness.BLUE, harness.VERMILION, harness.GRAY)  # by strength


def measure(
  store: harness.Store,
  *,
  experiment: str = 'demo',
  seeds: tuple[int, ...] = (0, 1, 2),
  strengths: tuple[float, ...] = (0.5, 1.0),
) -> dict:
  """Measure every seed and strength of the simulator.

  experiment: Whose data and settings of baselines are used, with simulator.kind=context.
  seeds: Seeds of the simulator.
  strengths: Values of simulator.strength.
  """
  for strength in strengths:
    for seed in seeds:
      fields = ['simulator.kind=context', f'simulator.seed={seed}']
      config = entry.experiment(experiment, [*fields, f'simulator.strength={strength}'])
      point = functools.partial(measure_log, config)
      store.point(f'strength {strength:g}, seed {seed}', [config], point)
  return dict(points=store.points)


def measure_log(config: Config) -> dict:
  """Return hit rates by system, in percent, and how many targets they are over."""
  simulated = world.simulate(config.simulator)
  assert isinstance(simulated.world, ContextWorld)
  with tempfile.TemporaryDirectory() as folder:
    run, inputs = prepare_inputs(open_run(config, folder))
    log, occasions = inputs.log, inputs.occasions
    rows = baselines.evaluation_rows(log, occasions, TEST)
    pairs = metrics.Pairs.of(occasions, rows)
    known = baselines.BaselineInputs(
      log,
      occasions,
      inputs.interest_shift,
      config,
      inputs.choices.kernel,
      inputs.bars_history,
      inputs.trending,
    )
    lists = {
      name: baseline(known, rows, max(KS)).items
      for name, baseline in baselines.BASELINES.items()
      if name in SYSTEMS
    }
  users = log.users.gather(occasions.user[rows]).to_numpy()
  times = occasions.timestamp[rows]
  best = best_lists(simulated.world, simulated.events, users, times, max(KS))
  # Lists of the simulator hold its item ids, those of the log indices of what occurs there.
  index = np.full(config.simulator.items, -2)
  index[log.items['item_id'].to_numpy()] = np.arange(len(log.items))
  lists |= {name: index[items] for name, items in best.items()}
  mine = pairs.slice(SLICE)
  hits = {
    name: [float(100 * metrics.hit(metrics.ranks(items, pairs)[mine], k).mean()) for k in KS]
    for name, items in lists.items()
  }
  return dict(targets=int(mine.sum()), hits=hits)


def best_counting(hits: dict[str, list[float]]) -> str:
  """Return the counting rule that hits most in the first ten."""
  return max((name for name in hits if name in baselines.BASELINES), key=lambda name: hits[name][1])


def table(results: dict) -> str:
  lines = [
    '| simulated log | targets | bayes, HI@1 / 10 / 50 | truth | best counting rule'
    ' | its hits | gap at 10 |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, point in results['points'].items():
    hits = point['hits']
    best = best_counting(hits)
    shown = {
      system: ' / '.join(f'{value:.1f}' for value in hits[system])
      for system in ('bayes', 'truth', best)
    }
    gap = hits['bayes'][1] - hits[best][1]
    lines.append(
      f'| {name} | {point["targets"]} | {shown["bayes"]} | {shown["truth"]} | {best}'
      f' | {shown[best]} | {gap:+.1f} |'
    )
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw HI@10 of every system, a point for each seed."""
  by_strength: dict[str, list[dict]] = {}
  for name, point in results['points'].items():
    by_strength.setdefault(name.split(',')[0], []).append(point['hits'])
  figure, grid = harness.panels(1, 1, (7.5, 3.2), grid='y')
  panel, places = grid[0][0], np.arange(len(SYSTEMS))
  for number, ((strength, hits), color) in enumerate(zip(by_strength.items(), COLORS)):
    for row, of_seed in enumerate(hits):
      at = places + 0.25 * (number - (len(by_strength) - 1) / 2)
      values = [of_seed[name][1] for name in SYSTEMS]
      panel.plot(at, values, 'o', color=color, ms=5, label=None if row else strength)
  panel.set_xticks(places, [name.replace('_', ' ') for name in SYSTEMS], fontsize=9)
  panel.set_ylim(bottom=0)
  title = 'HI@10 in %, dormant test targets of the SIMULATED context logs'
  panel.set_title(title, loc='left', fontsize=9)
  panel.legend(fontsize=8, frameon=False)
  figure.savefig(figure_path, dpi=100)


if __name__ == '__main__':
  harness.main(measure, plot, table)
