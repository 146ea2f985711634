"""Looks a host over before a job is started there: a line per check, ok, warning or failed, and what to do about it.

  python -m launch.doctor --workdir=runs/demo

Exit codes: 0 nothing failed, 2 something did. Run it on every host of a job: `ssh --worker=all`, `srun`, or a pod.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from launch import checks, entry
from rolegen_jax.commands import BAD_INPUT

_WORKDIR = flags.DEFINE_string('workdir', '.', 'Folder that runs will write to; made if absent.')
_COORDINATOR = flags.DEFINE_string('coordinator', 'localhost:8476', 'HOST:PORT at which the processes of a job will meet.')
_CLOCK_REFERENCE = flags.DEFINE_string('clock_reference', '', 'URL of a server whose Date header this clock is compared with, to a second.')
_TIMEOUT_S = flags.DEFINE_float('timeout_s', 180.0, 'Seconds that the devices get to answer.', lower_bound=1)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of lines.')


def main() -> int:
  found = [
      *checks.versions(), *checks.devices(_TIMEOUT_S.value), *checks.storage(_WORKDIR.value),
      checks.clock(_CLOCK_REFERENCE.value), checks.port(_COORDINATOR.value),
  ]
  failed = [check for check in found if check.state == checks.FAILED]
  if _JSON.value:
    print(json.dumps(dict(ok=not failed, checks=[dataclasses.asdict(check) for check in found]), indent=2))
  else:
    width = max(len(check.name) for check in found)
    for check in found:
      print(f'{check.state:7}  {check.name:{width}}  {check.found}' + (f'\n{"":9}{"":{width}}  -> {check.advice}' if check.advice else ''))
    print('all is well' if not failed else f'failed: {", ".join(check.name for check in failed)}')
  return BAD_INPUT if failed else 0


if __name__ == '__main__':
  entry.run(main)
