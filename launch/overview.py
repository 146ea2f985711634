"""What `launch.status` reports about a run or a sweep, as data and as text."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

from launch import goodput
from launch.text import align_columns
from rolegen_jax import config as configs
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import storage

Status = dict[str, Any]


def describe(workdir: pathlib.Path, as_json: bool) -> str:
  """Return the current status of a run or a sweep; raise ConfigError for any other folder."""
  now = time.time()
  if (workdir / 'ledger.json').exists():
    status = sweep_status(workdir, now)
    return json.dumps(status, indent=2) if as_json else sweep_text(status)
  if (workdir / 'config.json').exists():
    status = run_status(workdir, now)
    return json.dumps(status, indent=2) if as_json else run_text(status)
  raise ConfigError(
    f'--workdir={workdir}: contains neither config.json nor ledger.json; '
    'must be the folder of a run or of a sweep'
  )


def run_status(workdir: pathlib.Path, now: float) -> Status:
  """Return the status of a run:

  stages       rows of stage, process, host, step, steps, state, step_s, age_s
  seconds      process -> kind -> seconds
  stragglers   one line per oddity
  report       whether it is written
  """
  config = configs.load(workdir / 'config.json')
  segments = goodput.read(workdir)
  report = _report_time(workdir)
  rows, stragglers = [], []
  for stage, by_process in goodput.latest(segments).items():
    done = (workdir / stage / 'DONE.json').exists()
    section = stage if stage in goodput.SUPERVISED_STAGES else goodput.LOOP_SECTION
    steps = getattr(config, section).steps
    rows += [_stage_row(segment, steps, done, now) for segment in by_process.values()]
    if not done:
      stragglers += goodput.stragglers(by_process, now)
  seconds = goodput.account(segments, report)
  return dict(stages=rows, seconds=seconds, stragglers=stragglers, report=report is not None)


def _report_time(workdir: pathlib.Path) -> tuple[float, float] | None:
  """Return (unix time of the report, seconds that it took), or None without a report."""
  path = workdir / 'report.json'
  if not path.exists():
    return None
  provenance = json.loads(path.read_text(encoding='utf-8')).get('provenance', {})
  return storage.changed_at(path), provenance.get('evaluation_wall_s', 0.0)


def _stage_row(segment: goodput.Segment, steps: int, done: bool, now: float) -> Status:
  return dict(
    stage=segment.stage,
    process=segment.process,
    host=segment.host,
    step=segment.n_steps,
    steps=steps,
    state='done' if done else 'stopped' if segment.exited else 'running',
    step_s=goodput.step_seconds(segment),
    age_s=round(now - segment.end, 1),
  )


def run_text(status: Status) -> str:
  """Return the tables of a run."""
  if not status['stages']:
    return 'no training stage has begun'
  header = ('stage', 'process', 'step', 'state', 'per step', 'last row')
  stages = align_columns([header, *map(_stage_cells, status['stages'])])
  hosts = {row['process']: row['host'] for row in status['stages']}
  rows = []
  for process, seconds in status['seconds'].items():
    total = sum(seconds.values())
    shares = [f'{100 * seconds[kind] / total:.1f}' for kind in goodput.KINDS]
    rows.append((f'{process} {hosts[process]}', *shares, f'{total:.0f}'))
  kinds = align_columns([('process', *goodput.KINDS, 'total, s'), *rows])
  stragglers = '\n'.join(status['stragglers']) or 'no stragglers'
  return '\n\n'.join([stages, f'time by kind, percent\n{kinds}', stragglers])


def _stage_cells(row: Status) -> tuple[str, ...]:
  return (
    row['stage'],
    f'{row["process"]} {row["host"]}',
    f'{row["step"]}/{row["steps"]}',
    row['state'],
    '-' if row['step_s'] is None else f'{row["step_s"]:.3f} s',
    f'{row["age_s"]:.0f} s ago',
  )


def sweep_status(workdir: pathlib.Path, now: float) -> Status:
  """Return {points: name -> {state, why, starts, wall_s, run}}.

  `run` is the run_status of a point that has begun and is not done, else None.
  """
  ledger = json.loads((workdir / 'ledger.json').read_text(encoding='utf-8'))
  points = {}
  for name, entry in ledger['points'].items():
    folder = workdir / 'points' / name
    point: Status = {key: entry[key] for key in ('state', 'why', 'starts', 'wall_s')}
    has_begun = entry['state'] != 'done' and (folder / 'config.json').exists()
    point['run'] = run_status(folder, now) if has_begun else None
    points[name] = point
  return dict(points=points)


def sweep_text(status: Status) -> str:
  """Return one line per point, then stragglers and the reasons of failures."""
  rows = [('point', 'state', 'starts', 'stage', 'step')]
  notes = []
  for name, point in status['points'].items():
    run = point['run']
    stage, step = '-', '-'
    if run and run['stages']:
      last = run['stages'][-1]
      stage, step = last['stage'], f'{last["step"]}/{last["steps"]}'
    rows.append((name, point['state'], str(point['starts']), stage, step))
    if run and point['state'] == 'running':
      notes += [f'{name}: {line}' for line in run['stragglers']]
    if point['state'] == 'failed':
      notes.append(f'{name}: {point["why"]}')
  return '\n'.join([align_columns(rows), *notes])
