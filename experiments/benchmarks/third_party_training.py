"""Training: RoleGen's backbone against Hugging Face T5 and cornac's TIGER on Amazon Beauty.

  pip install -r requirements-third-party.txt
  python -m experiments.benchmarks.third_party_training

Point `rates`: targets and sequences trained per second by full updates (batch, forward, backward,
Adam), each model at its fastest batch size, timed in turn. Point `race`: seconds of training until
our NDCG@10 on validation users is the best that a third party reached; there each model has its
smallest batch that is nearly as fast, since more updates teach more. All have the same semantic
IDs, as many parameters and the same threads. Needs the Beauty log (README.md).

Legend: B users, k items of a list.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

from experiments.benchmarks import beauty, harness
from experiments.benchmarks import third_party_models as models
from experiments.benchmarks.third_party_models import COLORS, LABELS, OURS
from rolegen_jax.evaluation.baselines import popular_items

# Batch sizes that are tried: rows of 32 items, and examples of a third party.
OUR_ROWS, EXAMPLES = (16, 32, 64, 128), (32, 64, 128, 256)
GROUP = 1024  # examples that are drawn at once where batches are of like length
TRIAL_UPDATES = 2
NEARLY = 0.85  # of the fastest rate
# Shares of the budget after which a model is evaluated.
OUR_MARKS = (1 / 60, 1 / 30, 1 / 15, 2 / 15, 1 / 4, 1 / 2)
THIRD_PARTY_MARKS = (1 / 4, 1 / 2, 3 / 4, 1)
CUTOFF = 10  # of NDCG
MARKERS = dict(rolegen='o', hf_t5='s', hf_t5_grouped='D', cornac='^')

ModelFns = dict[str, Callable[[int], object]]  # name -> the model of a batch size


def measure(
  store: harness.Store,
  *,
  repeats: int = 7,
  budget: float = 300.0,
  users: int = 1000,
  beams: int = 20,
  learning_rate: float = 1e-3,
) -> dict:
  """Measure the points rates and race.

  repeats: Timed rounds of the rates.
  budget: Seconds of training of each third party in the race; ours has half.
  users: Validation users of the race, drawn once.
  beams: Beams of every model when it is evaluated.
  learning_rate: AdamW learning rate of the third parties.
  """
  models.require_packages()
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  sequences = beauty.sequences()
  model_fns = make_model_fns(sequences, beauty.codes(), beauty.config(), learning_rate)
  settings = [beauty.config(), beauty.codes().tolist(), learning_rate]
  rates = store.point(
    'rates', [*settings, repeats], functools.partial(measure_rates, model_fns, repeats)
  )
  run_race = functools.partial(measure_race, model_fns, rates, sequences, budget, users, beams)
  store.point('race', [*settings, budget, users, beams], run_race)
  return dict(points=store.points)


def make_model_fns(
  sequences: beauty.Sequences, codes_IxL, config, learning_rate: float
) -> ModelFns:
  """Return the models as functions of their batch size."""
  data, settings = (sequences, codes_IxL), dict(learning_rate=learning_rate)

  def grouped(batch: int):
    cycle = max(1, GROUP // batch)
    return models.HuggingFace(*data, batch, cycle=cycle, **settings)

  return dict(
    rolegen=lambda batch: beauty.Ours(*data, config, batch),
    hf_t5=lambda batch: models.HuggingFace(*data, batch, **settings),
    hf_t5_grouped=grouped,
    cornac=lambda batch: models.Cornac(*data, batch, **settings),
  )


# Rates


def measure_rates(model_fns: ModelFns, repeats: int) -> dict:
  """Return the rates of all models at their fastest batch size, and ours over the others'."""
  fastest, tried = {}, {}
  for name, model_fn in model_fns.items():
    batches = OUR_ROWS if name == OURS else EXAMPLES
    if name == 'hf_t5_grouped':  # a round of it is long already
      batches = (fastest['hf_t5'].batch,)
    fastest[name], tried[name] = find_fastest(model_fn, batches)
  threads = len(os.sched_getaffinity(0))
  return compare_rates(fastest, repeats) | dict(tried_sequences_per_s=tried, threads=threads)


def find_fastest(model_fn: Callable[[int], object], batches: tuple[int, ...]) -> tuple:
  """Return the model that trains most sequences per second, and that rate of every batch size."""
  rates, best = {}, None
  for batch in batches:
    model = model_fn(batch)
    train_round(model)  # compiles
    started = time.perf_counter()
    sequences = sum(train_round(model)[0] for _ in range(TRIAL_UPDATES))
    rates[str(batch)] = sequences / (time.perf_counter() - started)
    if rates[str(batch)] == max(rates.values()):
      best = model
    print(f'batch {batch}: {rates[str(batch)]:.1f} sequences/s', file=sys.stderr, flush=True)
  return best, rates


