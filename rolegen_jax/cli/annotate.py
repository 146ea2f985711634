"""Exchange prompts and answers with an outside LLM that labels the conversions a run learns from.

  rolegen annotate --workdir=runs/words --examples=200 --prompts=prompts.jsonl
  (ask the LLM; write {"id": ..., "answer": ...} for every line to answers.jsonl, or take what a
  batch service returns for requests with `id` as their custom_id)
  rolegen annotate --workdir=runs/words --examples=200 --answers=answers.jsonl \\
      --output=annotations.jsonl
  rolegen train --experiment=demo_llm --workdir=runs/words --retrain \\
      --set roles.annotations=annotations.jsonl
"""

import os

from absl import flags

from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True)
_EXAMPLES = flags.DEFINE_integer(
  'examples',
  0,
  'Number of conversions to ask about, evenly drawn; 0 = all that the run learns from.',
  lower_bound=0,
)
_PROMPTS = path_flag('prompts', None, 'JSONL file of prompts to write.')
_ANSWERS = path_flag('answers', None, 'JSONL file of answers to the prompts of as many --examples.')
_OUTPUT = path_flag(
  'output',
  None,
  'JSONL file of annotations to write; what was rejected goes to OUTPUT.rejected.jsonl.',
)

_RETRAIN = flags.DEFINE_bool(
  'retrain',
  False,
  'Train what is missing, and again what was trained with other settings or on other files.',
)


def main() -> None:
  """Write prompts, or read answers, as the flags say."""
  if bool(_PROMPTS.value) == bool(_ANSWERS.value) or bool(_ANSWERS.value) != bool(_OUTPUT.value):
    raise ConfigError(
      '--prompts=FILE writes prompts, --answers=FILE --output=FILE reads answers: '
      'must be one of the two'
    )
  if _ANSWERS.value and _OUTPUT.value:
    if os.path.realpath(_ANSWERS.value) == os.path.realpath(_OUTPUT.value):
      raise ConfigError(f'--output={_OUTPUT.value}: is the file of --answers; must be another')
  from rolegen_jax.pipeline.artifacts import saved_config
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.text import annotations
  from rolegen_jax.text.items import ItemWords

  config, retrain = saved_config(_WORKDIR.value), _RETRAIN.value
  run = open_run(config, _WORKDIR.value, may_train=retrain, retrain=retrain)
  run, inputs = prepare_inputs(run)
  table = inputs.conversions.evenly(_EXAMPLES.value)
  role_events = run.config.reasoner.role_events
  if _PROMPTS.value:
    words = ItemWords.of(inputs.log.items)
    n_prompts = annotations.write_prompts(table, words, role_events, _PROMPTS.value)
    print(f'{n_prompts} prompts -> {_PROMPTS.value}')
    return
  assert _ANSWERS.value and _OUTPUT.value
  summary = annotations.import_answers(table, role_events, _ANSWERS.value, _OUTPUT.value)
  print(f'{summary}\n-> {_OUTPUT.value}')
