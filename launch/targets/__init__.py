"""Where a job runs: one pure renderer per target, job -> exact text. `local` also runs it."""

from collections.abc import Callable

from launch.job import Job
from launch.targets import gke_jobset, local, slurm, tpu_vm

RENDERERS: dict[str, Callable[[Job], str]] = {
  'local': local.render,
  'slurm': slurm.render,
  'tpu_vm': tpu_vm.render,
  'gke_jobset': gke_jobset.render,
}
