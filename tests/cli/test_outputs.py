"""Commands do not write over the files that they read."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  'command, read',
  [('recommend', '--users'), ('annotate', '--answers')],
  ids=['recommend', 'annotate'],
)
def test_an_output_is_no_input(tmp_path, command, read):
  given = tmp_path / 'given'
  given.write_text('hours of work')
  flags = [
    f'--workdir={tmp_path}',
    f'{read}={given}',
    f'--output={tmp_path}/../{tmp_path.name}/given',
  ]
  done = subprocess.run(
    [sys.executable, '-m', 'rolegen_jax', command, *flags],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and f'is the file of {read}; must be another' in done.stderr
  assert given.read_text() == 'hours of work'
