"""Account for the time of a run, from the clocks that each host writes into its stage folders.

`rolegen_jax.training.metrics.Clock` writes them. The kinds of time, in seconds of one process from
its first row to its last:

  step         the device worked, or the host waited for it: the goodput
  data         the host waited for its batch
  compile      the first call of a stage's step
  restore      a stage's state was created or restored
  checkpoint   a checkpoint was taken, or awaited at the end of a stage
  lost         all of the above, for steps that a restart had to train again
  preparation  between stages of one process, before the end of the closed loop: data, semantic
               IDs, hindsight roles
  evaluation   the same after the closed loop, and at the end: predictions, baselines, the report
  down         between one process and the next that continued its work, including start-up
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

KINDS = (
  'step',
  'data',
  'compile',
  'restore',
  'checkpoint',
  'lost',
  'preparation',
  'evaluation',
  'down',
)
LOSABLE_KINDS = ('step', 'data', 'compile', 'checkpoint')
# Stages with a config section of the same name; all others are closed loops.
SUPERVISED_STAGES = ('warmup', 'kinds', 'align', 'reason')
LOOP_SECTION = 'loop_stage'
RECENT_STEPS = 20  # over which the time per step is taken
# A straggler waits this many times longer for data than the median, and this share of its step.
SLOW_DATA_FACTOR, SLOW_DATA_SHARE = 2.0, 0.1
# A process is silent after this many seconds, and after this many times its usual step.
SILENT_S, SILENT_STEPS = 60.0, 20.0


@dataclasses.dataclass
class Segment:
  """One process in one stage, from its entry to its last row."""

  stage: str
  process: int
  host: str
  pid: int
  begin: float  # unix time
  end: float
  start_step: int
  exited: bool = False  # it left the stage; otherwise it was killed there or is still in it
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # by kind
  steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # {step, at, KIND_s}

  @property
  def n_steps(self) -> int:
    """Steps of the stage that are done."""
    return self.steps[-1]['step'] + 1 if self.steps else self.start_step


ByProcess = dict[int, Segment]


def read(workdir: pathlib.Path) -> list[Segment]:
  """Return all segments of a run by time."""
  segments = []
  for path in [*workdir.glob('*/time.*.jsonl'), *workdir.glob('*/*/time.*.jsonl')]:
    segments += _read_clock(path, path.parent.relative_to(workdir).as_posix())
  return sorted(segments, key=lambda segment: (segment.begin, segment.stage, segment.process))


def _read_clock(path: pathlib.Path, stage: str) -> list[Segment]:
  """Return the segments of one file. Lines that are incomplete are skipped."""
  process = int(path.name.split('.')[1])
  segments: list[Segment] = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue  # still being written, or torn by a crash
    seconds = {key.removesuffix('_s'): value for key, value in row.items() if key.endswith('_s')}
    if 'start' in row:
      begin = row['at'] - sum(seconds.values())
      segment = Segment(stage, process, row['host'], row['pid'], begin, row['at'], row['start'])
      segments.append(segment)
    if not segments:
      continue  # the first row was torn
    segment = segments[-1]
    _add(segment.seconds, seconds)
    segment.end, segment.exited = row['at'], 'end' in row
    if 'step' in row:
      by_kind = {f'{kind}_s': value for kind, value in seconds.items()}
      segment.steps.append(dict(step=row['step'], at=row['at'], **by_kind))
  return segments


def account(
  segments: list[Segment], report: tuple[float, float] | None = None
) -> dict[int, dict[str, float]]:
  """Return process -> {kind: seconds}.

  `report` is (unix time of the report, seconds that it took), if there is one.
  """
  by_process: dict[int, list[Segment]] = {}
  for segment in segments:
    by_process.setdefault(segment.process, []).append(segment)
  return {process: _account(by_process[process], report) for process in sorted(by_process)}


def _account(segments: list[Segment], report: tuple[float, float] | None) -> dict[str, float]:
  """Return the seconds of one process by kind."""
  total = dict.fromkeys(KINDS, 0.0)
  for number, segment in enumerate(segments):
    _add(total, segment.seconds)
    for kind, seconds in _lost(segment, segments[number + 1 :]).items():
      total[kind] -= seconds
      total['lost'] += seconds
  for before, after in zip(segments, segments[1:], strict=False):
    same_process = (before.host, before.pid) == (after.host, after.pid)
    kind = _kind_after(before) if same_process else 'down'
    total[kind] += max(0.0, after.begin - before.end)
  last = segments[-1]
  if report and last.exited and _kind_after(last) == 'evaluation':
    written_at, seconds = report
    total['evaluation'] += max(0.0, min(written_at - last.end, seconds))
  return total


def _lost(segment: Segment, later: list[Segment]) -> dict[str, float]:
  """Return kind -> seconds of the steps that a later segment of the stage trained again."""
  lost: dict[str, float] = {}
  repeated_from = min((s.start_step for s in later if s.stage == segment.stage), default=None)
  if repeated_from is None:
    return lost
  for row in segment.steps:
    if row['step'] >= repeated_from:
      _add(lost, {kind: row.get(f'{kind}_s', 0.0) for kind in LOSABLE_KINDS})
  return lost


def _add(total: dict[str, float], seconds: Mapping[str, float]) -> None:
  for kind, value in seconds.items():
    total[kind] = total.get(kind, 0.0) + value


def _kind_after(segment: Segment) -> str:
  return 'preparation' if segment.stage in SUPERVISED_STAGES else 'evaluation'


def latest(segments: list[Segment]) -> dict[str, ByProcess]:
  """Return stage -> process -> its last segment, with the stages in the order they began."""
  by_stage: dict[str, ByProcess] = {}
  for segment in segments:
    by_stage.setdefault(segment.stage, {})[segment.process] = segment
  return {stage: dict(sorted(by_process.items())) for stage, by_process in by_stage.items()}


def step_seconds(segment: Segment, kind: str | None = None) -> float | None:
  """Return the median seconds of the recent steps, of one kind or of all kinds together.

  The first step, which compiles, is left out; None when there is no other.
  """
  recent = [row for row in segment.steps if 'compile_s' not in row][-RECENT_STEPS:]
  if not recent:
    return None
  if kind:
    return statistics.median(row.get(f'{kind}_s', 0.0) for row in recent)
  return statistics.median(
    sum(value for key, value in row.items() if key.endswith('_s')) for row in recent
  )


def stragglers(by_process: ByProcess, now: float) -> list[str]:
  """Return one line per oddity of a stage's processes.

  A process may be silent, behind the others, or make them wait for its data.
  """
  lines = []
  waits = {process: step_seconds(segment, 'data') or 0.0 for process, segment in by_process.items()}
  furthest = max(segment.n_steps for segment in by_process.values())
  for process, segment in by_process.items():
    name = f'{segment.stage}: process {process} ({segment.host})'
    step_s, silent_s = step_seconds(segment) or 0.0, now - segment.end
    is_silent = segment.steps and silent_s > max(SILENT_S, SILENT_STEPS * step_s)
    if not segment.exited and is_silent:
      lines.append(
        f'{name} is silent for {silent_s:.0f} s; its steps took {step_s:.2f} s: '
        'it has ended, or hangs'
      )
    elif not segment.exited and segment.n_steps < furthest - 1:
      lines.append(f'{name} is at step {segment.n_steps}, others are at {furthest}')
    wait, others = waits[process], [waits[other] for other in waits if other != process]
    if not others:
      continue
    median = statistics.median(others)
    if wait > SLOW_DATA_FACTOR * median and wait > SLOW_DATA_SHARE * step_s:
      lines.append(f'{name} waits {wait:.3f} s per step for data, the others {median:.3f} s')
  return lines
