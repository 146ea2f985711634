"""SLURM: one sbatch script, one task per GPU (per node without GPUs).

jax finds the other tasks through SLURM's environment variables.
"""

from __future__ import annotations

import shlex

from launch.job import Job

PEERS_S = 60  # after one task ended, the others have the grace period and this long to end


def render(job: Job) -> str:
  """Return the script for `sbatch`.

  Exit code 42 requeues the job; 134 and signals restart the step, at most `max_restarts` times.
  """
  header = ''.join(f'#SBATCH {option}\n' for option in _options(job))
  setup = f'{job.setup}\n' if job.setup else ''
  # --kill-on-bad-exit=0 with --wait: tasks end with their own codes, and a hung one is killed.
  srun = f'srun --kill-on-bad-exit=0 --wait={job.grace_s + PEERS_S}'
  step = f'{srun} {shlex.join(job.host_command())}'
  return f"""#!/usr/bin/env bash
{header}
set -uo pipefail
{setup}for attempt in $(seq 0 {job.max_restarts}); do
  echo "attempt $attempt of {job.max_restarts}"
  {step}
  code=$?
  case "$code" in
    0 | 2 | 3) exit "$code" ;;  # done, or an error that another attempt would repeat
    42) scontrol requeue "$SLURM_JOB_ID"; exit "$code" ;;  # preempted and saved
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: another attempt, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
"""


def _options(job: Job) -> list[str]:
  options = [
    f'--job-name={job.name}',
    f'--nodes={job.nodes}',
    f'--ntasks-per-node={max(job.gpus_per_node, 1)}',
    f'--cpus-per-task={job.cpus_per_task}',
    f'--time={job.time}',
    '--requeue',
    '--open-mode=append',
    '--output=%x-%j.log',
    # To the tasks, not to this script: they save and exit 42 before the time limit or a preemption.
    f'--signal=TERM@{job.grace_s}',
  ]
  if job.gpus_per_node:
    # Not --gpus-per-task, which hides a node's other GPUs: jax picks its SLURM_LOCALID among all.
    options.append(f'--gpus-per-node={job.gpus_per_node}')
  if job.partition:
    options.append(f'--partition={job.partition}')
  if job.account:
    options.append(f'--account={job.account}')
  return options
