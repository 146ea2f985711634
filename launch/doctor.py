"""Check a host before a job starts there: one line per check, and what to do where one fails.

  python -m launch.doctor --workdir=runs/demo

Run it on every host of the job: through `gcloud ... ssh --worker=all`, `srun` or a pod.
Exit codes: 0 no check failed, 2 at least one did.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from launch import checks, entry
from rolegen_jax.cli.entry import BAD_INPUT
from rolegen_jax.cli.path_flags import path_flag

_WORKDIR = path_flag(
  'workdir', '.', 'Folder that runs will write to; created if it does not exist.', urls=True
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', 'localhost:8476', 'HOST:PORT at which the processes of a job meet.'
)
_CLOCK_REFERENCE = flags.DEFINE_string(
  'clock_reference', '', 'URL of a server whose Date header this clock is compared with.'
)
_TIMEOUT_S = flags.DEFINE_float(
  'timeout_s', 180.0, 'Seconds the devices have to respond.', lower_bound=1
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of lines.')


def main() -> int:
  results = [
    *checks.versions(),
    *checks.devices(_TIMEOUT_S.value),
    *checks.storage(_WORKDIR.value),
    checks.clock(_CLOCK_REFERENCE.value),
    checks.port(_COORDINATOR.value),
    checks.proxy(_COORDINATOR.value),
  ]
  failed = [check.name for check in results if check.state == checks.FAILED]
  if _JSON.value:
    rows = [dataclasses.asdict(check) for check in results]
    print(json.dumps(dict(ok=not failed, checks=rows), indent=2))
  else:
    print_lines(results)
    print(f'failed: {", ".join(failed)}' if failed else 'no check failed')
  return BAD_INPUT if failed else 0


def print_lines(results: list[checks.Check]) -> None:
  """Print one line per check, and its advice below it."""
  width = max(len(check.name) for check in results)
  for check in results:
    print(f'{check.state:7}  {check.name:{width}}  {check.detail}')
    if check.advice:
      print(f'{"":9}{"":{width}}  -> {check.advice}')


if __name__ == '__main__':
  entry.run(main)