def train_round(model) -> np.ndarray:
  """Run one cycle of updates; return its [sequences, targets]."""
  return np.sum([model.update() for _ in range(model.cycle)], axis=0)


def compare_rates(sides: dict, repeats: int) -> dict:
  """Return rates of models timed in turn, and the ratio of our medians over the others'."""
  work = {name: [] for name in sides}

  def run(name: str) -> None:
    work[name].append(train_round(sides[name]))

  calls = {name: functools.partial(run, name) for name in sides}
  times = harness.alternate(calls, repeats)
  measured = {}
  for name, model in sides.items():
    sequences, targets = np.array(work[name][-repeats:]).T
    measured[name] = dict(
      parameters=model.parameters,
      batch=model.batch,
      updates_per_round=model.cycle,
      compile_s=model.compile_s,
      round_s=harness.summary(times[name]),
      sequences_per_s=harness.ratio_summary(sequences, times[name]),
      targets_per_s=harness.ratio_summary(targets, times[name]),
    )
  ratios = {}
  for name in sides:
    if name != OURS:
      ratios[name] = {
        unit: measured[OURS][f'{unit}_per_s']['median'] / measured[name][f'{unit}_per_s']['median']
        for unit in ('targets', 'sequences')
      }
  return dict(sides=measured, ratios=ratios)


def nearly_fastest(rates: dict[str, float]) -> int:
  """Return the smallest batch size whose rate is at least NEARLY the best."""
  return min(int(batch) for batch, rate in rates.items() if rate >= NEARLY * max(rates.values()))


# Race


def measure_race(
  model_fns: ModelFns,
  rates: dict,
  sequences: beauty.Sequences,
  budget: float,
  users: int,
  beams: int,
) -> dict:
  """Return the curves of ours, the faster T5 and cornac, and when ours reached their best."""
  speed = {name: side['sequences_per_s']['median'] for name, side in rates['sides'].items()}
  tried = rates['tried_sequences_per_s'] | dict(
    hf_t5_grouped=rates['tried_sequences_per_s']['hf_t5']
  )
  names = (OURS, max(('hf_t5', 'hf_t5_grouped'), key=speed.__getitem__), 'cornac')
  batches = {name: nearly_fastest(tried[name]) for name in names}
  marks = {}
  for name in names:
    shares = OUR_MARKS if name == OURS else THIRD_PARTY_MARKS
    marks[name] = [budget * share for share in shares]
  n_users = len(sequences.offsets) - 1
  drawn = np.random.default_rng(0).choice(n_users, min(users, n_users), replace=False)
  rows = sequences.held_out('valid')[np.sort(drawn)]
  target = sequences.item[rows]
  racers = {name: model_fns[name](batches[name]) for name in names}
  curves = race(racers, marks, lambda model: score(model.rank(rows, beams), target))
  popular = popular_items(sequences.log, sequences.occasions)[:CUTOFF]
  return dict(
    users=len(rows),
    beams=beams,
    batches=batches,
    curves=curves,
    reached=first_to_reach(curves),
    popularity=score(np.tile(popular, (len(rows), 1)), target),
  )


def race(
  racers: dict, marks: dict[str, list[float]], evaluate: Callable[[object], dict]
) -> dict[str, list[dict]]:
  """Train every model to each of its marks and evaluate it there, with the clock stopped.

  The model with the least training goes next, so that a slow moment of the machine meets all.
  Compilation is no training. A point: train_s, updates, sequences, targets, loss, compile_s and
  what `evaluate` returns.
  """
  counts = ('train_s', 'updates', 'sequences', 'targets')
  progress = {name: dict.fromkeys(counts, 0) for name in racers}
  curves = {name: [] for name in racers}
  for mark, name in sorted((mark, name) for name in racers for mark in marks[name]):
    model, done = racers[name], progress[name]
    while done['train_s'] < mark:
      started = time.perf_counter()
      work = model.update()
      seconds = time.perf_counter() - started
      done['train_s'] += seconds if done['updates'] else seconds - model.compile_s
      done['updates'] += 1
      done['sequences'] += work.sequences
      done['targets'] += work.targets
    point = done | dict(loss=model.loss, compile_s=model.compile_s) | evaluate(model)
    curves[name].append(point)
    reached = f'{point["train_s"]:.0f} s, NDCG@10 {point["ndcg"]:.4f}'
    print(f'{name}: {reached}', file=sys.stderr, flush=True)
  return curves


