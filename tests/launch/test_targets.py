"""What the targets render: golden files, real parsers, and messages for wrong flags.

After an intended change: `UPDATE_GOLDEN=1 python -m pytest tests/launch/test_targets.py`; then
read the diff.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from launch import lint, xla_flags
from launch.job import Job, check_mesh, validate
from launch.targets import RENDERERS, gke_jobset
from launch.tpus import Slice
from rolegen_jax.config import ConfigError, MeshConfig
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
    'gke_jobset_bucket.yaml': 4,
    'tpu_vm_bucket.sh': 4,
    'gke_jobset_slices.yaml': 4 * 64,
    'gke_jobset_a3_high.yaml': 8,
    'gke_jobset_a3_mega.yaml': 8,
    'gke_jobset_a3_ultra.yaml': 8,
    'gke_jobset_a4.yaml': 8,
  }


@pytest.mark.parametrize('name', [name for name in JOBS if name.startswith('gke')])
def test_what_a_container_of_a_jobset_mounts_is_there(name):
  """No schema sees it: names of volumes, and devices for a daemon that exists."""
  template = yaml.safe_load(render(name)[1])['spec']['replicatedJobs'][0]['template']['spec'][
    'template'
  ]
  pod, annotations = template['spec'], template.get('metadata', {}).get('annotations', {})
  containers = pod['containers'] + pod.get('initContainers', [])
  volumes = [volume['name'] for volume in pod['volumes']]
  mounted = {mount['name'] for container in containers for mount in container['volumeMounts']}
  assert sorted(volumes) == sorted(mounted)
  for container in containers:
    paths = [mount['mountPath'] for mount in container['volumeMounts']]
    assert len(paths) == len(set(paths))
  devices = [key for key in annotations if key.startswith('devices.gke.io/container.')]
  assert [f'devices.gke.io/container.{c["name"]}' for c in pod.get('initContainers', [])] == devices
  for value in filter(None, map(annotations.get, [*devices, 'networking.gke.io/interfaces'])):
    assert yaml.safe_load(value)


def test_the_command_of_a_node_with_gpus_gets_the_variables_of_the_script(tmp_path):
  pod = yaml.safe_load(render('gke_jobset_a4.yaml')[1])['spec']['replicatedJobs'][0]
  command = pod['template']['spec']['template']['spec']['containers'][0]['command']
  script = tmp_path / 'set_nccl_env.sh'
  script.write_text('export NCCL_NET=gIB\n')
  shell = [part.replace('/usr/local/gib/scripts', str(tmp_path)) for part in command[:4]]
  result = subprocess.run(
    [*shell, 'sh', '-c', 'echo $NCCL_NET "$@"', 'sh', *command[5:]],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.startswith('gIB -m launch.host_entry --processes=8')
  assert command[4] == 'python' and '--coordinator=rolegen-workers-0-0.rolegen:8482' in command


@pytest.mark.parametrize('mesh', [dict(data=1), dict(data=2, fsdp=512), dict(data=-1, fsdp=512)])
def test_slices_lie_along_the_data_axis(mesh):
  job = validate(JOBS['gke_jobset_slices.yaml'])
  check_mesh(job, MeshConfig(data=4, fsdp=256))
  check_mesh(job, MeshConfig(data=-1, fsdp=16))
  with pytest.raises(ConfigError, match='mesh.data=.*: must be a multiple of --slices=4'):
    check_mesh(job, MeshConfig(**mesh))


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
      dict(workdir='hdfs://bucket/run'),
      '--workdir=hdfs://bucket/run: must be a folder that every host mounts',
    ),
    ('local.sh', dict(name='My Job'), '--name=My Job: must be lower-case'),
    ('local.sh', dict(set=('loop.worlds',)), 'section.field=value'),
    ('local.sh', dict(first_step_s=5), 'at least --watchdog_s=600'),
    ('local.sh', dict(start_s=0), '--start_s=0: must be at least 1'),
    ('local.sh', dict(host_cache='cache'), '--host_cache=cache: must be a folder of each host'),
    ('local.sh', dict(profile=('10-14',)), 'must be STAGE:FIRST-LAST'),
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
    ('gke_jobset_bucket.yaml', dict(service_account='Me'), '--service_account=Me: must be a name'),
    ('slurm_cpu.sh', dict(service_account='me'), '--service_account=me: must be left out'),
    ('tpu_vm.sh', dict(service_account='me'), '--service_account=me: must be NAME@PROJECT'),
    ('gke_jobset.yaml', dict(image=''), 'docker build --target=tpu'),
    ('gke_jobset_a4.yaml', dict(image=''), 'docker build --target=cuda'),
    ('gke_jobset_a4.yaml', dict(topology='4x4'), '--topology=4x4: must be left out'),
    ('gke_jobset_a4.yaml', dict(nodes=0), '--nodes=0: must be at least 1'),
    ('gke_jobset_a4.yaml', dict(slices=2), '--slices=2: must be 1'),
    (
      'gke_jobset_a4.yaml',
      dict(accelerator='a2-highgpu-8g'),
      'must be one of v4, v5e, v5p, v6e, a3',
    ),
    ('gke_jobset_slices.yaml', dict(slices=0), '--slices=0: must be at least 1'),
    ('gke_jobset_slices.yaml', dict(topology='2x4'), '--slices=4: must be at least 1, and 1 where'),
    ('gke_jobset_slices.yaml', dict(nodes=2), '--nodes=2: must be left out'),
    ('gke_jobset_slices.yaml', dict(queue='Mine'), '--queue=Mine: must be a name of lower-case'),
    ('gke_jobset_slices.yaml', dict(spot=True), '--reservation=v6e-spring: must be left out'),
    ('tpu_vm.sh', dict(slices=2), '--slices=2: must be 1: several are for --target=gke_jobset'),
    ('slurm_gpu.sh', dict(queue='mine'), '--queue=mine: must be left out'),
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


def test_the_jobs_of_the_page_about_pods_render_and_pass_the_parsers(monkeypatch):
  page = (GOLDEN.parents[1] / 'docs' / 'on_a_pod.md').read_text(encoding='utf-8')
  (setting,) = re.findall(r'^export (PROJECT=.*)$', page, re.MULTILINE)
  for name, value in (pair.split('=') for pair in setting.split()):
    monkeypatch.setenv(name, value)
  commands = re.findall(r'^python -m (launch\.run (?:.*\\\n)+.*)$', page, re.MULTILINE)
  assert [re.search(r'--target=(\w+)', command)[1] for command in commands] == [
    'tpu_vm',
    'gke_jobset',
  ]
  for command in commands:
    done = subprocess.run(
      ['bash', '-uc', f'exec {sys.executable} -m {command}'],
      capture_output=True,
      text=True,
      cwd=GOLDEN.parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert '--workdir=gs://my-bucket/runs/shop' in done.stdout
