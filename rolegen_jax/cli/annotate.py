"""Exchange prompts and answers with an outside LLM that labels the conversions a run learns from.

Of a server in OpenAI's chat-completions format, this command asks by itself, and continues:

  rolegen annotate --workdir=runs/words --examples=200 --endpoint=http://localhost:8000/v1 \\
      --model=NAME --answers=answers.jsonl --output=annotations.jsonl [--dry_run]

Any other LLM is asked by hand:

  rolegen annotate --workdir=runs/words --examples=200 --prompts=prompts.jsonl
  (ask the LLM; write {"id": ..., "answer": ...} for every line to answers.jsonl, or take what a
  batch service returns for requests with `id` as their custom_id)
  rolegen annotate --workdir=runs/words --examples=200 --answers=answers.jsonl \\
      --output=annotations.jsonl

A run learns from the annotations with

  rolegen train --experiment=demo_llm --workdir=runs/words --retrain \\
      --set roles.annotations=annotations.jsonl
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from rolegen_jax.cli.entry import PREEMPTED
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime.progress import say

if TYPE_CHECKING:
  from rolegen_jax.text.endpoint import Endpoint, Prices

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True, urls=True)
_EXAMPLES = flags.DEFINE_integer(
  'examples',
  0,
  'Number of conversions to ask about, evenly drawn; 0 = all that the run learns from.',
  lower_bound=0,
)
_PROMPTS = path_flag('prompts', None, 'JSONL file of prompts to write.', urls=True)
_ANSWERS = path_flag(
  'answers', None, 'JSONL file of answers to the prompts of as many --examples.', urls=True
)
_OUTPUT = path_flag(
  'output',
  None,
  'JSONL file of annotations to write; what was rejected goes to OUTPUT.rejected.jsonl.',
  urls=True,
)
_RETRAIN = flags.DEFINE_bool(
  'retrain',
  False,
  'Train what is missing, and again what was trained with other settings or on other files.',
)

_ENDPOINT = flags.DEFINE_string(
  'endpoint',
  None,
  'URL of a server in the chat-completions format, up to /chat/completions. It is asked for what '
  '--answers does not answer yet.',
)
_MODEL = flags.DEFINE_string('model', None, 'Model to ask, by the name that the server knows.')
_KEY_VARIABLE = flags.DEFINE_string(
  'key_variable',
  'OPENAI_API_KEY',
  'Environment variable with the key of the server, if it has one.',
)
_CONCURRENCY = flags.DEFINE_integer(
  'concurrency', 8, 'Requests under way at a time.', lower_bound=1, upper_bound=1000
)
_RETRIES = flags.DEFINE_integer(
  'retries', 8, 'Retries of a request at most; waits double up to 8 s.', lower_bound=0
)
_TIMEOUT_S = flags.DEFINE_integer('timeout_s', 600, 'Seconds that a request may take.', 1)
_PARAMETERS = flags.DEFINE_string(
  'parameters', '{}', 'JSON object of further fields of each request, e.g. {"temperature": 0}.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only estimate what asking would take.')
_PRICE_IN = flags.DEFINE_float('price_in', None, 'Price of a million prompt tokens.', 0)
_PRICE_OUT = flags.DEFINE_float('price_out', None, 'Price of a million completion tokens.', 0)
_OF_ENDPOINT = (
  *(_MODEL, _KEY_VARIABLE, _CONCURRENCY, _RETRIES, _TIMEOUT_S, _PARAMETERS, _DRY_RUN),
  *(_PRICE_IN, _PRICE_OUT),
)


def main() -> None:
  """Write prompts, ask for answers, or read them, as the flags say."""
  _check_files()
  endpoint, prices = _endpoint(), _prices()
  if endpoint and not _DRY_RUN.value:
    from rolegen_jax.text.endpoint import require_package

    require_package()
  from rolegen_jax.data.files import require_writable
  from rolegen_jax.pipeline.artifacts import saved_config
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.text import annotations
  from rolegen_jax.text.items import ItemWords

  config, retrain = saved_config(_WORKDIR.value), _RETRAIN.value
  run = open_run(config, _WORKDIR.value, may_train=retrain, retrain=retrain)
  run, inputs = prepare_inputs(run)
  table = inputs.conversions.evenly(_EXAMPLES.value)
  words, role_events = ItemWords.of(inputs.log.items), run.config.reasoner.role_events
  if _PROMPTS.value:
    n_prompts = annotations.write_prompts(table, words, role_events, _PROMPTS.value)
    print(f'{n_prompts} prompts -> {_PROMPTS.value}')
    return
  if endpoint:
    from rolegen_jax.text.endpoint import ask, estimate

    prompts = annotations.prompt_rows(table, words, role_events)
    if _DRY_RUN.value:
      print(estimate(endpoint, prompts, _ANSWERS.value, prices))
      return
    require_writable(_OUTPUT.value)
    try:
      print(ask(endpoint, prompts, _ANSWERS.value, prices))
    except KeyboardInterrupt:
      say(f'stopped; answers that came are in {_ANSWERS.value}, the same command asks for the rest')
      sys.exit(PREEMPTED)
  assert _ANSWERS.value and _OUTPUT.value
  summary = annotations.import_answers(table, role_events, _ANSWERS.value, _OUTPUT.value)
  print(f'{summary}\n-> {_OUTPUT.value}')


def _check_files() -> None:
  """Raise ConfigError where the flags do not say what to do."""
  if bool(_PROMPTS.value) == bool(_ANSWERS.value) or bool(_ANSWERS.value) != bool(_OUTPUT.value):
    raise ConfigError(
      '--prompts=FILE writes prompts, --answers=FILE --output=FILE reads answers, and asks for '
      'them with --endpoint=URL: must be one of these'
    )
  if _ANSWERS.value and _OUTPUT.value:
    if os.path.realpath(_ANSWERS.value) == os.path.realpath(_OUTPUT.value):
      raise ConfigError(f'--output={_OUTPUT.value}: is the file of --answers; must be another')


def _endpoint() -> Endpoint | None:
  """Return the server that the flags name, None = none is to be asked. Raises ConfigError."""
  if _ENDPOINT.value is None:
    for flag in _OF_ENDPOINT:
      if flag.present:
        raise ConfigError(f'--{flag.name}: is of no use without --endpoint=URL; must be with it')
    return None
  if _PROMPTS.value:
    raise ConfigError('--endpoint: asks for answers; must be with --answers=FILE --output=FILE')
  if _MODEL.value is None:
    raise ConfigError('--endpoint: needs --model=NAME; must be a model that the server knows')
  if _KEY_VARIABLE.present and not os.environ.get(_KEY_VARIABLE.value):
    raise ConfigError(f'--key_variable={_KEY_VARIABLE.value}: is not set; must hold a key')
  from rolegen_jax.text.endpoint import Endpoint

  return Endpoint(
    _ENDPOINT.value,
    _MODEL.value,
    _KEY_VARIABLE.value,
    _CONCURRENCY.value,
    _RETRIES.value,
    _TIMEOUT_S.value,
    _parameters(),
  ).validated()


def _parameters() -> dict[str, Any]:
  try:
    parameters = json.loads(_PARAMETERS.value)
  except ValueError:
    parameters = None
  if not isinstance(parameters, dict):
    raise ConfigError(
      f'--parameters={_PARAMETERS.value}: must be a JSON object such as {{"temperature": 0}}'
    )
  return parameters


def _prices() -> Prices | None:
  """Return the prices of the flags, None = none are given. Raises ConfigError."""
  given = {flag.name: flag.value for flag in (_PRICE_IN, _PRICE_OUT) if flag.value is not None}
  if not given:
    return None
  if len(given) == 1:
    ((name, price),) = given.items()
    raise ConfigError(
      f'--{name}={price}: must be given together with the other of --price_in and --price_out'
    )
  from rolegen_jax.text.endpoint import Prices

  return Prices(given['price_in'], given['price_out'])