def score(ranked_Bxk: np.ndarray, target_B: np.ndarray) -> dict:
  """Return the mean NDCG@10, its standard error over the users, and how many of them are hits."""
  is_hit = ranked_Bxk[:, :CUTOFF] == target_B[:, None]
  gain_B = np.where(is_hit.any(axis=1), 1.0 / np.log2(2.0 + is_hit.argmax(axis=1)), 0.0)
  error = float(gain_B.std() / np.sqrt(len(gain_B)))
  return dict(ndcg=float(gain_B.mean()), standard_error=error, hits=int((gain_B > 0).sum()))


def first_to_reach(curves: dict[str, list[dict]]) -> dict[str, dict]:
  """Return, per third party, its best NDCG@10 and our first training time at no less.

  Times are those of evaluations, so ours is at most what is reported. `ratio_with_compile` adds the
  compilation of our update. Where ours never got there, its time and the ratios are None.
  """
  reached = {}
  for name, curve in curves.items():
    if name == OURS:
      continue
    best = max(curve, key=lambda point: point['ndcg'])  # the first of equals
    result = dict(ndcg=best['ndcg'], their_s=best['train_s'], our_s=None)
    result |= dict(ratio=None, ratio_with_compile=None)
    ours = next((point for point in curves[OURS] if point['ndcg'] >= best['ndcg']), None)
    if ours:
      compiled_s = ours['train_s'] + ours['compile_s']
      ratios = dict(ratio=best['train_s'] / ours['train_s'])
      ratios['ratio_with_compile'] = best['train_s'] / compiled_s
      result |= dict(our_s=ours['train_s']) | ratios
    reached[name] = result
  return reached


# Results


def table(results: dict) -> str:
  """Return our rates over the third parties', and the times of the race."""
  rates, race_point = results['points']['rates'], results['points']['race']
  lines = [f'{"RoleGen over":<30}{"targets/s":>11}{"sequences/s":>13}{"time to their NDCG@10":>23}']
  for name, ratio in rates['ratios'].items():
    line = f'{LABELS[name]:<30}{ratio["targets"]:>10.1f}x{ratio["sequences"]:>12.1f}x'
    if reached := race_point['reached'].get(name):
      if reached['our_s'] is None:
        line += f'{"not reached":>23}'
      else:
        with_compile = f'{reached["ratio_with_compile"]:.1f}x with compilation'
        line += f'{reached["ratio"]:>22.1f}x, {with_compile}'
    lines.append(line)
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw trained targets and sequences per second, and NDCG@10 over training time."""
  figure, [[rates, curves]] = harness.panels(1, 2, (10.4, 3.4))
  _plot_rates(rates, results['points']['rates']['sides'])
  _plot_curves(curves, results['points']['race'])
  figure.savefig(figure_path, dpi=110)


def _plot_rates(panel, sides: dict) -> None:
  for offset, unit, alpha in ((-0.2, 'targets_per_s', 1.0), (0.2, 'sequences_per_s', 0.45)):
    for row, (name, side) in enumerate(sides.items()):
      median, (low, high) = side[unit]['median'], side[unit]['quartiles']
      error = [[median - low], [high - median]]
      style = dict(color=COLORS[name], alpha=alpha, xerr=error)
      panel.barh(row + offset, median, 0.38, **style)
      panel.text(1.08 * high, row + offset, f'{median:,.0f}', va='center', fontsize=8)
  panel.set_xscale('log')
  panel.set_xlim(right=4 * max(side['targets_per_s']['quartiles'][1] for side in sides.values()))
  panel.set_yticks(range(len(sides)), [LABELS[name] for name in sides])
  panel.invert_yaxis()
  panel.set_xlabel('per second of training; full color: targets, pale: sequences')
  panel.set_title('Full updates, 4.6 M parameters', loc='left', fontsize=10)


def _plot_curves(panel, point: dict) -> None:
  for name, curve in point['curves'].items():
    x, y, error = ([p[field] for p in curve] for field in ('train_s', 'ndcg', 'standard_error'))
    style = dict(color=COLORS[name], marker=MARKERS[name], markersize=4, capsize=2, linewidth=1.2)
    panel.errorbar(x, y, yerr=error, label=LABELS[name], **style)
  baseline = dict(color=harness.GRAY, linestyle='--', linewidth=1, label='popularity')
  panel.axhline(point['popularity']['ndcg'], **baseline)
  panel.set_xscale('log')
  panel.set_ylim(bottom=0)
  panel.set_xlabel('seconds of training, no compilation')
  title = f'NDCG@10, {point["users"]} validation users, one standard error'
  panel.set_title(title, loc='left', fontsize=10)
  panel.legend(frameon=False, fontsize=8)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=models.PACKAGES)
