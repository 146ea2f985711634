"""Flags, experiments and exit codes, before any work starts."""

import json
import os
import subprocess
import sys

import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError, to_dict


def run_command(*command: str, cwd) -> subprocess.CompletedProcess:
  environment = os.environ | {'PYTHONPATH': os.getcwd(), 'HOME': str(cwd / 'home')}
  return subprocess.run(
    [sys.executable, '-m', *command],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    stdin=subprocess.DEVNULL,
  )


def refusal(*command: str, cwd) -> str:
  """The one line that the command ends with; it leaves nothing behind."""
  done = run_command(*command, cwd=cwd)
  assert (done.returncode, done.stdout) == (entry.BAD_INPUT, ''), done.stderr
  assert not list(cwd.iterdir())
  (line,) = done.stderr.splitlines()
  return line


@pytest.mark.parametrize(
  'command',
  [
    'rolegen_jax train --workdir=gs://b/runs/a',
    'rolegen_jax train --workdir=',
    'rolegen_jax train --workdir=~nobody_here/a',
    'rolegen_jax train --workdir=$NOT_SET_HERE/a',
    'rolegen_jax evaluate --workdir=s3://b/runs/a',
    'rolegen_jax recommend --workdir=hdfs://n/a --output=x',
    'rolegen_jax recommend --output=gs://b/x.parquet --workdir=a',
    'rolegen_jax recommend --users=http://h/users.txt --workdir=a --output=x',
    'rolegen_jax annotate --workdir=file:///a --prompts=x',
    'rolegen_jax annotate --prompts=gs://b/x --workdir=a',
    'rolegen_jax annotate --answers=gs://b/x --workdir=a --output=x',
    'rolegen_jax annotate --output=gs://b/x --workdir=a --answers=x',
    'rolegen_jax export --workdir=gs://b/a --output=x',
    'rolegen_jax export --output=gs://b/a --workdir=x',
    'rolegen_jax simulate_ab --workdir=C:\\runs',
    'rolegen_jax prepare_shards --output=gs://b/a',
    'rolegen_jax bench --workdir=gs://b/a',
    'rolegen_jax bench --json=gs://b/a --workdir=x',
    'rolegen_jax bench --compare=gs://b/a,x',
    'rolegen_jax compile_check --json=gs://b/a --topology=tpu:v5e:4x4',
    'rolegen_jax train --experiment=gs://b/exp.py --workdir=x',
    'launch.run --workdir=gs://b/a',
    'launch.run --workdir=gs://b/a --target=slurm',
    'launch.run --workdir=~/a --target=slurm',
    'launch.run --workdir=$HOME/a --target=tpu_vm --accelerator=v5e --topology=4x4',
    'launch.sweep --workdir=gs://b/a',
    'launch.sweep --workdir=~/a --target=slurm',
    'launch.status --workdir=gs://b/a',
    'launch.doctor --workdir=gs://b/a',
    'launch.host_entry --workdir=gs://b/a -- true',
  ],
)
def test_a_path_that_is_not_local_is_refused_in_every_flag(command, tmp_path):
  module, *flags = command.split()
  wrong = next(flag for flag in flags if flag.startswith('--'))
  line = refusal(module, *flags, cwd=tmp_path)
  flag, _, value = wrong.partition('=')
  assert line.startswith(f'{flag}={value.partition(",")[0]}') and 'must be' in line


