"""TPU VMs: a shell script of gcloud commands.

It requests a queued resource, copies the checkout to every host, and starts the same command on
all of them.
"""

from __future__ import annotations

import shlex

from launch.job import Job
from launch.tpus import Slice
from rolegen_jax.fields import BUCKET

# A version that the project is tested on; the TPU images have 3.10, which jax no longer supports.
PYTHON = '3.12'


def render(job: Job) -> str:
  """Return the script.

  It may run again: existing resources are kept, the code is copied anew, and training continues.
  """
  where = f'--project={shlex.quote(job.project)} --zone={shlex.quote(job.zone)}'
  ssh = f'gcloud compute tpus tpu-vm ssh {job.name} {where} --worker=all --command'
  return f"""#!/usr/bin/env bash
# {job.name}: {job.accelerator}, {job.topology}, {_hosts(job)}.
set -euo pipefail

# In a function, so that bash has read all of the script before ssh reads from the same pipe.
main() {{
{_request(job, where)}
# Training holds the lock; the files below must not change under it.
{ssh}='flock -n rolegen.lock true || {{ echo "training runs here: stop it first" >&2; exit 1; }}'

files=$(mktemp -d)
git archive --format=tar.gz --output="$files/rolegen.tar.gz" HEAD
cat > "$files/install.sh" <<'INSTALL'
{_install_script(job)}INSTALL
# Each host restarts its own process, which then waits for the others: losing one ends them all.
cat > "$files/train.sh" <<'TRAIN'
{_train_script(job)}TRAIN
gcloud compute tpus tpu-vm scp "$files"/* {job.name}: {where} --worker=all
{ssh}='bash install.sh'
# Detached, so that it outlives this connection.
{ssh}='setsid nohup flock -n rolegen.lock bash train.sh > rolegen.log 2>&1 < /dev/null &'
echo "Started. Follow it: {ssh}='tail -n 5 rolegen.log'"
}}
main < /dev/null
"""


def _hosts(job: Job) -> str:
  tpu_slice = Slice.of(job.accelerator, job.topology)
  if tpu_slice.hosts == 1:
    return f'one host of {tpu_slice.chips} chips'
  return f'{tpu_slice.hosts} hosts of {tpu_slice.chips_per_host} chips'


def _request(job: Job, where: str) -> str:
  """Return the commands that request the slice and wait until it is active."""
  tpu_slice = Slice.of(job.accelerator, job.topology)
  resources = 'gcloud compute tpus queued-resources'
  state = f"{resources} describe {job.name} {where} --format='value(state.state)'"
  delete = f'{resources} delete {job.name} {where}'
  runtime = f'--runtime-version={tpu_slice.generation.runtime}' + (' --spot' if job.spot else '')
  if job.service_account:
    runtime += f' --service-account={job.service_account} --scopes=cloud-platform'
  return f"""{resources} describe {job.name} {where} > /dev/null 2>&1 ||
  {resources} create {job.name} --node-id={job.name} {where} \\
    {tpu_slice.gcloud_flags} {runtime}

until state=$({state}) && [ "$state" = ACTIVE ]; do
  case $state in
    FAILED | SUSPENDED | SUSPENDING)
      echo "{job.name}: $state; delete it and run this again: {delete}" >&2
      exit 1 ;;
  esac
  echo "{job.name}: $state"
  sleep 30
done
"""


def _install_script(job: Job) -> str:
  setup = f'{job.setup}\n' if job.setup else ''
  cloud = ' -r rolegen/requirements-cloud.txt' if BUCKET.match(job.workdir) else ''
  pip = 'python3 -m uv pip install --quiet --python=venv/bin/python'
  return f"""set -euo pipefail
{setup}rm -rf rolegen
mkdir rolegen
tar -xzf rolegen.tar.gz -C rolegen
python3 -m pip install --quiet --user uv
test -d venv || python3 -m uv venv --quiet --python={PYTHON} venv
{pip} -r rolegen/requirements.txt{cloud} 'jax[tpu]'
"""


def _train_script(job: Job) -> str:
  return f"""set -uo pipefail
export PATH="$HOME/venv/bin:$PATH"
cd rolegen || exit
for attempt in $(seq 0 {job.max_restarts}); do
  echo "attempt $attempt of {job.max_restarts}"
  {shlex.join(job.host_command())}
  code=$?
  case "$code" in
    134 | 137 | 139) ;;  # watchdog, lost peer or killed: another attempt, counted
    *) exit "$code" ;;
  esac
done
exit "$code"
"""
