"""What the targets render: golden files, real parsers, and messages for wrong flags.

After an intended change: `UPDATE_GOLDEN=1 python -m pytest tests/launch/test_targets.py`; then
read the diff.
"""

import dataclasses
import os
import pathlib
import subprocess

import pytest
import yaml

from launch import lint, xla_flags
from launch.job import Job, validate
from launch.targets import RENDERERS, gke_jobset
from launch.tpus import Slice
from rolegen_jax.config import ConfigError
from tests.launch.jobs import JOBS

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def render(name: str) -> tuple[Job, str]:
  job = validate(JOBS[name])
  return job, RENDERERS[job.target](job)


@pytest.mark.parametrize('name', JOBS)
def test_the_text_is_the_golden_file(name):
  text = render(name)[1]
  if os.environ.get('UPDATE_GOLDEN'):
    (GOLDEN / name).write_text(text, encoding='utf-8')
  assert text == (GOLDEN / name).read_text(encoding='utf-8')


@pytest.mark.parametrize('name', JOBS)
def test_real_parsers_accept_it(name):
  job, text = render(name)
  passed = list(lint.check(job.target, text))
  if name.endswith('yaml'):
    assert passed == ['YAML', 'jobset.json']
  else:
    assert passed[:2] == ['bash -n', 'shellcheck --shell=bash -']


def test_the_checks_find_errors():
  with pytest.raises(ConfigError, match='bash -n'):
    list(lint.check('slurm', 'if true; then'))
  with pytest.raises(ConfigError, match='SC2086'):
    list(lint.check('slurm', '#!/bin/bash\necho $x\n'))
  manifest = gke_jobset.manifest(validate(JOBS['gke_jobset.yaml']))
  manifest['spec']['failurePolicy']['maxRestart'] = 3
  with pytest.raises(ConfigError, match=r'\$.spec.failurePolicy: .*maxRestart'):
    list(lint.check('gke_jobset', yaml.safe_dump(manifest)))


def test_the_hardware_decides_the_number_of_processes():
  assert {name: render(name)[0].processes for name in JOBS} == {
    'local.sh': 2,
    'slurm_gpu.sh': 16,
    'slurm_cpu.sh': 4,
    'tpu_vm.sh': 4,
    'gke_jobset.yaml': 4,
  }


@pytest.mark.parametrize(
  ('name', 'topology', 'flags', 'hosts', 'chips_per_host'),
  [
    ('v4', '2x2x1', '--type=v4 --topology=2x2x1', 1, 4),
    ('v4', '2x2x2', '--type=v4 --topology=2x2x2', 2, 4),
    ('v5e', '1x1', '--accelerator-type=v5litepod-1', 1, 1),
    ('v5e', '2x2', '--accelerator-type=v5litepod-4', 1, 4),
    ('v5e', '2x4', '--accelerator-type=v5litepod-8', 1, 8),
    ('v5e', '4x4', '--accelerator-type=v5litepod-16', 4, 4),
    ('v5e', '16x16', '--accelerator-type=v5litepod-256', 64, 4),
    ('v6e', '2x4', '--accelerator-type=v6e-8', 1, 8),
    ('v6e', '4x8', '--accelerator-type=v6e-32', 8, 4),
    ('v5p', '8x16x16', '--type=v5p --topology=8x16x16', 512, 4),
    ('v5p', '4x8x12', '--type=v5p --topology=4x8x12', 96, 4),
  ],
)
def test_slices(name, topology, flags, hosts, chips_per_host):
  tpu_slice = Slice.of(name, topology)
  assert tpu_slice.gcloud_flags == flags
  assert (tpu_slice.hosts, tpu_slice.chips_per_host) == (hosts, chips_per_host)


@pytest.mark.parametrize(
  ('name', 'topology'),
  [
    ('v5e', '2x8'),
    ('v5e', '8x4'),
    ('v6e', '16x32'),
    ('v5p', '2x2x8'),
    ('v5p', '8x4x4'),
    ('v5p', '4x4x6'),
    ('v5p', '16x16x28'),
    ('v4', '4x4'),
    ('v4', '0x4x4'),
  ],
)
def test_slices_that_are_not_offered(name, topology):
  with pytest.raises(ConfigError, match=f'--topology={topology}: must be one of .* for {name}'):
    Slice.of(name, topology)


GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  *--format*) echo ACTIVE ;;
  *ssh*) cat > /dev/null ;;
esac
"""


def test_the_tpu_vm_script_runs_to_its_end_from_a_pipe(tmp_path):
  """ssh reads its standard input, which must not be the rest of the script."""
  gcloud, calls = tmp_path / 'gcloud', tmp_path / 'calls'
  gcloud.write_text(GCLOUD)
  gcloud.chmod(0o755)
  path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
  result = subprocess.run(
    ['bash', '-s'],
    input=render('tpu_vm.sh')[1],
    text=True,
    capture_output=True,
    env=os.environ | {'PATH': path, 'CALLS': str(calls), 'TMPDIR': str(tmp_path)},
    cwd=GOLDEN,
    check=False,
  )
  assert result.returncode == 0 and 'Started.' in result.stdout, result.stderr
  commands = [' '.join(line.split()[1:4]) for line in calls.read_text().splitlines()]
  assert commands == [
    'tpus queued-resources describe',
    'tpus queued-resources describe',
    'tpus tpu-vm ssh',
    'tpus tpu-vm scp',
    'tpus tpu-vm ssh',
    'tpus tpu-vm ssh',
  ]


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    (
      'local.sh',
      dict(workdir='gs://bucket/run'),
      '--workdir=gs://bucket/run: must be a folder that every host mounts',
    ),
    ('local.sh', dict(name='My Job'), '--name=My Job: must be lower-case'),
    ('local.sh', dict(set=('loop.worlds',)), 'section.field=value'),
    ('local.sh', dict(first_step_s=5), 'at least --watchdog_s=600'),
    ('slurm_gpu.sh', dict(time='1 day'), '--time=1 day: must be'),
    ('slurm_gpu.sh', dict(xla_flags=('fast',)), 'must be names among gpu_latency_hiding'),
    (
      'tpu_vm.sh',
      dict(accelerator='v9'),
      '--accelerator=v9: must be one of v4, v5e, v5p, v6e',
    ),
    (
      'tpu_vm.sh',
      dict(topology='4x4x4'),
      '--topology=4x4x4: must be one of 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16 for v5e',
    ),
    ('tpu_vm.sh', dict(zone=''), '--zone=: must be'),
    ('gke_jobset.yaml', dict(workdir='runs/x'), 'below --mount=/mnt/rolegen'),
    ('gke_jobset.yaml', dict(claim=''), '--claim=: must be a PersistentVolumeClaim'),
    ('gke_jobset.yaml', dict(image=''), 'docker build --target=tpu'),
  ],
)
def test_a_wrong_flag_says_what_is_right(name, change, message):
  with pytest.raises(ConfigError) as error:
    validate(dataclasses.replace(JOBS[name], **change))
  assert message in str(error.value)


def test_xla_flags_are_off_unless_named_and_keep_existing_ones():
  assert xla_flags.environment([], {'XLA_FLAGS': '--a'}) == {}
  names = ['gpu_latency_hiding', 'dump', 'tpu_latency_hiding']
  variables = xla_flags.environment(names, {'XLA_FLAGS': '--a'})
  words = variables['XLA_FLAGS'].split()
  assert words[0] == '--a' and len(words) == 3
  assert variables['LIBTPU_INIT_ARGS'].startswith('--xla_tpu')
  assert all(flag.reason and flag.source for flag in xla_flags.FLAGS.values())
