"""TPU VMs: a shell script of gcloud commands. A queued resource, the checkout on every host, then the same line on all of them."""

from __future__ import annotations

import shlex

from launch.job import Job, shell
from launch.tpus import Slice

PYTHON = '3.12'  # one that the project is tested on; the images have 3.10, which jax left behind


def render(job: Job) -> str:
  """The script. It may be run again: what exists is kept, the code is copied anew, and training continues."""
  slice_ = Slice.of(job.accelerator, job.topology)
  where = f'--project={shlex.quote(job.project)} --zone={shlex.quote(job.zone)}'
  spot = ' --spot' if job.spot else ''
  ssh = f'gcloud compute tpus tpu-vm ssh {job.name} {where} --worker=all --command'
  setup = f'{job.setup}\n' if job.setup else ''
  hosts = f'{slice_.hosts} hosts of {slice_.chips_per_host} chips' if slice_.hosts > 1 else f'one host of {slice_.chips} chips'
  return f"""#!/usr/bin/env bash
# {job.name}: {job.accelerator}, {slice_.topology}, {hosts}.
set -euo pipefail

# A function: bash has read all of it before ssh could take the rest of a script that comes from a pipe for its input.
main() {{
gcloud compute tpus queued-resources describe {job.name} {where} > /dev/null 2>&1 ||
  gcloud compute tpus queued-resources create {job.name} --node-id={job.name} {where} \\
    {slice_.gcloud_flags} --runtime-version={slice_.generation.runtime}{spot}

until state=$(gcloud compute tpus queued-resources describe {job.name} {where} --format='value(state.state)') && [ "$state" = ACTIVE ]; do
  case $state in
    FAILED | SUSPENDED | SUSPENDING)
      echo "{job.name}: $state; delete it and run this again: gcloud compute tpus queued-resources delete {job.name} {where}" >&2
      exit 1 ;;
  esac
  echo "{job.name}: $state"
  sleep 30
done

# Training holds the lock; the files below must not change under it.
{ssh}='flock -n rolegen.lock true || {{ echo "training runs here: stop it first" >&2; exit 1; }}'

files=$(mktemp -d)
git archive --format=tar.gz --output="$files/rolegen.tar.gz" HEAD
cat > "$files/install.sh" <<'INSTALL'
set -euo pipefail
{setup}rm -rf rolegen
mkdir rolegen
tar -xzf rolegen.tar.gz -C rolegen
python3 -m pip install --quiet --user uv
test -d venv || python3 -m uv venv --quiet --python={PYTHON} venv
python3 -m uv pip install --quiet --python=venv/bin/python -r rolegen/requirements.txt 'jax[tpu]'
INSTALL
# Each host restarts its own process; at start-up it waits for the others, which the loss of one has ended too.
cat > "$files/train.sh" <<'TRAIN'
set -uo pipefail
export PATH="$HOME/venv/bin:$PATH"
cd rolegen || exit
for attempt in $(seq 0 {job.max_restarts}); do
  echo "attempt $attempt of {job.max_restarts}"
  {shell(job.host_command())}
  code=$?
  case "$code" in
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: again, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
TRAIN
gcloud compute tpus tpu-vm scp "$files"/* {job.name}: {where} --worker=all
{ssh}='bash install.sh'
# Detached: it outlives this connection.
{ssh}='setsid nohup flock -n rolegen.lock bash train.sh > rolegen.log 2>&1 < /dev/null &'
echo "Started. Follow it: {ssh}='tail -n 5 rolegen.log'"
}}
main < /dev/null
"""
