"""The description of a job: what to run, in how many processes, and what each target needs to know. Frozen, validated here."""

from __future__ import annotations

import dataclasses
import re
import shlex

from launch import tpus, xla_flags
from rolegen_jax.config import ConfigError

TARGETS = ('local', 'slurm', 'tpu_vm', 'gke_jobset')
GRACE_S = 120  # from SIGTERM to SIGKILL: a step and a checkpoint must fit


@dataclasses.dataclass(frozen=True)
class Job:
  target: str
  experiment: str
  workdir: str  # a folder that every host sees under this path
  set: tuple[str, ...] = ()  # section.field=value
  name: str = 'rolegen'  # of the SLURM job, the TPU, the JobSet
  module: str = 'rolegen_jax.train'
  python: str = 'python'  # on the hosts
  processes: int = 1  # local: how many; slurm: nodes x gpus_per_node; TPUs: hosts of the topology
  devices_per_process: int = 0  # local: CPU devices of each process; 0 = what the machine has
  max_restarts: int = 3  # after failures that may pass: exit code 134 or a signal; 42 too where the target counts it
  grace_s: int = GRACE_S
  watchdog_s: int = 600  # no sign of life for so long inside a loop = hung
  first_step_s: int = 3600  # the same before a loop's first step: compilation, data preparation
  xla_flags: tuple[str, ...] = ()  # names in xla_flags.py

  # slurm
  nodes: int = 1
  gpus_per_node: int = 0  # one task each; 0 = one task a node, on CPU
  cpus_per_task: int = 8
  partition: str = ''  # '' = the cluster's default
  account: str = ''
  time: str = '24:00:00'  # limit, [days-]hours:minutes:seconds
  setup: str = ''  # slurm, tpu_vm: a shell line that every host runs first (modules, mounts)

  # tpu_vm, gke_jobset
  accelerator: str = ''  # generation: v4 | v5e | v5p | v6e
  topology: str = ''  # chips, e.g. 4x4 or 2x2x4
  zone: str = ''
  project: str = ''
  spot: bool = False

  # gke_jobset
  image: str = ''  # holds the checkout as its working directory, and the requirements
  namespace: str = 'default'
  claim: str = ''  # PersistentVolumeClaim that many may write, mounted at `mount`
  mount: str = '/mnt/rolegen'

  def train_command(self) -> list[str]:
    sets = [part for assignment in self.set for part in ('--set', assignment)]
    return [self.python, '-m', self.module, f'--experiment={self.experiment}', f'--workdir={self.workdir}', *sets]

  def host_command(self, *own: str) -> list[str]:
    """What one host (or one task) runs; `own` are further flags of host_entry."""
    flags = [
        f'--processes={self.processes}', f'--workdir={self.workdir}', f'--grace_s={self.grace_s}',
        f'--watchdog_s={self.watchdog_s}', f'--first_step_s={self.first_step_s}', *own,
    ]
    if self.xla_flags:
      flags.append(f'--xla_flags={",".join(self.xla_flags)}')
    return [self.python, '-m', 'launch.host_entry', *flags, '--', *self.train_command()]


def shell(command: list[str]) -> str:
  """One shell line. Words that are plain stay plain."""
  return shlex.join(command)


def validate(job: Job) -> Job:
  """Returns the job with `processes` filled in where the hardware decides it. Raises ConfigError naming the flag."""

  def need(ok: bool, flag: str, right: str):
    if not ok:
      raise ConfigError(f'--{flag}={getattr(job, flag)}: must be {right}')

  need(job.target in TARGETS, 'target', 'one of ' + ', '.join(TARGETS))
  need(bool(job.experiment), 'experiment', 'the name of a file in experiments/')
  need(bool(job.workdir) and '://' not in job.workdir, 'workdir', 'a folder that every host mounts under this path (a bucket: mount it)')
  need(re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', job.name) is not None, 'name', 'lower-case letters, digits and dashes, at most 40, a letter first')
  need(job.processes >= 1, 'processes', 'at least 1')
  need(job.max_restarts >= 0, 'max_restarts', '0 or more')
  need(job.grace_s >= 1, 'grace_s', 'at least 1')
  need(job.watchdog_s >= 1, 'watchdog_s', 'at least 1')
  need(job.first_step_s >= job.watchdog_s, 'first_step_s', f'at least --watchdog_s={job.watchdog_s}')
  for name in job.xla_flags:
    need(name in xla_flags.FLAGS, 'xla_flags', 'some of ' + ', '.join(xla_flags.FLAGS))
  for assignment in job.set:
    need(re.fullmatch(r'[\w.]+=.*', assignment) is not None, 'set', 'section.field=value')
  if job.target == 'local':
    return job
  if job.target == 'slurm':
    need(job.nodes >= 1, 'nodes', 'at least 1')
    need(job.gpus_per_node >= 0, 'gpus_per_node', '0 or more')
    need(re.fullmatch(r'(\d+-)?\d+(:\d\d){0,2}', job.time) is not None, 'time', '[days-]hours:minutes:seconds')
    return dataclasses.replace(job, processes=job.nodes * max(job.gpus_per_node, 1))
  need(job.accelerator in tpus.GENERATIONS, 'accelerator', 'one of ' + ', '.join(tpus.GENERATIONS))
  slice_ = tpus.Slice.of(job.accelerator, job.topology)
  if job.target == 'tpu_vm':
    need(bool(job.zone), 'zone', 'a Google Cloud zone that has this TPU')
    need(bool(job.project), 'project', 'a Google Cloud project')
  else:
    need(bool(job.image), 'image', 'a container image that holds the checkout and its requirements')
    need(bool(job.claim), 'claim', 'a PersistentVolumeClaim of access mode ReadWriteMany')
    need(job.workdir.startswith(job.mount + '/'), 'workdir', f'below --mount={job.mount}, where the claim is mounted')
  return dataclasses.replace(job, processes=slice_.hosts)
