#!/usr/bin/env bash
# rolegen: v5e, 4x4, 4 hosts of 4 chips.
set -euo pipefail

# In a function, so that bash has read all of the script before ssh reads from the same pipe.
main() {
gcloud compute tpus queued-resources describe rolegen --project=my-project --zone=us-west4-a > /dev/null 2>&1 ||
  gcloud compute tpus queued-resources create rolegen --node-id=rolegen --project=my-project --zone=us-west4-a \
    --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --service-account=rolegen@my-project.iam.gserviceaccount.com --scopes=cloud-platform

until state=$(gcloud compute tpus queued-resources describe rolegen --project=my-project --zone=us-west4-a --format='value(state.state)') && [ "$state" = ACTIVE ]; do
  case $state in
    FAILED | SUSPENDED | SUSPENDING)
      echo "rolegen: $state; delete it and run this again: gcloud compute tpus queued-resources delete rolegen --project=my-project --zone=us-west4-a" >&2
      exit 1 ;;
  esac
  echo "rolegen: $state"
  sleep 30
done

# Training holds the lock; the files below must not change under it.
gcloud compute tpus tpu-vm ssh rolegen --project=my-project --zone=us-west4-a --worker=all --command='flock -n rolegen.lock true || { echo "training runs here: stop it first" >&2; exit 1; }'

files=$(mktemp -d)
git archive --format=tar.gz --output="$files/rolegen.tar.gz" HEAD
cat > "$files/install.sh" <<'INSTALL'
set -euo pipefail
rm -rf rolegen
mkdir rolegen
tar -xzf rolegen.tar.gz -C rolegen
python3 -m pip install --quiet --user uv
test -d venv || python3 -m uv venv --quiet --python=3.12 venv
python3 -m uv pip install --quiet --python=venv/bin/python -r rolegen/requirements.txt -r rolegen/requirements-cloud.txt 'jax[tpu]'
INSTALL
# Each host restarts its own process, which then waits for the others: losing one ends them all.
cat > "$files/train.sh" <<'TRAIN'
set -uo pipefail
export PATH="$HOME/venv/bin:$PATH"
cd rolegen || exit
for attempt in $(seq 0 3); do
  echo "attempt $attempt of 3"
  python -m launch.host_entry --processes=4 --workdir=gs://my-bucket/runs/v5e --grace_s=120 --watchdog_s=600 --first_step_s=3600 --start_s=1800 -- python -m rolegen_jax train --experiment=demo --workdir=gs://my-bucket/runs/v5e --set mesh.fsdp=16
  code=$?
  case "$code" in
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: another attempt, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
TRAIN
gcloud compute tpus tpu-vm scp "$files"/* rolegen: --project=my-project --zone=us-west4-a --worker=all
gcloud compute tpus tpu-vm ssh rolegen --project=my-project --zone=us-west4-a --worker=all --command='bash install.sh'
# Detached, so that it outlives this connection.
gcloud compute tpus tpu-vm ssh rolegen --project=my-project --zone=us-west4-a --worker=all --command='setsid nohup flock -n rolegen.lock bash train.sh > rolegen.log 2>&1 < /dev/null &'
echo "Started. Follow it: gcloud compute tpus tpu-vm ssh rolegen --project=my-project --zone=us-west4-a --worker=all --command='tail -n 5 rolegen.log'"
}
main < /dev/null
