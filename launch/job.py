"""The description of a job: what to run, in how many processes, and what each target needs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from launch import gpus, tpus, xla_flags
from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.fields import BUCKET, expanded
from rolegen_jax.runtime.distributed import DEFAULT_START_S

TARGETS = ('local', 'slurm', 'tpu_vm', 'gke_jobset')
GRACE_S = 120  # from SIGTERM to SIGKILL: one step and one checkpoint must fit

NAME = re.compile(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?')
ASSIGNMENT = re.compile(r'[\w.]+=.*')
WINDOW = re.compile(r'(warmup|kinds|align|reason|loop):\d+(-\d+)?')
ACCOUNT = re.compile(r'[a-z0-9-]+@[a-z0-9.-]+')
LABEL = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')
SLURM_TIME = re.compile(r'(\d+-)?\d+(:\d\d){0,2}')


@dataclasses.dataclass(frozen=True)
class Job:
  """One training job; `validate` checks it and fills in `processes`."""

  target: str
  experiment: str
  workdir: str  # a folder that every host sees under this path, or of a bucket
  set: tuple[str, ...] = ()  # section.field=value
  profile: tuple[str, ...] = ()  # STAGE:FIRST-LAST
  profile_processes: tuple[str, ...] = ('0',)
  tracker: str = ''  # wandb | mlflow
  name: str = 'rolegen'  # of the SLURM job, the TPU or the JobSet
  python: str = 'python'  # the interpreter on the hosts
  processes: int = 1  # local: given; slurm: nodes x gpus_per_node; TPUs: hosts of the topology
  devices_per_process: int = 0  # local: CPU devices of each process; 0 = all that the machine has
  max_restarts: int = 3  # after exit code 134 or a signal; after 42 too where the target counts it
  grace_s: int = GRACE_S
  watchdog_s: int = 600  # a process without a heartbeat for this long inside a loop counts as hung
  first_step_s: int = 3600  # the limit before a loop's first step: compilation, data preparation
  start_s: int = DEFAULT_START_S  # for all processes to come
  host_cache: str = ''  # a folder of each host for compiled programs; '' = the run folder's alone
  xla_flags: tuple[str, ...] = ()  # names in xla_flags.py

  nodes: int = 1  # slurm, and gke_jobset with GPUs

  # slurm
  gpus_per_node: int = 0  # one task per GPU; 0 = one task per node, on CPU
  cpus_per_task: int = 8
  partition: str = ''  # '' = the cluster's default
  account: str = ''
  time: str = '24:00:00'  # limit, [days-]hours:minutes:seconds
  setup: str = ''  # slurm, tpu_vm: a shell line that every host runs first (modules, mounts)

  # tpu_vm, gke_jobset
  accelerator: str = ''  # generation: v4 | v5e | v5p | v6e; gke_jobset: also a name in gpus.py
  topology: str = ''  # chips, e.g. 4x4 or 2x2x4
  zone: str = ''
  project: str = ''
  spot: bool = False

  # gke_jobset
  slices: int = 1  # TPU slices of that topology; `mesh.data` lies over them
  image: str = ''  # built from the Dockerfile's target `tpu` or `cuda`
  namespace: str = 'default'
  claim: str = ''  # PersistentVolumeClaim of access mode ReadWriteMany, mounted at `mount`
  mount: str = '/mnt/rolegen'
  # gke_jobset: Kubernetes service account of the pods; tpu_vm: IAM service account of the VMs
  service_account: str = ''
  queue: str = ''  # Kueue's LocalQueue; '' = pods start as soon as there are nodes
  priority_class: str = ''  # a PriorityClass of the cluster
  reservation: str = ''  # of Compute Engine, in the cluster's project

  def train_command(self) -> list[str]:
    """The command that trains, without the watchdog around it."""
    sets = [part for assignment in self.set for part in ('--set', assignment)]
    flags = [f'--experiment={self.experiment}', f'--workdir={self.workdir}', *sets]
    if self.profile:
      flags.append(f'--profile={",".join(self.profile)}')
      flags.append(f'--profile_processes={",".join(self.profile_processes)}')
    if self.tracker:
      flags.append(f'--tracker={self.tracker}')
    return [self.python, '-m', 'rolegen_jax', 'train', *flags]

  def host_command(self, *extra_flags: str) -> list[str]:
    """The command of one host (or one SLURM task); `extra_flags` go to host_entry."""
    flags = [
      f'--processes={self.processes}',
      f'--workdir={self.workdir}',
      f'--grace_s={self.grace_s}',
      f'--watchdog_s={self.watchdog_s}',
      f'--first_step_s={self.first_step_s}',
      f'--start_s={self.start_s}',
      *extra_flags,
    ]
    if self.host_cache:
      flags.append(f'--host_cache={self.host_cache}')
    if self.xla_flags:
      flags.append(f'--xla_flags={",".join(self.xla_flags)}')
    return [self.python, '-m', 'launch.host_entry', *flags, '--', *self.train_command()]


def validate(job: Job) -> Job:
  """Return the job with `processes` set where the hardware decides it.

  Raises ConfigError that names the flag and what would be right.
  """
  _require_one_of(job, 'target', TARGETS)
  _validate_common(job)
  if job.target != 'gke_jobset':
    for flag in ('queue', 'priority_class', 'reservation'):
      _require(job, flag, not getattr(job, flag), 'left out: it is for --target=gke_jobset')
    _require(job, 'slices', job.slices == 1, '1: several are for --target=gke_jobset')
  if job.target not in ('gke_jobset', 'tpu_vm'):
    right = 'left out: it is for --target=gke_jobset and tpu_vm'
    _require(job, 'service_account', not job.service_account, right)
  if job.target == 'local':
    return job
  if job.target == 'slurm':
    _validate_slurm(job)
    return dataclasses.replace(job, processes=job.nodes * max(job.gpus_per_node, 1))
  if job.target == 'gke_jobset' and job.accelerator in gpus.MACHINES:
    _validate_gke_jobset(job)
    _validate_gpus(job)
    return dataclasses.replace(job, processes=job.nodes)
  offered = [*tpus.GENERATIONS, *(gpus.MACHINES if job.target == 'gke_jobset' else ())]
  _require_one_of(job, 'accelerator', offered)
  hosts = tpus.Slice.of(job.accelerator, job.topology).hosts
  if job.target == 'tpu_vm':
    _validate_tpu_vm(job)
  else:
    _validate_gke_jobset(job)
    _require(job, 'nodes', job.nodes == 1, 'left out: the topology says how many hosts there are')
    multi_host = 'at least 1, and 1 where one host is the whole slice'
    _require(job, 'slices', job.slices == 1 or (job.slices > 1 and hosts > 1), multi_host)
  return dataclasses.replace(job, processes=hosts * job.slices)


def is_written_out(path: str, urls: bool = False) -> bool:
  """Return whether a path means the same on every host: no `~` and no $VARIABLE.

  urls: whether it may be in a bucket.
  """
  try:
    return expanded(path, urls) == path
  except ValueError:
    return False


def _require(job: Job, flag: str, condition: object, right: str) -> None:
  if not condition:
    raise ConfigError(f'--{flag}={getattr(job, flag)}: must be {right}')


def _require_one_of(job: Job, flag: str, values: Collection[str]) -> None:
  _require(job, flag, getattr(job, flag) in values, 'one of ' + ', '.join(values))


def _validate_common(job: Job) -> None:
  workdir_rule = (
    'a folder that every host mounts under this path, or gs://BUCKET/FOLDER or '
    's3://BUCKET/FOLDER, written out: ~ and $VARIABLES are those of this machine'
  )
  name_rule = 'lower-case letters, digits and dashes, at most 40, starting with a letter'
  _require(job, 'experiment', job.experiment, 'the name of a file in experiments/, or a path')
  _require(job, 'workdir', is_written_out(job.workdir, urls=True), workdir_rule)
  python_rule = 'an interpreter on the hosts, written out (no ~, no $VARIABLE)'
  _require(job, 'python', is_written_out(job.python), python_rule)
  _require(job, 'name', NAME.fullmatch(job.name), name_rule)
  _require(job, 'processes', job.processes >= 1, 'at least 1')
  _require(job, 'devices_per_process', job.devices_per_process >= 0, 'at least 0')
  _require(job, 'max_restarts', job.max_restarts >= 0, 'at least 0')
  _require(job, 'grace_s', job.grace_s >= 1, 'at least 1')
  _require(job, 'watchdog_s', job.watchdog_s >= 1, 'at least 1')
  first_step_rule = f'at least --watchdog_s={job.watchdog_s}'
  _require(job, 'first_step_s', job.first_step_s >= job.watchdog_s, first_step_rule)
  _require(job, 'start_s', job.start_s >= 1, 'at least 1')
  cache_rule = 'a folder of each host from / on, written out: none that hosts share'
  is_folder = job.host_cache.startswith('/') and job.host_cache.strip('/') != ''
  is_shared = bool(job.claim) and f'{job.host_cache}/'.startswith(f'{job.mount}/')
  is_own = is_folder and not is_shared and is_written_out(job.host_cache)
  _require(job, 'host_cache', not job.host_cache or is_own, cache_rule)
  windows = all(WINDOW.fullmatch(window) for window in job.profile)
  window_rule = (
    'STAGE:FIRST-LAST with a stage of warmup, kinds, align, reason and loop, comma-separated'
  )
  _require(job, 'profile', windows, window_rule)
  tracers = all(number == 'all' or number.isdigit() for number in job.profile_processes)
  _require(job, 'profile_processes', tracers, 'numbers of processes, or all')
  known_flags = all(name in xla_flags.FLAGS for name in job.xla_flags)
  _require(job, 'xla_flags', known_flags, 'names among ' + ', '.join(xla_flags.FLAGS))
  assignments = all(ASSIGNMENT.fullmatch(assignment) for assignment in job.set)
  _require(job, 'set', assignments, 'section.field=value')


def _validate_slurm(job: Job) -> None:
  _require(job, 'nodes', job.nodes >= 1, 'at least 1')
  _require(job, 'gpus_per_node', job.gpus_per_node >= 0, 'at least 0')
  _require(job, 'cpus_per_task', job.cpus_per_task >= 1, 'at least 1')
  _require(job, 'time', SLURM_TIME.fullmatch(job.time), '[days-]hours:minutes:seconds')


def _validate_tpu_vm(job: Job) -> None:
  account_rule = 'NAME@PROJECT.iam.gserviceaccount.com'
  is_account = not job.service_account or ACCOUNT.fullmatch(job.service_account)
  _require(job, 'service_account', is_account, account_rule)
  _require(job, 'zone', job.zone, 'a Google Cloud zone that offers this TPU')
  _require(job, 'project', job.project, 'a Google Cloud project')


def _validate_gke_jobset(job: Job) -> None:
  target = 'cuda' if job.accelerator in gpus.MACHINES else 'tpu'
  image_rule = f'a container image built with `docker build --target={target} .`'
  _require(job, 'image', job.image, image_rule)
  in_bucket = BUCKET.match(job.workdir)
  claim_rule = 'a PersistentVolumeClaim of access mode ReadWriteMany, where no bucket is --workdir'
  _require(job, 'claim', job.claim or in_bucket, claim_rule)
  below_mount = job.workdir.startswith(job.mount + '/')
  workdir_rule = f'in a bucket, or below --mount={job.mount}, where the claim is mounted'
  _require(job, 'workdir', in_bucket or below_mount, workdir_rule)
  for flag in ('queue', 'priority_class', 'reservation', 'service_account'):
    name = getattr(job, flag)
    rule = 'a name of lower-case letters, digits and dashes, at most 63'
    _require(job, flag, not name or LABEL.fullmatch(name), rule)
  _require(job, 'reservation', not (job.reservation and job.spot), 'left out with --spot')


def _validate_gpus(job: Job) -> None:
  _require(job, 'nodes', job.nodes >= 1, 'at least 1')
  _require(job, 'topology', not job.topology, 'left out: GPUs are counted by --nodes')
  _require(job, 'slices', job.slices == 1, '1: slices are of TPUs')


def check_mesh(job: Job, mesh: MeshConfig) -> None:
  """Raise ConfigError where the slices of a job cannot lie along `mesh.data`."""
  if job.slices == 1:
    return
  chips = tpus.Slice.of(job.accelerator, job.topology).chips * job.slices
  data = mesh.data if mesh.data > 0 else chips // max(mesh.fsdp * mesh.tensor, 1)
  if data < 1 or data % job.slices:
    raise ConfigError(
      f'mesh.data={mesh.data} (here {data}): must be a multiple of --slices={job.slices}; '
      'what slices exchange goes over the data-center network, and only `data` is made for that'
    )
