"""Start-up: processes are timed to their end, every command is found, and a start ends with its first step; the picture."""

import json

import pytest

from experiments.benchmarks import startup_parts, startup_plot
from rolegen_jax import commands
from tests import tiny

STAGE = 'backbone'  # the first that trains
SMALL = ('--experiment=demo', *(f'--set={a}' for a in (
    *(f'backbone.temporal.{size}' for size in tiny.SIZES), 'backbone.temporal.layers=1', 'world.users=200', 'world.items=64', 'world.categories=8',
    'semantic_ids.codes=8', 'backbone.context=16', 'reasoner.events=6', 'reasoner.role_events=4', 'warmup.batch=8', 'warmup.steps=100000', 'warmup.save_every=1')))


def test_a_process_is_timed_to_its_end_and_a_failure_says_why():
  found = startup_parts.process('python3', '-c', 'import time; time.sleep(0.2)')
  assert found['wall_s'] > 0.2 and 0 < found['cpu_s'] < found['wall_s']
  with pytest.raises(RuntimeError, match='ended with 3:\nno such thing'):
    startup_parts.process('python3', '-c', 'import sys; print("no such thing", file=sys.stderr); sys.exit(3)')


def test_every_command_is_found_and_has_help():
  names = startup_parts.commands()
  assert {'rolegen_jax.train', 'rolegen_jax.compile_check', 'launch.run', 'launch.sweep', 'experiments.benchmarks.growth'} <= set(names)
  assert not {'rolegen_jax.stages', 'experiments.demo', 'experiments.benchmarks.startup_parts'} & set(names)
  found = startup_parts.helps(['launch.status'], 1)
  assert len(found['launch.status']['wall_s']['seconds']) == 1


def test_imports_are_told_library_by_library():
  assert list(startup_parts.parts()) == list(startup_parts.LIBRARIES)


def test_a_second_start_continues_where_the_first_was_preempted(tmp_path):
  prepared, saved = tmp_path / 'prepared', []
  prepared.mkdir()
  rounds = startup_parts.starts(prepared, tmp_path / 'run', SMALL, 1, [], lambda r: saved.append(list(r)), STAGE)
  assert saved == [rounds] and set(rounds[0]) == {'first', 'second'}
  for side in rounds[0].values():
    assert side['total_s'] == pytest.approx(sum(s for kind, s in side.items() if kind != 'total_s')) and min(side.values()) >= 0
  rows = startup_parts._rows(tmp_path / 'run' / STAGE / 'time.0.jsonl')
  entered = [row['start'] for row in rows if 'start' in row]
  assert entered[0] == 0 < entered[1]  # it restored a checkpoint
  assert any((tmp_path / 'run' / 'compilation_cache').iterdir())
  # What is there is not done again.
  assert startup_parts.starts(prepared, tmp_path / 'run', SMALL, 1, rounds, pytest.fail, STAGE) == rounds


def test_a_start_that_ends_by_itself_is_an_error(tmp_path):
  with pytest.raises(RuntimeError, match='ended with 2, not preempted with 42:\n--set warmup.stps: no such field'):
    startup_parts.start(tmp_path, ('--experiment=demo', '--set=warmup.stps=3'))


def test_the_flags_of_the_starts_are_a_config():
  config = commands.experiment('demo', [flag.removeprefix('--set=') for flag in startup_parts.FLAGS[1:]])
  assert config.loop_stage.save_every == 1  # `start` ends a step where its metrics are flushed


def test_the_picture_is_drawn_from_what_is_there(tmp_path):
  summary = dict(median_s=0.5, quartiles_s=[0.4, 0.7], seconds=[0.4, 0.5, 0.7])
  sides = dict(wall_s=summary, cpu_s=summary)
  start = dict(total_s=15.0, before_s=5.0, restore_s=1.0, data_s=1.0, compile_s=7.0, step_s=1.0)
  starts = startup_parts.medians([dict(first=start, second=start | dict(total_s=9.0, compile_s=1.0))])
  assert starts['second_share'] == pytest.approx(0.6) and starts['second']['compile_s'] == 1.0
  found = dict(
      targets=startup_parts.TARGETS, imports=dict(nothing=sides, jax=sides, run=sides, parts=dict(numpy=summary, jax=summary)),
      help={'launch.run': sides}, starts=starts | dict(rounds=[1]))
  for part in ('imports', 'help', 'starts'):
    startup_plot.draw({name: found[name] for name in ('targets', part)}, tmp_path / f'{part}.png')
  startup_plot.draw(json.loads(json.dumps(found)), tmp_path / 'all.png')
  assert (tmp_path / 'all.png').read_bytes().startswith(b'\x89PNG')
  assert 'the second takes 60 % of the first' in startup_parts.table(found)
