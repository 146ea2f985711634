"""Where the time of a run went, from the clocks that each host keeps in its stage folders (`rolegen_jax.training.metrics.Clock`).

The kinds, in seconds of one process from its first row to its last:

  step         the device worked, or the host waited for it: the goodput
  data         the host waited for its batch
  compile      the first call of a stage's step
  restore      a stage's state was born or restored
  checkpoint   a checkpoint was taken, or waited for at the end of a stage
  lost         all of the above, of steps that a restart had to train again
  preparation  between stages of one process, before the closed loop is through: data, semantic IDs, hindsight roles
  evaluation   the same, and at the end, from then on: predictions, floors, the report
  down         between one process and the next that continued its work, starting up included
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import statistics

KINDS = ('step', 'data', 'compile', 'restore', 'checkpoint', 'lost', 'preparation', 'evaluation', 'down')
SECTION = {'backbone': 'warmup', 'align': 'align', 'reason': 'reason'}  # of the config; all other stages are closed loops
RECENT = 20  # steps that a rate is taken over
SLOW_DATA, SLOW_SHARE = 2.0, 0.1  # a straggler waits so many times longer for data than the median, and for so much of a step
SILENT_S, SILENT_STEPS = 60.0, 20.0  # a process is silent after this many seconds, and this many times its usual step


@dataclasses.dataclass
class Stretch:
  """One process in one stage, from its entry to its last row."""

  stage: str
  process: int
  host: str
  pid: int
  begin: float  # unix time
  end: float
  start_step: int
  ended: bool = False  # it left the stage, rather than was killed there or is still in it
  spent: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # kind -> s
  steps: list[dict] = dataclasses.field(default_factory=list)  # {step, at, kind: s}

  @property
  def last_step(self) -> int:
    """Steps that are done."""
    return self.steps[-1]['step'] + 1 if self.steps else self.start_step


def read(workdir: pathlib.Path) -> list[Stretch]:
  """All stretches of a run, by time. A line that is being written, or was torn by a crash, is left out."""
  found = []
  for path in sorted([*workdir.glob('*/time.*.jsonl'), *workdir.glob('*/*/time.*.jsonl')]):
    stage, process = path.parent.relative_to(workdir).as_posix(), int(path.name.split('.')[1])
    now = None
    for line in path.read_text(encoding='utf-8').splitlines():
      try:
        row = json.loads(line)
      except ValueError:
        continue
      spent = {key[:-2]: value for key, value in row.items() if key.endswith('_s')}
      if 'start' in row:
        now = Stretch(stage, process, row['host'], row['pid'], row['at'] - sum(spent.values()), row['at'], row['start'])
        found.append(now)
      if now is None:
        continue  # the first row was torn
      now.spent.update(spent)
      now.end, now.ended = row['at'], 'end' in row
      if 'step' in row:
        now.steps.append(dict(step=row['step'], at=row['at'], **{f'{kind}_s': s for kind, s in spent.items()}))
  return sorted(found, key=lambda s: s.begin)


def account(stretches: list[Stretch], reported: tuple[float, float] | None = None) -> dict[int, dict[str, float]]:
  """process -> {kind: seconds}. `reported` = (unix time of the report, seconds that it took), where there is one."""
  out = {}
  for process in sorted({s.process for s in stretches}):
    mine = [s for s in stretches if s.process == process]
    total = collections.Counter({kind: 0.0 for kind in KINDS})
    for number, stretch in enumerate(mine):
      total.update(stretch.spent)
      again = min((s.start_step for s in mine[number + 1:] if s.stage == stretch.stage), default=None)
      for row in stretch.steps:
        if again is not None and row['step'] >= again:
          for kind in ('step', 'data', 'compile', 'checkpoint'):
            total[kind] -= row.get(f'{kind}_s', 0.0)
            total['lost'] += row.get(f'{kind}_s', 0.0)
    for before, after in zip(mine, mine[1:]):
      same = (before.host, before.pid) == (after.host, after.pid)
      total[_between(before) if same else 'down'] += max(0.0, after.begin - before.end)
    if reported and mine[-1].ended and _between(mine[-1]) == 'evaluation':
      total['evaluation'] += max(0.0, min(reported[0] - mine[-1].end, reported[1]))
    out[process] = dict(total)
  return out


def _between(stretch: Stretch) -> str:
  return 'preparation' if stretch.stage in SECTION else 'evaluation'


def latest(stretches: list[Stretch]) -> dict[str, dict[int, Stretch]]:
  """stage -> process -> the last stretch there, stages in the order in which they began."""
  out: dict[str, dict[int, Stretch]] = {}
  for stretch in stretches:
    out.setdefault(stretch.stage, {})[stretch.process] = stretch
  return {stage: dict(sorted(by_process.items())) for stage, by_process in out.items()}


def pace(stretch: Stretch, kind: str | None = None) -> float | None:
  """Median seconds of the recent steps, of one kind or in all; the first step, which compiles, is left out."""
  recent = [row for row in stretch.steps if 'compile_s' not in row][-RECENT:]
  took = lambda row: row.get(f'{kind}_s', 0.0) if kind else sum(value for key, value in row.items() if key.endswith('_s'))
  return statistics.median(map(took, recent)) if recent else None


def stragglers(by_process: dict[int, Stretch], now: float) -> list[str]:
  """What is odd about processes of a stage: silent ones, ones behind, ones that make the others wait for their data."""
  out = []
  waits = {process: pace(stretch, 'data') or 0.0 for process, stretch in by_process.items()}
  furthest = max(stretch.last_step for stretch in by_process.values())
  for process, stretch in by_process.items():
    who, step_s = f'{stretch.stage}: process {process} ({stretch.host})', pace(stretch) or 0.0
    silent = now - stretch.end
    if not stretch.ended and stretch.steps and silent > max(SILENT_S, SILENT_STEPS * step_s):
      out.append(f'{who} is silent for {silent:.0f} s; its steps took {step_s:.2f} s: it is gone, or hangs')
    elif stretch.last_step < furthest - 1 and not stretch.ended:
      out.append(f'{who} is at step {stretch.last_step}, others are at {furthest}')
    others = [wait for other, wait in waits.items() if other != process]
    if others and waits[process] > SLOW_DATA * statistics.median(others) and waits[process] > SLOW_SHARE * step_s:
      out.append(f'{who} waits {waits[process]:.3f} s a step for data, the others {statistics.median(others):.3f} s')
  return out
