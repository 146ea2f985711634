"""Load a server with requests at a given rate, check its answers, and say how long they took.

rolegen loadtest --url=http://127.0.0.1:8080 --workdir=runs/demo --rps=50 --duration=60

Requests go out when they are due, however many are unanswered, and latency counts from then. The
run folder says which users and items there are. Exit code 1: an answer was wrong, or no good
request was answered right.
"""

import importlib.util
import sys

from absl import flags

from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime.progress import say

_URL = flags.DEFINE_string('url', None, 'The server: http://HOST:PORT.', required=True)
_REMOTE = flags.DEFINE_bool('remote', False, 'Allow a server that is not on this machine.')
_WORKDIR = path_flag('workdir', None, 'Folder of the run that is served.', required=True)
_RPS = flags.DEFINE_float('rps', 10.0, 'Requests a second.', lower_bound=0.1, upper_bound=1e5)
_DURATION = flags.DEFINE_float('duration', 30.0, 'Seconds.', lower_bound=1.0, upper_bound=86_400.0)
_USERS = flags.DEFINE_integer(
  'users', 0, 'Distinct users that ask; 0 = all of the log.', lower_bound=0
)
_APPENDS = flags.DEFINE_float(
  'appends', 0.0, 'Share of the requests that append an event.', lower_bound=0, upper_bound=1
)
_MALFORMED = flags.DEFINE_float(
  'malformed', 0.0, 'Share of the requests that are malformed.', lower_bound=0, upper_bound=1
)
_CHANGES = flags.DEFINE_float(
  'changes_per_minute',
  0.0,
  'Changes of the catalogue, beside the requests: items are removed, brought back, added, tagged.',
  lower_bound=0,
  upper_bound=1e6,
)
_K = flags.DEFINE_integer('k', 10, 'Items of a list.', lower_bound=1)
_REASONING = flags.DEFINE_enum(
  'reasoning', '', ['', 'online', 'cached', 'off'], 'What requests ask for; default: the server.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'What is drawn: times, users, changes.', lower_bound=0)
_TIMEOUT_S = flags.DEFINE_float('timeout_s', 30.0, 'Seconds of a request.', lower_bound=0.01)
_TOKEN = path_flag('auth_token_file', '', 'File of the token that the server asks for.')
_JSON = path_flag('json', '', 'Write the figures to this file.')
_PLOT = path_flag('plot', '', 'Draw latency, throughput and memory into this PNG.')


def main() -> None:
  """Send, check, print."""
  if importlib.util.find_spec('aiohttp') is None:
    raise ConfigError('loadtest: aiohttp must be installed: pip install -r requirements-serve.txt')
  from rolegen_jax.data.files import require_writable, write_json
  from rolegen_jax.pipeline.artifacts import current
  from rolegen_jax.serving.http.server import read_token
  from rolegen_jax.serving.load import drive, figures, plan

  if _APPENDS.value + _MALFORMED.value > 1:
    raise ConfigError('--appends and --malformed: must be at most 1 together')
  if not _REMOTE.value:
    drive.require_loopback(_URL.value)
  for path in (_JSON.value, _PLOT.value):
    if path:
      require_writable(path)
  mix = plan.Mix(
    rps=_RPS.value,
    duration=_DURATION.value,
    users=_USERS.value,
    appends=_APPENDS.value,
    malformed=_MALFORMED.value,
    changes=_CHANGES.value,
    k=_K.value,
    reasoning=_REASONING.value,
    seed=_SEED.value,
  )
  shop = plan.read_shop(current(_WORKDIR.value))
  arrivals = plan.planned(mix, shop)
  token = read_token(_TOKEN.value) if _TOKEN.value else ''
  say(f'{len(arrivals)} requests in {mix.duration:g} s to {_URL.value}')
  outcome = drive.drive(_URL.value, arrivals, shop, mix, token, _TIMEOUT_S.value)
  found = figures.summary(outcome)
  print(figures.table(found))
  if _JSON.value:
    write_json(found, _JSON.value)
  if _PLOT.value:
    figures.plot(outcome, _PLOT.value)
  if figures.is_wrong(found):
    sys.exit(1)
