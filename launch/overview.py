"""What `launch.status` says of a run or a sweep, as data and as text."""

from __future__ import annotations

import json
import pathlib
import time

from launch import goodput
from launch.text import aligned
from rolegen_jax.config import ConfigError


def run_status(workdir: pathlib.Path, now: float) -> dict:
  """{stages: rows of (stage, process, host, step, steps, state, step_s, age_s), seconds: process -> kind -> s, stragglers}."""
  config = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
  stretches = goodput.read(workdir)
  report = workdir / 'report.json'
  reported = None
  if report.exists():
    provenance = json.loads(report.read_text(encoding='utf-8')).get('provenance', {})
    reported = report.stat().st_mtime, provenance.get('evaluation_wall_s', 0.0)
  stages, odd = [], []
  for stage, by_process in goodput.latest(stretches).items():
    done = (workdir / stage / 'DONE.json').exists()
    for process, stretch in by_process.items():
      state = 'done' if done else 'left' if stretch.ended else 'running'
      stages.append(dict(
          stage=stage, process=process, host=stretch.host, step=stretch.last_step, steps=config[goodput.SECTION.get(stage, 'loop_stage')]['steps'],
          state=state, step_s=goodput.pace(stretch), age_s=round(now - stretch.end, 1),
      ))
    if not done:
      odd += goodput.stragglers(by_process, now)
  return dict(stages=stages, seconds=goodput.account(stretches, reported), stragglers=odd, report=reported is not None)


def run_text(status: dict) -> str:
  if not status['stages']:
    return 'no training stage has begun'
  pace = lambda row: '-' if row['step_s'] is None else f'{row["step_s"]:.3f} s'
  rows = [
      (row['stage'], f'{row["process"]} {row["host"]}', f'{row["step"]}/{row["steps"]}', row['state'], pace(row), f'{row["age_s"]:.0f} s ago')
      for row in status['stages']
  ]
  parts = [aligned([('stage', 'process', 'step', 'state', 'per step', 'last sign'), *rows])]
  hosts = {row['process']: row['host'] for row in status['stages']}
  rows = []
  for process, seconds in status['seconds'].items():
    total = sum(seconds.values())
    rows.append((f'{process} {hosts[process]}', *(f'{100 * seconds[kind] / total:.1f}' for kind in goodput.KINDS), f'{total:.0f}'))
  parts.append('time by kind, per cent\n' + aligned([('process', *goodput.KINDS, 'all, s'), *rows]))
  parts.append('\n'.join(status['stragglers']) or 'no stragglers')
  return '\n\n'.join(parts)


def sweep_status(workdir: pathlib.Path, now: float) -> dict:
  """{points: name -> {state, why, starts, wall_s, run: run_status of one that has begun and is not done}}."""
  points = json.loads((workdir / 'ledger.json').read_text(encoding='utf-8'))['points']
  out = {}
  for name, point in points.items():
    folder = workdir / 'points' / name
    begun = point['state'] != 'done' and (folder / 'config.json').exists()
    out[name] = {key: point[key] for key in ('state', 'why', 'starts', 'wall_s')} | dict(run=run_status(folder, now) if begun else None)
  return dict(points=out)


def sweep_text(status: dict) -> str:
  rows, odd = [('point', 'state', 'starts', 'stage', 'step')], []
  for name, point in status['points'].items():
    at = point['run']['stages'][-1] if point['run'] and point['run']['stages'] else None
    rows.append((name, point['state'], str(point['starts']), at['stage'] if at else '-', f'{at["step"]}/{at["steps"]}' if at else '-'))
    odd += [f'{name}: {line}' for line in (point['run']['stragglers'] if point['run'] and point['state'] == 'running' else [])]
    odd += [f'{name}: {point["why"]}'] if point['state'] == 'failed' else []
  return '\n'.join([aligned(rows), *odd])


def look(workdir: pathlib.Path, as_json: bool) -> str:
  """What there is to say now. Raises ConfigError when the folder is neither a run's nor a sweep's."""
  now = time.time()
  if (workdir / 'ledger.json').exists():
    status, text = sweep_status(workdir, now), sweep_text
  elif (workdir / 'config.json').exists():
    status, text = run_status(workdir, now), run_text
  else:
    raise ConfigError(f'--workdir={workdir}: no config.json and no ledger.json there; must be the folder of a run or of a sweep')
  return json.dumps(status, indent=2) if as_json else text(status)
