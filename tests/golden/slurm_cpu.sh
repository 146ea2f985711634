#!/usr/bin/env bash
#SBATCH --job-name=rolegen
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@120

set -uo pipefail
for attempt in $(seq 0 0); do
  echo "attempt $attempt of 0"
  srun --kill-on-bad-exit=0 --wait=180 python -m launch.host_entry --processes=4 --workdir=runs/cpus --grace_s=120 --watchdog_s=600 --first_step_s=3600 --start_s=1800 -- python -m rolegen_jax train --experiment=demo --workdir=runs/cpus
  code=$?
  case "$code" in
    0 | 2 | 3) exit "$code" ;;  # done, or an error that another attempt would repeat
    42) scontrol requeue "$SLURM_JOB_ID"; exit "$code" ;;  # preempted and saved
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: another attempt, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