@pytest.mark.parametrize(
  'command, message',
  [
    ('train', '--workdir=None: Flag --workdir must have a value'),
    ('train --workdr=x --workdir=x', "Unknown command line flag 'workdr'. Did you mean: workdir"),
    ('recommend --workdir=x --output=y --top=0', '--top=0: 0 is not a positive integer'),
    ('recommend --workdir=x --output=y --top=1e3', '--top=1e3:'),
    ('simulate_ab --workdir=x --days=0', '--days=0: 0 is not an integer in the range [1, 3650]'),
    ('simulate_ab --workdir=x --seeds=-1', '--seeds=-1:'),
    ('simulate_ab --workdir=', '--workdir=: must be a file system path'),
    (
      'simulate_ab --workdir=x --slate=ten',
      "--slate=ten: invalid literal for int() with base 10: 'ten'; must be a positive integer",
    ),
    (
      'train --workdir=x --retrain=2',
      "--retrain=2: ('Non-boolean argument to boolean flag', '2'); must be true or false",
    ),
    ('simulate_ab --workdir=x --slate=0', '--slate=0:'),
    ('compile_check --topology=tpu:v5e:4x4 --items=0', '--items=0:'),
    ('train --workdir=x y', "unexpected argument 'y'"),
    (
      'train --workdir=x --set=warmup.stps=3',
      '--set warmup.stps: no such field; the nearest is warmup.steps',
    ),
    ('train --workdir=x --set=evaluation.ks=()', 'evaluation.ks=(): must be'),
    ('train --workdir=x --set=data.path=gs://b', 'data.path=gs://b: must be a file system path'),
    ('annotate --workdir=x --answers=a --output=b --dry_run', '--dry_run: is of no use without'),
    ('annotate --workdir=x --prompts=a --endpoint=http://h --model=m', '--endpoint: asks for'),
    *(
      (f'annotate --workdir=x --answers=a --output=b --endpoint={flags}', message)
      for flags, message in {
        'h/v1 --model=m': '--endpoint=h/v1: must be http(s)://HOST',
        'http://h': '--endpoint: needs --model=NAME',
        'http://h --model=m --concurrency=0': '--concurrency=0: 0 is not an integer in the range',
        'http://h --model=m --parameters=[]': '--parameters=[]: must be a JSON object',
        'http://h --model=m --parameters={"n":': '--parameters={"n":: must be a JSON object',
        'http://h --model=m --key_variable=NOT_SET_HERE': '--key_variable=NOT_SET_HERE: is not set',
        'http://h --model=m --price_in=1': '--price_in=1.0: must be given together with the other',
        'http://h --model=m --price_in=nan --price_out=1': '--price_in=nan: must be a finite n',
      }.items()
    ),
  ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_two(command, message, tmp_path):
  assert refusal('rolegen_jax', *command.split(), cwd=tmp_path).startswith(message)


@pytest.mark.parametrize(
  'command',
  [
    'launch.sweep --grace_s=nan',
    'launch.status --interval_s=inf',
    'rolegen_jax serve --max_wait_ms=nan',
    'rolegen_jax loadtest --url=x --rps=nan',
    'rolegen_jax loadtest --url=x --timeout_s=inf',
  ],
)
def test_numbers_are_finite(command, tmp_path):
  *module, flag = command.split()
  line = refusal(*module, '--workdir=a', flag, cwd=tmp_path)
  assert line == f'{flag}: must be a finite number'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--set=loop.worlds=99'], 'loop.worlds=99: must be 2 to 16'),
    (['--experiment=contract'], '--experiment=contract: '),
    (["--run_flags='--nodes", '--target=slurm'], "--run_flags='--nodes: No closing quotation"),
  ],
)
def test_a_sweep_with_a_wrong_setting_starts_no_point(arguments, message, tmp_path):
  assert refusal('launch.sweep', '--workdir=a', *arguments, cwd=tmp_path).startswith(message)


def test_home_and_variables_are_expanded_in_flags(tmp_path):
  (tmp_path / 'home').mkdir()
  done = run_command('launch.doctor', '--workdir=~/$USER_OF_TEST', '--timeout_s=1', cwd=tmp_path)
  assert 'the variable $USER_OF_TEST is not set' in done.stderr
  done = run_command('launch.run', '--workdir=~/a', '--dry_run', cwd=tmp_path)
  assert f'--workdir={tmp_path}/home/a ' in done.stdout and '~' not in done.stdout
  done = run_command('launch.status', '--workdir=$HOME/a', cwd=tmp_path)
  assert done.stderr.startswith(f'--workdir={tmp_path}/home/a: contains neither')


