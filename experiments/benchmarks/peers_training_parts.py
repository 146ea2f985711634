"""What `peers_training` measures: rates of full updates, sides in turn, and the time that each needs to a validation NDCG@10.

Sides are those of `peers_training_sides`: update() -> Work, rank(log rows, beams) -> items, save and load, parameters, batch,
cycle (updates that are one representative round) and compile_s.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

from experiments.benchmarks import measure
from rolegen_jax.data.files import write_json

OURS = 'rolegen'
CUTOFF = 10  # of NDCG
NEARLY = 0.85  # of the fastest rate


# Rates


def fastest(make: Callable[[int], object], batches: list[int], updates: int = 2) -> tuple[object, dict]:
  """The side of the batch size that trains most sequences a second, and that rate of every size. One cycle warms up."""
  rates, best = {}, None
  for batch in batches:
    side = make(batch)
    _round(side)
    started, work = time.perf_counter(), [_round(side) for _ in range(updates)]
    rates[batch] = sum(w[0] for w in work) / (time.perf_counter() - started)
    if rates[batch] == max(rates.values()):
      best = side
    print(f'{batch} a batch: {rates[batch]:.1f} sequences a second', file=sys.stderr, flush=True)
  return best, rates


def nearly_fastest(rates: dict) -> int:
  """The smallest batch size whose rate is at least NEARLY the best."""
  return min(int(batch) for batch, rate in rates.items() if rate >= NEARLY * max(rates.values()))


def _round(side) -> np.ndarray:
  """One cycle of updates; what it trained on, [sequences, targets]."""
  return np.sum([side.update() for _ in range(side.cycle)], axis=0)


def throughput(sides: dict, repeats: int) -> dict:
  """Rates of all sides, timed in turn: medians over rounds with quartiles, and of OURS over every other side's."""
  work = {name: [] for name in sides}
  calls = {name: lambda name=name, side=side: work[name].append(_round(side)) for name, side in sides.items()}
  times = measure.alternate(calls, repeats)
  found = {}
  for name, side in sides.items():
    done, seconds = np.array(work[name][-repeats:]), np.array(times[name]['seconds'])
    found[name] = dict(
        parameters=side.parameters, batch=side.batch, updates_a_call=side.cycle, compile_s=side.compile_s, **times[name],
        sequences=done[:, 0].tolist(), targets=done[:, 1].tolist(),
        sequences_per_s=_spread(done[:, 0] / seconds), targets_per_s=_spread(done[:, 1] / seconds),
    )
  over = lambda unit, name: found[OURS][unit]['median'] / found[name][unit]['median']
  ratios = {name: dict(targets=over('targets_per_s', name), sequences=over('sequences_per_s', name)) for name in sides if name != OURS}
  return dict(sides=found, ratios=ratios)


def _spread(values: np.ndarray) -> dict:
  return dict(median=float(np.median(values)), quartiles=[float(q) for q in np.quantile(values, (0.25, 0.75))])


# Time to a quality


def ndcg(ranked_BxK: np.ndarray, target_B: np.ndarray) -> np.ndarray:
  """NDCG@10 of every user [B]: 1 / log2(1 + rank) of the target, 0 when it is not among the first ten."""
  hit = ranked_BxK[:, :CUTOFF] == target_B[:, None]
  return np.where(hit.any(axis=1), 1.0 / np.log2(2.0 + hit.argmax(axis=1)), 0.0)


def scored(ranked_BxK: np.ndarray, target_B: np.ndarray) -> dict:
  """Mean NDCG@10, its standard error over the users, and how many of them are hits."""
  value = ndcg(ranked_BxK, target_B)
  return dict(ndcg=float(value.mean()), standard_error=float(value.std() / np.sqrt(len(value))), hits=int((value > 0).sum()))


