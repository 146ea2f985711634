"""What the targets render: golden files, real parsers, and what a wrong flag says.

After a change that is meant: `UPDATE_GOLDEN=1 python -m pytest tests/launch/test_targets.py`, and read the diff.
"""

import dataclasses
import os
import pathlib

import pytest
import yaml

from launch import lint, xla_flags
from launch.job import Job, validate
from launch.run import RENDERERS
from launch.targets import gke_jobset
from launch.tpus import Slice
from rolegen_jax.config import ConfigError
from tests.launch.jobs import JOBS

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def rendered(name: str) -> tuple[Job, str]:
  job = validate(JOBS[name])
  return job, RENDERERS[job.target](job)


@pytest.mark.parametrize('name', JOBS)
def test_the_text_is_the_golden_file(name):
  text = rendered(name)[1]
  if os.environ.get('UPDATE_GOLDEN'):
    (GOLDEN / name).write_text(text, encoding='utf-8')
  assert text == (GOLDEN / name).read_text(encoding='utf-8')


@pytest.mark.parametrize('name', JOBS)
def test_real_parsers_accept_it(name):
  job, text = rendered(name)
  done = list(lint.check(job.target, text))
  assert done == (['YAML', 'jobset.json'] if name.endswith('yaml') else ['bash -n', 'shellcheck --shell=bash -'])


def test_the_checks_find_errors():
  with pytest.raises(ConfigError, match='bash -n'):
    list(lint.check('slurm', 'if true; then'))
  with pytest.raises(ConfigError, match='SC2086'):
    list(lint.check('slurm', '#!/bin/bash\necho $x\n'))
  manifest = gke_jobset.manifest(validate(JOBS['gke_jobset.yaml']))
  manifest['spec']['failurePolicy']['maxRestart'] = 3
  with pytest.raises(ConfigError, match=r'\$.spec.failurePolicy: .*maxRestart'):
    list(lint.check('gke_jobset', yaml.safe_dump(manifest)))


def test_processes_follow_the_hardware():
  assert {name: rendered(name)[0].processes for name in JOBS} == {
      'local.sh': 2, 'slurm_gpu.sh': 16, 'slurm_cpu.sh': 4, 'tpu_vm.sh': 4, 'gke_jobset.yaml': 4}


@pytest.mark.parametrize('name, topology, accelerator_type, hosts', [
    ('v4', '2x2x2', 'v4-16', 2), ('v5e', '2x4', 'v5litepod-8', 1), ('v5e', '16x16', 'v5litepod-256', 64),
    ('v5p', '8x16x16', 'v5p-4096', 512), ('v6e', '4x4', 'v6e-16', 4),
])
def test_slices(name, topology, accelerator_type, hosts):
  found = Slice.of(name, topology)
  assert (found.accelerator_type, found.hosts) == (accelerator_type, hosts)


@pytest.mark.parametrize('name, change, message', [
    ('local.sh', dict(workdir='gs://bucket/run'), '--workdir=gs://bucket/run: must be a folder that every host mounts'),
    ('local.sh', dict(name='My Job'), '--name=My Job: must be lower-case'),
    ('local.sh', dict(set=('loop.worlds',)), 'section.field=value'),
    ('local.sh', dict(first_step_s=5), 'at least --watchdog_s=600'),
    ('slurm_gpu.sh', dict(time='1 day'), '--time=1 day: must be'),
    ('slurm_gpu.sh', dict(xla_flags=('fast',)), 'must be some of gpu_latency_hiding'),
    ('tpu_vm.sh', dict(accelerator='v9'), '--accelerator=v9: must be one of v4, v5e, v5p, v6e'),
    ('tpu_vm.sh', dict(topology='4x4x4'), '--topology=4x4x4: must be 2 numbers of chips for v5e, e.g. 4x4'),
    ('tpu_vm.sh', dict(zone=''), '--zone=: must be'),
    ('gke_jobset.yaml', dict(workdir='runs/x'), 'below --mount=/mnt/rolegen'),
    ('gke_jobset.yaml', dict(claim=''), '--claim=: must be a PersistentVolumeClaim'),
])
def test_a_wrong_flag_says_what_is_right(name, change, message):
  with pytest.raises(ConfigError) as error:
    validate(dataclasses.replace(JOBS[name], **change))
  assert message in str(error.value)


def test_xla_flags_are_off_unless_named_and_keep_what_is_set():
  assert xla_flags.environment([], {'XLA_FLAGS': '--a'}) == {}
  found = xla_flags.environment(['gpu_latency_hiding', 'dump', 'tpu_latency_hiding'], {'XLA_FLAGS': '--a'})
  assert found['XLA_FLAGS'].split()[0] == '--a' and len(found['XLA_FLAGS'].split()) == 3
  assert found['LIBTPU_INIT_ARGS'].startswith('--xla_tpu')
  assert all(flag.reason and flag.source for flag in xla_flags.FLAGS.values())
