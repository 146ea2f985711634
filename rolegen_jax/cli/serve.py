"""Serve a trained run over HTTP: lists and reasons, while users act and items come and go.

rolegen serve --workdir=runs/demo --port=8080

curl -s localhost:8080/v1/recommend -d '{"user_id": 7, "explain": true}'

At http://localhost:8080 is a page to look into the run; docs/serving.md has it and the API.
SIGTERM: requests that are under way are answered, then the server leaves with exit code 0.
"""

import importlib.util

from absl import flags

from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime.progress import say

NEEDED = ('starlette', 'uvicorn', 'httptools', 'msgspec', 'prometheus_client')

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True, urls=True)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to serve at; 0.0.0.0 = all of them.')
_PORT = flags.DEFINE_integer(
  'port', 8080, 'Port to serve at; 0 = any that is free.', lower_bound=0, upper_bound=65535
)
_MAX_BATCH = flags.DEFINE_integer(
  'max_batch', 8, 'Requests that the device answers at once.', lower_bound=1, upper_bound=32
)
_MAX_WAIT_MS = flags.DEFINE_float(
  'max_wait_ms',
  2.0,
  'How long a request waits for others to be answered with, at most.',
  lower_bound=0.0,
  upper_bound=10_000.0,
)
_MAX_QUEUE = flags.DEFINE_integer(
  'max_queue',
  256,
  'Requests that wait; further ones are told to come again (429).',
  lower_bound=1,
  upper_bound=100_000,
)
_TOP = flags.DEFINE_integer('top', 10, 'Items of an answer, at most.', lower_bound=1)
_CACHE_MB = flags.DEFINE_integer(
  'cache_mb',
  256,
  'Memory of each device in which histories stay encoded, in MB; 0: of those of one batch.',
  lower_bound=0,
  upper_bound=1_000_000,
)
_REASONING = flags.DEFINE_enum(
  'reasoning',
  'online',
  ['online', 'cached', 'off'],
  'What stands behind a list unless a request says: worlds rolled out for it, those of the user '
  'until an event changes them, or the backbone alone. With off no reasoner is loaded.',
)
_TOKEN = path_flag(
  'auth_token_file', '', 'File of the token that requests must carry; default: none.'
)
_ALLOWED_HOSTS = flags.DEFINE_list(
  'allowed_hosts',
  [],
  'Names under which requests may ask this server (their Host header), beside localhost, addresses '
  'of the loopback and --host. Default: none on the loopback without a token, else any.',
)


def main() -> None:
  """Serve until a signal."""
  missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
  if missing:
    raise ConfigError(
      f'serve: {", ".join(missing)} must be installed: pip install -r requirements-serve.txt'
    )
  from rolegen_jax.pipeline.artifacts import current, saved_config
  from rolegen_jax.serving.http.guard import is_of_loopback, own_names
  from rolegen_jax.serving.http.server import bound, read_token, serve

  workdir = current(_WORKDIR.value)
  config = saved_config(workdir)
  if _TOP.value > config.backbone.beam:
    raise ConfigError(f'--top={_TOP.value}: must be at most backbone.beam={config.backbone.beam}')
  token = read_token(_TOKEN.value) if _TOKEN.value else ''
  listener = bound(_HOST.value, _PORT.value)
  address = listener.getsockname()[0]
  names = own_names(_HOST.value, address, bool(token), _ALLOWED_HOSTS.value)
  # This brings jax, which takes seconds: what is wrong is said before.
  from rolegen_jax.pipeline.serving import Settings, application

  settings = Settings(
    max_batch=_MAX_BATCH.value,
    max_wait=_MAX_WAIT_MS.value / 1e3,
    max_queue=_MAX_QUEUE.value,
    top=_TOP.value,
    cache_bytes=_CACHE_MB.value * 10**6,
    reasoning=_REASONING.value,
    token=token,
    names=names,
  )
  if not token and not is_of_loopback(address):
    say('anybody who reaches this address can change the catalogue: see --auth_token_file')
  serve(application(config, workdir, settings).asgi(), listener)
