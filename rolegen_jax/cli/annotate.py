"""Prompts for an outside LLM about the conversions that a run learns from, and its answers as annotations that the run reads.

python -m rolegen_jax annotate --workdir=runs/demo_llm --prompts=prompts.jsonl --cases=200
(ask; write {"id": ..., "answer": ...} for every line of prompts.jsonl to answers.jsonl)
python -m rolegen_jax annotate --workdir=runs/demo_llm --cases=200 --answers=answers.jsonl --output=annotations.jsonl
python -m rolegen_jax train --experiment=demo_llm --workdir=runs/demo_llm --set roles.annotations=annotations.jsonl
"""

from absl import flags

from rolegen_jax.config import ConfigError

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run of rolegen train.', required=True)
_CASES = flags.DEFINE_integer(
  'examples',
  0,
  'Conversions that are asked about, evenly drawn; 0 = all that the run learns from.',
  lower_bound=0,
)
_PROMPTS = flags.DEFINE_string('prompts', None, 'JSONL file of prompts to write.')
_ANSWERS = flags.DEFINE_string(
  'answers', None, 'JSONL file of answers to the prompts of as many --examples.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'JSONL file of annotations to write; what was rejected goes to OUTPUT.rejected.jsonl.',
)


def main() -> None:
  if bool(_PROMPTS.value) == bool(_ANSWERS.value) or bool(_ANSWERS.value) != bool(_OUTPUT.value):
    raise ConfigError(
      '--prompts=FILE writes prompts, --answers=FILE --output=FILE reads answers: must be one of the two'
    )
  from rolegen_jax.pipeline.run import Run, saved_config
  from rolegen_jax.text import annotations
  from rolegen_jax.text.items import ItemWords

  run = Run(saved_config(_WORKDIR.value), _WORKDIR.value)
  table, last = run.bare_examples.evenly(_CASES.value), run.config.reasoner.role_events
  if _PROMPTS.value:
    words = ItemWords.of(run.data[0].items)
    print(
      f'{annotations.write_prompts(table, words, last, _PROMPTS.value)} prompts -> {_PROMPTS.value}'
    )
    return
  kept, rejected = annotations.read_answers(table, last, _ANSWERS.value)
  annotations.write_lines(kept, _OUTPUT.value)
  annotations.write_lines((r._asdict() for r in rejected), f'{_OUTPUT.value}.rejected.jsonl')
  print(f'{annotations.summary(rejected, len(kept))}\n-> {_OUTPUT.value}')