@pytest.mark.parametrize(
  'edit, command, message',
  [
    ({}, 'rolegen_jax recommend --output=x --top=51', '--top=51: must be at most backbone.beam=50'),
    ({}, 'rolegen_jax simulate_ab --slate=51', '--slate=51: must be 1 to backbone.beam=50'),
    (
      {},
      'rolegen_jax recommend --output=x --set=backbone.beam=4',
      'backbone.beam=4: must be at least the largest of evaluation.ks=50',
    ),
    (dict(ks=[]), 'rolegen_jax evaluate', 'evaluation.ks=(): must be one or more numbers'),
    (dict(ks=3), 'rolegen_jax evaluate', '{path}: evaluation.ks=3: must be of type tuple of int'),
    (dict(batch='8'), 'launch.status', "{path}: evaluation.batch='8': must be of type int"),
  ],
)
def test_a_run_folder_whose_settings_are_wrong_is_left_alone(tmp_path, edit, command, message):
  values = to_dict(entry.experiment('demo', []))
  values['evaluation'] |= edit
  path = tmp_path / 'run' / 'config.json'
  path.parent.mkdir()
  path.write_text(json.dumps(values))
  done = run_command(*command.split(), f'--workdir={path.parent}', cwd=tmp_path)
  assert done.returncode == entry.BAD_INPUT and len(done.stderr.splitlines()) == 1, done.stderr
  assert done.stderr.startswith(message.format(path=path))
  assert list(tmp_path.rglob('*')) == [path.parent, path]


@pytest.mark.parametrize(
  'name, message',
  [
    ('dmo', r'must be one of .* \(the nearest is demo\), or the path'),
    ('Demo_LLM', r'\(the nearest is demo_llm\)'),
    ('fit_simulator', 'must be one of alibaba2014, '),
    ('benchmarks', 'must be one of alibaba2014, '),
    ('', 'must be one of alibaba2014, '),
    ('experiments', 'or the path of a file that ends in .py'),
    ('demo:', 'no argument after the colon; must be demo'),
    ('demo:foo', 'takes no argument; must be demo'),
    ('taobao_userbehavior_1k:foo', 'takes no argument'),
    ('pod:v9', 'must be one of v5e_16'),
  ],
)
def test_a_wrong_experiment_says_what_would_be_right(name, message):
  with pytest.raises(ConfigError, match=f'--experiment={name}: .*{message}') as error:
    entry.experiment(name, [])
  listed = str(error.value).replace(f'--experiment={name}', '')
  assert 'fit_' not in listed and 'benchmarks' not in listed


def test_an_unknown_field_names_the_nearest():
  with pytest.raises(ConfigError, match='no such field; the nearest is loop.worlds'):
    entry.experiment('demo', ['loop.wrlds=3'])


def test_an_experiment_may_be_a_file_anywhere(tmp_path, monkeypatch):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from rolegen_jax import config as c\n'
    'def get_config(arg):\n'
    '  return c.Config(name=f"mine_{arg}")\n'
  )
  assert entry.experiment(f'{path}:wide', ['seed=3']).name == 'mine_wide'
  monkeypatch.setenv('HOME', str(tmp_path))
  assert entry.experiment('~/mine.py:x', []).name == 'mine_x'
  with pytest.raises(ConfigError, match='there is no file .*absent.py'):
    entry.experiment(f'{tmp_path}/absent.py', [])


@pytest.mark.parametrize(
  'text, message',
  [
    ('x = 1\ndef get_config(:\n', 'line 2: SyntaxError: '),
    ('import no_such_module\n', 'line 1: ModuleNotFoundError: '),
    ('def get_config():\n  return {}["x"]\n', "line 2: KeyError: 'x'"),
    ('def get_config():\n  return {}\n', 'returned dict; must be a rolegen_jax.config.Config'),
    ('def other():\n  pass\n', r'has no get_config\(arg\)'),
    ('get_config = 3\n', r'has no get_config\(arg\)'),
    (
      'from rolegen_jax import config as c\ndef get_config():\n  return c.Config(seed="1")\n',
      "seed='1': must be of type int",
    ),
  ],
)
def test_a_faulty_experiment_is_one_line(tmp_path, text, message):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  with pytest.raises(ConfigError, match=message) as error:
    entry.experiment(str(path), [])
  assert '\n' not in str(error.value)
