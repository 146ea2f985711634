"""Where a job runs: one pure renderer a target, job -> exact text; `local` also runs it."""

from launch.targets import gke_jobset, local, slurm, tpu_vm

RENDERERS = {'local': local.render, 'slurm': slurm.render, 'tpu_vm': tpu_vm.render, 'gke_jobset': gke_jobset.render}