def race(
    model_fns: dict[str, Callable], marks: dict[str, list[float]], rows_B: np.ndarray, target_B: np.ndarray, beams: int,
    folder: pathlib.Path, key: str, leave: Callable[[], bool] = lambda: False,
) -> dict[str, list[dict]] | None:
  """Trains every side to each of its `marks` (seconds of training) and evaluates it there, with the clock stopped.

  The side with the least training goes next, so that a machine's bad moments meet all. After every mark the side and its curve
  are saved in `folder`, and `leave()` is asked; the same call with the same `key` continues there. Returns the curves, or None
  when it was left before the last mark.
  A point: train_s, updates, sequences, targets, loss, ndcg, standard_error, hits, evaluate_s.
  """
  racers = {name: _Racer(name, model_fns[name], folder, key) for name in model_fns}
  ahead = lambda name: next((m for m in marks[name] if m > racers[name].mark), None)
  going = lambda: [name for name in racers if ahead(name) is not None]
  while names := going():
    name = min(names, key=ahead)
    point = racers[name].run(ahead(name), rows_B, target_B, beams)
    print(f'{name}: {point["train_s"]:.0f} s, {point["targets"]} targets, NDCG@10 {point["ndcg"]:.4f}', file=sys.stderr, flush=True)
    if going() and leave():
      return None
  return {name: racer.curve for name, racer in racers.items()}


class _Racer:
  """A side made when it is first needed, its curve so far and its files."""

  def __init__(self, name: str, make: Callable, folder: pathlib.Path, key: str):
    self.name, self.make, self.folder, self.key, self.side, self.curve = name, make, folder, key, None, []
    self.record = folder / f'{name}.json'
    if self.record.exists():
      held = json.loads(self.record.read_text())
      self.curve = held['curve'] if held['key'] == key else []

  @property
  def mark(self) -> float:
    return self.curve[-1]['mark'] if self.curve else 0.0

  def _file(self) -> pathlib.Path:
    return self.folder / f'{self.name}.{len(self.curve)}.state'

  def run(self, mark: float, rows_B, target_B, beams: int) -> dict:
    if self.side is None:
      self.side = self.make()
      if self.curve:
        self.side.load(self._file())
    last = self.curve[-1] if self.curve else dict(train_s=0.0, updates=0, sequences=0, targets=0)
    point = {unit: last[unit] for unit in ('train_s', 'updates', 'sequences', 'targets')} | dict(mark=mark)
    while point['train_s'] < mark:
      started = time.perf_counter()
      work = self.side.update()
      point['train_s'] += time.perf_counter() - started
      point['updates'] += 1
      point['sequences'] += work.sequences
      point['targets'] += work.targets
    started = time.perf_counter()
    ranked = self.side.rank(rows_B, beams)
    point |= dict(loss=self.side.loss, evaluate_s=time.perf_counter() - started, compile_s=self.side.compile_s) | scored(ranked, target_B)
    before = self._file()
    self.curve.append(point)
    self.folder.mkdir(parents=True, exist_ok=True)
    self.side.save(self._file())  # a file of its own: until the record names it, the one before counts
    write_json(dict(key=self.key, curve=self.curve), self.record)
    before.unlink(missing_ok=True)
    return point


def reach(curves: dict[str, list[dict]]) -> dict[str, dict]:
  """By peer: its best NDCG@10 and the first training time at it; OURS' first training time at no less, and the ratio.

  Times are those of evaluations, so ours is at most what is said. `ratio_with_compile` adds the compilation of our step to our
  time. Where ours never got there, its time and the ratios are None.
  """
  found = {}
  for name, curve in curves.items():
    if name == OURS:
      continue
    best = max(point['ndcg'] for point in curve)
    peer_s = next(point['train_s'] for point in curve if point['ndcg'] == best)
    point = next((p for p in curves[OURS] if p['ndcg'] >= best), None)
    ours_s = point and point['train_s']
    found[name] = dict(
        ndcg=best, peer_s=peer_s, ours_s=ours_s, ratio=point and peer_s / ours_s,
        ratio_with_compile=point and peer_s / (ours_s + point['compile_s']),
    )
  return found
