#!/usr/bin/env bash
#SBATCH --job-name=rolegen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@120
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --account=lab

set -uo pipefail
module load cuda
for attempt in $(seq 0 3); do
  echo "attempt $attempt of 3"
  srun --kill-on-bad-exit=0 --wait=180 python -m launch.host_entry --processes=16 --workdir=runs/gpus --grace_s=120 --watchdog_s=600 --first_step_s=3600 --start_s=1800 --xla_flags=gpu_latency_hiding -- python -m rolegen_jax train --experiment=demo --workdir=runs/gpus --set mesh.fsdp=8 --set 'evaluation.ks=(1,10)' --profile=warmup:5,loop:10-14 --profile_processes=0,15 --tracker=wandb
  code=$?
  case "$code" in
    0 | 2 | 3) exit "$code" ;;  # done, or an error that another attempt would repeat
    42) scontrol requeue "$SLURM_JOB_ID"; exit "$code" ;;  # preempted and saved
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: another attempt, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
