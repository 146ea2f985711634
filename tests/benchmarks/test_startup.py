"""Start-up: processes are timed to their end, a start ends with its first step; the picture."""

import json

import pytest

from experiments.benchmarks import harness, startup
from rolegen_jax.cli import entry
from tests import tiny

STAGE = 'warmup'  # the first that trains
TINY = (
  *(f'backbone.temporal.{size}' for size in tiny.SIZES),
  'backbone.temporal.layers=1',
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'backbone.context=16',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'warmup.batch=8',
  'warmup.steps=100000',
  'warmup.save_every=1',
)


@pytest.mark.slow
def test_start_up_is_measured_and_drawn(tmp_path, monkeypatch):
  monkeypatch.setattr(startup, 'HELP', {'rolegen train': startup.HELP['rolegen train']})
  monkeypatch.setattr(startup, 'RUN', 'rolegen_jax.config')
  monkeypatch.setattr(startup, 'LIBRARIES', ('json', 'rolegen_jax.config'))
  settings = dict(repeats=1, rounds=1, stage=STAGE, fields=TINY)
  results = startup.measure(harness.Store(), **settings)
  results = json.loads(json.dumps(results))
  assert list(results['points']) == ['imports', 'help', 'start 0']
  assert list(results['points']['imports']['libraries']) == ['json', 'rolegen_jax.config']
  for side in ('first', 'second'):
    seconds = results['points']['start 0'][side]
    parts = [seconds[kind] for kind in startup.START_PARTS]
    assert seconds['total_s'] == pytest.approx(sum(parts)) and min(parts) >= 0
  startup.plot(results, tmp_path / 'startup.png')
  assert (tmp_path / 'startup.png').read_bytes().startswith(b'\x89PNG')
  assert 'rolegen train --help' in startup.table(results)


def test_a_process_is_timed_to_its_end_and_a_failure_says_why():
  times = startup.run_process('-c', 'import time; time.sleep(0.2)')
  assert times['wall_s'] > 0.2 and 0 < times['cpu_s'] < times['wall_s']
  code = 'import sys; print("no such thing", file=sys.stderr); sys.exit(3)'
  with pytest.raises(RuntimeError, match='ended with 3:\nno such thing'):
    startup.run_process('-c', code)


def test_a_start_that_ends_by_itself_is_an_error(tmp_path):
  message = 'ended with 2, not preempted with 42:\n--set warmup.stps: no such field'
  with pytest.raises(RuntimeError, match=message):
    startup.start(tmp_path, 'loop', ['warmup.stps=3'])


def test_the_fields_of_the_starts_are_a_config():
  config = entry.experiment('demo', list(startup.FIELDS))
  assert config.loop_stage.save_every == 1  # `start` reads an account that a save flushes
