"""Start a job, from a laptop to a pod.

  python -m launch.run --target=local --processes=2 --devices_per_process=2 \
      --experiment=demo --workdir=runs/two
  python -m launch.run --target=slurm --nodes=2 --gpus_per_node=8 \
      --experiment=demo --workdir=runs/gpus --dry_run
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

from absl import flags

from launch import entry, lint, supervise
from launch.job import TARGETS, Job, check_mesh, validate
from launch.targets import RENDERERS, local
from rolegen_jax.cli import entry as cli
from rolegen_jax.config import ConfigError
from rolegen_jax.fields import local_path

# The command that submits a rendered text, which it reads from standard input.
SUBMIT = {
  'slurm': ['sbatch'],
  'tpu_vm': ['bash', '-s'],
  'gke_jobset': ['kubectl', 'apply', '-f', '-'],
}

_string, _integer = flags.DEFINE_string, flags.DEFINE_integer

# Every flag is a field of Job.
_JOB_FLAGS = [
  flags.DEFINE_enum('target', 'local', TARGETS, 'Where to run.'),
  _string('experiment', 'demo', 'Name of a file in experiments/ or path of one; NAME:ARG.'),
  _string(
    'workdir', None, 'Run folder, under the same path on every host, or in a bucket.', required=True
  ),
  flags.DEFINE_multi_string(
    'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
  ),
  flags.DEFINE_list('profile', [], 'Steps to trace: STAGE:FIRST-LAST, separated by commas.'),
  flags.DEFINE_list('profile_processes', ['0'], 'Processes that trace: numbers, or all.'),
  flags.DEFINE_enum('tracker', '', ['', 'wandb', 'mlflow'], 'Report metrics there too.'),
  _string('name', 'rolegen', 'Name of the SLURM job, the TPU or the JobSet.'),
  _string(
    'python', '', 'Python on the hosts; default: this one on local, `python` on other targets.'
  ),
  _integer('processes', 1, 'local: number of processes. Other targets derive it.'),
  _integer('devices_per_process', 0, 'local: CPU devices per process; 0 = all the machine has.'),
  _integer('max_restarts', 3, 'Restarts after exit 134 or a signal; on local also after 42.'),
  _integer('grace_s', 120, 'Seconds from SIGTERM to SIGKILL.'),
  _integer('watchdog_s', 600, 'Seconds without a step after which a process counts as hung.'),
  _integer('first_step_s', 3600, 'The same limit before the first step of a loop.'),
  _integer('start_s', 1800, 'Seconds for all processes to come; then the missing ones are named.'),
  _string('host_cache', '', 'Folder of each host for compiled programs, before the shared one.'),
  flags.DEFINE_list('xla_flags', [], 'Names in launch/xla_flags.py, separated by commas.'),
  _integer('nodes', 1, 'slurm, gke_jobset with GPUs: nodes.'),
  _integer('gpus_per_node', 0, 'slurm: GPUs per node, one task each; 0 = one CPU task per node.'),
  _integer('cpus_per_task', 8, 'slurm: CPU cores per task.'),
  _string('partition', '', 'slurm: partition.'),
  _string('account', '', 'slurm: account.'),
  _string('time', '24:00:00', 'slurm: time limit, [days-]hours:minutes:seconds.'),
  _string('setup', '', 'slurm, tpu_vm: a shell line that runs first (modules, mounts).'),
  _string(
    'accelerator', '', 'TPUs: v4, v5e, v5p or v6e. gke_jobset: also a name in launch/gpus.py.'
  ),
  _string('topology', '', 'TPUs: chips along each side of a slice, e.g. 4x4.'),
  _integer('slices', 1, 'gke_jobset: TPU slices; mesh.data lies over them.'),
  _string('zone', '', 'tpu_vm: zone.'),
  _string('project', '', 'tpu_vm: project.'),
  flags.DEFINE_bool('spot', False, 'tpu_vm, gke_jobset: spot capacity.'),
  _string('image', '', "gke_jobset: image built from the Dockerfile's target `tpu` or `cuda`."),
  _string('namespace', 'default', 'gke_jobset: namespace.'),
  _string(
    'claim', '', 'gke_jobset: PersistentVolumeClaim of access mode ReadWriteMany; not for a bucket.'
  ),
  _string('mount', '/mnt/rolegen', 'gke_jobset: where the claim is mounted.'),
  _string(
    'service_account',
    '',
    'Who the hosts are, for buckets: of gke_jobset in Kubernetes, of tpu_vm in IAM.',
  ),
  _string('queue', '', "gke_jobset: Kueue's LocalQueue that the job waits in."),
  _string('priority_class', '', 'gke_jobset: PriorityClass of the pods.'),
  _string('reservation', '', "gke_jobset: reservation of the cluster's project to run on."),
]
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would be submitted, and exit.')
_VALIDATE = flags.DEFINE_bool(
  'validate', False, 'Check what would be submitted with the installed parsers, and exit.'
)


def main() -> int:
  job = job_from_flags()
  text = RENDERERS[job.target](job)
  if _DRY_RUN.value:
    print(text, end='')
  if _VALIDATE.value:
    for name in lint.check(job.target, text):
      print(f'ok: {name}', file=sys.stderr)
  if _DRY_RUN.value or _VALIDATE.value:
    return 0
  if job.target == 'local':
    return supervise.run(
      lambda: local.commands(job, local.free_port()), job.max_restarts, job.grace_s
    )
  return submit(job.target, text)


def job_from_flags() -> Job:
  """Return the validated job; raise ConfigError, also for the settings of the experiment."""
  values: dict[str, Any] = {}
  for flag in _JOB_FLAGS:
    values[flag.name] = tuple(flag.value) if isinstance(flag.value, list) else flag.value
  is_local = values['target'] == 'local'
  if not values['python']:
    values['python'] = sys.executable if is_local else 'python'
  if is_local:
    for name in ('workdir', 'python'):
      values[name] = local_path(values[name], f'--{name}', urls=name == 'workdir')
    if shutil.which(values['python']) is None:
      raise ConfigError(f'--python={values["python"]}: must be an interpreter on this machine')
  config = cli.experiment(values['experiment'], list(values['set']))
  job = validate(Job(**values))
  check_mesh(job, config.mesh)
  return job


def submit(target: str, text: str) -> int:
  """Pass the text to the target's command and return its exit code."""
  command = SUBMIT[target]
  if shutil.which(command[0]) is None:
    raise ConfigError(
      f'--target={target}: {command[0]} is not on PATH; '
      'print the text with --dry_run and submit it on a host that has it'
    )
  return subprocess.run(command, input=text, text=True, check=False).returncode


if __name__ == '__main__':
  entry.run(main)
