#!/usr/bin/env bash
# rolegen: 2 processes on this machine.
trap 'kill $(jobs -p)' TERM INT
python -m launch.host_entry --processes=2 --workdir=runs/two --grace_s=120 --watchdog_s=600 --first_step_s=3600 --start_s=1800 --process_id=0 --coordinator=localhost:12345 --follow_parent --devices_per_process=2 -- python -m rolegen_jax train --experiment=demo --workdir=runs/two --set loop.worlds=6 &
python -m launch.host_entry --processes=2 --workdir=runs/two --grace_s=120 --watchdog_s=600 --first_step_s=3600 --start_s=1800 --process_id=1 --coordinator=localhost:12345 --follow_parent --devices_per_process=2 -- python -m rolegen_jax train --experiment=demo --workdir=runs/two --set loop.worlds=6 &
wait
