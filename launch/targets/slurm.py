"""SLURM: one sbatch script. One task a GPU; without GPUs one task a node. jax finds the other tasks by SLURM's variables."""

from __future__ import annotations

from launch.job import Job, shell

PEERS_S = 60


def render(job: Job) -> str:
  """The script for `sbatch`. Exit 42 requeues the job, 134 and signals start the step again, at most `max_restarts` times."""
  options = [
      f'--job-name={job.name}', f'--nodes={job.nodes}', f'--ntasks-per-node={max(job.gpus_per_node, 1)}',
      f'--cpus-per-task={job.cpus_per_task}', f'--time={job.time}', '--requeue', '--open-mode=append',
      '--output=%x-%j.log',
      # To the tasks, not to this script: they save and exit 42 before the time limit, or before a preemption.
      f'--signal=TERM@{job.grace_s}',
  ]
  if job.gpus_per_node:
    # Not --gpus-per-task: that hides the other GPUs of a node, and jax picks the one of its SLURM_LOCALID among all.
    options.append(f'--gpus-per-node={job.gpus_per_node}')
  options += [f'--{name}={value}' for name, value in (('partition', job.partition), ('account', job.account)) if value]
  header = ''.join(f'#SBATCH {option}\n' for option in options)
  setup = f'{job.setup}\n' if job.setup else ''
  # --kill-on-bad-exit=0 with --wait: tasks end with their own codes, and one that hangs is killed in the end.
  step = f'srun --kill-on-bad-exit=0 --wait={job.grace_s + PEERS_S} {shell(job.host_command())}'
  return f"""#!/usr/bin/env bash
{header}
set -uo pipefail
{setup}for attempt in $(seq 0 {job.max_restarts}); do
  echo "attempt $attempt of {job.max_restarts}"
  {step}
  code=$?
  case "$code" in
    0 | 2 | 3) exit "$code" ;;  # done, or not worth another try
    42) scontrol requeue "$SLURM_JOB_ID"; exit "$code" ;;  # preempted and saved
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: again, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
"""
