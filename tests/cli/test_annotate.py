"""The command `annotate` on a small run: by hand, and by itself with a server."""

import json
import os
import subprocess
import sys

import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import ROLE_NAMES
from tests.runs import SMALL, open_inputs
from tests.text.chat_server import completion, serving

FLAGS = ['--examples=5', '--answers=answers.jsonl', '--output=annotations.jsonl']


@pytest.fixture(scope='module')
def annotate(tmp_path_factory):
  """A function that calls the command on a prepared run, in the folder of that run."""
  folder = tmp_path_factory.mktemp('annotate')
  open_inputs(entry.experiment('demo', SMALL), folder / 'run')

  def call(*flags: str, key: str | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    environment.pop('OPENAI_API_KEY', None)
    return subprocess.run(
      [sys.executable, '-m', 'rolegen_jax', 'annotate', '--workdir=run', *flags],
      env=environment | ({'OPENAI_API_KEY': key} if key else {}),
      cwd=folder,
      capture_output=True,
      text=True,
      check=False,
    )

  return folder, call


def test_a_server_is_asked_and_its_answers_are_imported(annotate):
  folder, call = annotate

  def reply(request):
    if not allowed:
      return 401, {}, {'error': {'message': request.headers['Authorization']}}
    numbers = range(1, 1 + sum(line[:1].isdigit() for line in request.prompt.splitlines()))
    lines = [json.dumps(dict(event=number, role='EXPLORE')) for number in numbers]
    return completion('\n'.join(lines))

  allowed = []
  with serving(reply) as server:
    of_server = [*FLAGS, f'--endpoint={server.url}', '--model=m', '--concurrency=2']
    dry = call(*of_server, '--dry_run', '--price_in=1', '--price_out=2')
    assert dry.returncode == 0 and not server.requests, dry.stderr
    assert dry.stdout.startswith('5 prompts to ask, 0 answered before') and '\ncost ' in dry.stdout
    refused = call(*of_server, key='sk-secret')
    assert refused.returncode == entry.BAD_INPUT and not refused.stdout
    error = refused.stderr.splitlines()[-1]
    assert error.startswith(f'--endpoint={server.url} --model=m, prompt ') and 'sk-' not in error
    assert 'Bearer ***; the environment variable OPENAI_API_KEY must hold a key' in error
    assert len(server.requests) <= 2
    allowed.append(True)
    done = call(*of_server, key='sk-secret')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('asked now: 5 prompts in ')
  assert 'annotations kept, ' in done.stdout and done.stdout.endswith('-> annotations.jsonl\n')
  assert 'prompts: 5/5' in done.stderr
  written = (folder / 'annotations.jsonl').read_text()
  assert {json.loads(line)['role'] for line in written.splitlines()} == {'EXPLORE'}
  assert not any(b'sk-secret' in path.read_bytes() for path in folder.glob('*.jsonl*'))
  by_hand = call(*FLAGS)
  assert by_hand.returncode == 0 and by_hand.stdout in done.stdout
  assert (folder / 'annotations.jsonl').read_text() == written


def test_prompts_are_written_for_asking_by_hand(annotate):
  folder, call = annotate
  done = call('--examples=3', '--prompts=prompts.jsonl')
  assert (done.returncode, done.stdout) == (0, '3 prompts -> prompts.jsonl\n')
  rows = [json.loads(line) for line in (folder / 'prompts.jsonl').read_text().splitlines()]
  assert all(name in row['prompt'] for row in rows for name in ROLE_NAMES)
  assert all(f'\n{row["events"]}. ' in row['prompt'] for row in rows)
