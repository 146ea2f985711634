"""Starts a job, from a laptop to a pod.

  python -m launch.run --target=local --processes=2 --devices_per_process=2 --experiment=demo --workdir=runs/two
  python -m launch.run --target=slurm --nodes=2 --gpus_per_node=8 --experiment=demo --workdir=runs/gpus --dry_run
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from absl import flags

from launch import entry, lint, supervise
from launch.job import TARGETS, Job, validate
from launch.targets import RENDERERS, local
from rolegen_jax import commands
from rolegen_jax.config import ConfigError

SUBMIT = {'slurm': ['sbatch'], 'tpu_vm': ['bash', '-s'], 'gke_jobset': ['kubectl', 'apply', '-f', '-']}  # each reads the text

_FLAGS = [
    flags.DEFINE_enum('target', 'local', TARGETS, 'Where to run.'),
    flags.DEFINE_string('experiment', 'demo', 'Name of a file in experiments/, or NAME:ARG.'),
    flags.DEFINE_string('workdir', None, 'Run folder, under this path on every host.', required=True),
    flags.DEFINE_multi_string('set', [], 'Replace one field of the config: section.field=value. May be repeated.'),
    flags.DEFINE_string('name', 'rolegen', 'Name of the SLURM job, the TPU or the JobSet.'),
    flags.DEFINE_string('python', '', 'Python of the hosts; default: this one on local, `python` elsewhere.'),
    flags.DEFINE_integer('processes', 1, 'local: how many processes. Elsewhere the hardware says it.'),
    flags.DEFINE_integer('devices_per_process', 0, 'local: CPU devices of each process; 0 = what the machine has.'),
    flags.DEFINE_integer('max_restarts', 3, 'Restarts after exit 134 or a death by signal; on local after 42 too.'),
    flags.DEFINE_integer('grace_s', 120, 'Seconds from SIGTERM to SIGKILL.'),
    flags.DEFINE_integer('watchdog_s', 600, 'Seconds without a step until a process counts as hung.'),
    flags.DEFINE_integer('first_step_s', 3600, 'The same before the first step of a loop.'),
    flags.DEFINE_list('xla_flags', [], 'Names in launch/xla_flags.py.'),
    flags.DEFINE_integer('nodes', 1, 'slurm: nodes.'),
    flags.DEFINE_integer('gpus_per_node', 0, 'slurm: GPUs of a node, one task each; 0 = CPU, one task a node.'),
    flags.DEFINE_integer('cpus_per_task', 8, 'slurm: CPU cores of a task.'),
    flags.DEFINE_string('partition', '', 'slurm: partition.'),
    flags.DEFINE_string('account', '', 'slurm: account.'),
    flags.DEFINE_string('time', '24:00:00', 'slurm: time limit, [days-]hours:minutes:seconds.'),
    flags.DEFINE_string('setup', '', 'slurm, tpu_vm: a shell line that runs first (modules, mounts).'),
    flags.DEFINE_string('accelerator', '', 'TPUs: v4, v5e, v5p or v6e.'),
    flags.DEFINE_string('topology', '', 'TPUs: chips, e.g. 4x4.'),
    flags.DEFINE_string('zone', '', 'tpu_vm: zone.'),
    flags.DEFINE_string('project', '', 'tpu_vm: project.'),
    flags.DEFINE_bool('spot', False, 'TPUs: spot capacity.'),
    flags.DEFINE_string('image', '', 'gke_jobset: image with the checkout and its requirements.'),
    flags.DEFINE_string('namespace', 'default', 'gke_jobset: namespace.'),
    flags.DEFINE_string('claim', '', 'gke_jobset: PersistentVolumeClaim that many may write.'),
    flags.DEFINE_string('mount', '/mnt/rolegen', 'gke_jobset: where the claim is mounted.'),
]
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would be submitted, and stop.')
_VALIDATE = flags.DEFINE_bool('validate', False, 'Check what would be submitted with the parsers at hand, and stop.')


def job() -> Job:
  """The validated job of the flags. Raises ConfigError, for the experiment's settings too."""
  values = {flag.name: tuple(flag.value) if isinstance(flag.value, list) else flag.value for flag in _FLAGS}
  values['python'] = values['python'] or (sys.executable if values['target'] == 'local' else 'python')
  commands.experiment(values['experiment'], list(values['set']))
  return validate(Job(**values))


def main() -> int:
  described = job()
  text = RENDERERS[described.target](described)
  if _DRY_RUN.value:
    print(text, end='')
  if _VALIDATE.value:
    for done in lint.check(described.target, text):
      print(f'ok: {done}', file=sys.stderr)
  if _DRY_RUN.value or _VALIDATE.value:
    return 0
  if described.target == 'local':
    return supervise.run(lambda: local.commands(described, local.free_port()), described.max_restarts, described.grace_s)
  submit = SUBMIT[described.target]
  if shutil.which(submit[0]) is None:
    raise ConfigError(f'--target={described.target}: {submit[0]} is not on PATH; print the text with --dry_run and submit it where it is')
  return subprocess.run(submit, input=text, text=True, check=False).returncode


if __name__ == '__main__':
  entry.run(main)
