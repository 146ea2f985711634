"""Odd flags: a command has the values that were asked for, or one line names the flag."""

import json
import os
import pathlib
import random
import subprocess
import sys

import mutate
import pytest

PATHS = ('workdir', 'output', 'prompts', 'answers', 'json', 'users')
# Command -> flags that it needs, and others with their kind.
COMMANDS = {
  'train': (['workdir'], dict(experiment='text', set='many', retrain='bool')),
  'evaluate': (['workdir'], dict(set='many', retrain='bool')),
  'recommend': (['workdir', 'output'], dict(users='path', set='many', top='1+', retrain='bool')),
  'annotate': (
    ['workdir'],
    dict(
      examples='0+', prompts='path', answers='path', output='path', endpoint='text', model='text'
    )
    | dict(concurrency='1+', retries='0+', timeout_s='1+', parameters='text', dry_run='bool'),
  ),
  'serve': (
    ['workdir'],
    dict(host='text', top='1+', max_batch='1+', max_queue='1+', reasoning='online|cached|off'),
  ),
  'simulate_ab': (['workdir'], dict(days='1+', seeds='1+', arms='list', slate='1+')),
  'export': (['workdir', 'output'], dict(what='model|adapters', retrain='bool')),
  'prepare_shards': (['output'], dict(experiment='text', set='many', shards='0+', workers='0+')),
  'bench': ([], dict(workdir='path', phases='list', items='1+', input='log|random', json='path')),
}
ODD_NUMBERS = ('', 'x', '1.5', '-1', '1e3', '0x1', 'None', '1,2', '--', 'nan', '1 2')
ODD_PATHS = ('gs://b/x', '~nobody_here/x', '$NOT_SET_HERE/x', 'C:\\x', '', 'a\nb', 'file:///x', ' ')
UNKNOWN = ('--wrokdir=x', '--set', '--x=1', '-', '--', '---workdir=x', 'workdir=x', '--no=1', 'x')


@pytest.fixture(scope='module')
def readers():
  """Return a function that has one process per command read flags."""
  processes = {}

  def read(command: str, argv: list[str]) -> dict:
    if command not in processes:
      here = pathlib.Path(__file__).parent
      processes[command] = subprocess.Popen(
        [sys.executable, here / 'flag_reader.py', f'rolegen_jax.cli.{command}'],
        env=os.environ | {'PYTHONPATH': str(here.parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
    process = processes[command]
    process.stdin.write(json.dumps(argv) + '\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())

  yield read
  for process in processes.values():
    process.stdin.close()
    process.wait(30)


def right_value(rng, kind: str):
  """A value of a flag, as its text and as it is read."""
  if kind == 'path':
    return ('a/b', 'a/b') if rng.random() < 0.7 else ('$HOME/x', f'{os.environ["HOME"]}/x')
  if kind in ('1+', '0+'):
    number = rng.choice((1, 7, 10))
    return str(number), number
  if kind == 'many':
    return ('loop.kl=0.5',) * 2
  if kind == 'bool':
    return rng.choice((('true', True), ('false', False), ('1', True)))
  if kind == 'list':
    return 'a,b', ['a', 'b']
  text = rng.choice(kind.split('|')) if '|' in kind else 'demo'
  return text, text


def wrong_value(rng, kind: str) -> str | None:
  """A text that such a flag must refuse; None = it takes any text."""
  if kind in ('1+', '0+'):
    return rng.choice((*ODD_NUMBERS, '0' if kind == '1+' else '-5'))
  if kind == 'path':
    return rng.choice(ODD_PATHS)
  if kind == 'bool':
    return rng.choice(('maybe', '2', 'TRUE?', ' '))
  return rng.choice(('', 'x', 'Model', 'log ')) if '|' in kind else None


@mutate.seeds(100)
def test_flags_are_read_as_asked_or_named(readers, request, seed):
  rng = random.Random(seed)
  command = rng.choice(sorted(COMMANDS))
  needed, others = COMMANDS[command]
  kinds = {name: 'path' for name in needed} | {
    name: others[name] for name in rng.sample(sorted(others), rng.randint(0, len(others)))
  }
  asked = {name: right_value(rng, kind) for name, kind in kinds.items()}
  texts, wrong = {name: text for name, (text, _) in asked.items()}, ''
  fault = rng.choice(('none', 'none', 'value', 'value', 'unknown', 'missing'))
  spoilt = [name for name, kind in kinds.items() if wrong_value(rng, kind) is not None]
  if fault == 'value' and spoilt:
    wrong = rng.choice(spoilt)
    texts[wrong] = wrong_value(rng, kinds[wrong])
    if texts[wrong] == '' and command == 'bench':  # means none there
      texts[wrong] = 'gs://b'
  argv = [f'{rng.choice(("--", "-"))}{name}={text}' for name, text in texts.items()]
  if fault == 'missing' and needed:
    wrong = rng.choice(needed)
    argv = [text for text in argv if f'{wrong}=' not in text]
  rng.shuffle(argv)
  if fault == 'unknown':
    wrong = rng.choice(UNKNOWN)
    argv.append(wrong)
  read = readers(command, argv)
  request.node.user_properties.append(('fuzz', 'refused' if read['code'] else 'read'))
  if wrong and wrong != '--':  # after which nothing is a flag
    assert read['code'] == 2, f'{argv} were taken'
    assert len(read['printed'].splitlines()) <= 1
    if fault == 'value':
      assert read['printed'].startswith(f'--{wrong}=')
      assert 'must be' in read['printed'] or 'should be one of' in read['printed']
    return
  assert read['code'] == 0 and not read['printed'], read['printed']
  for name, (_, value) in asked.items():
    found = read['values'][name]
    assert found == ([value] if kinds[name] == 'many' or is_list(command, name) else value), name


def is_list(command: str, name: str) -> bool:
  """Whether a flag takes several paths."""
  return command == 'simulate_ab' and name == 'workdir'
