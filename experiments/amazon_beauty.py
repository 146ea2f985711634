"""Amazon Reviews 2014, Beauty 5-core: 22,363 users, leave-one-out, purchases only. REAL data.

  rolegen train --experiment=amazon_beauty --workdir=runs/beauty

Expect about an hour on two CPU cores. With `--set semantic_ids.text=minilm`
(requirements-text.txt), R@10 was .0991 on test, .0902 for the backbone alone, .0894 for SASRec as
published, .0779 for counted transitions and .0677 for TIGER. How to get the log: docs/guide.md.

Histories are nine items long and every time is a rank, so there are no dormant cohorts: this is
the academic yardstick. Nobody buys an item twice, and validation occasions say that no system
should list an item of the history.

`amazon_beauty` is sized for two CPU cores, about 50 epochs; `amazon_beauty:accelerator` for a GPU
or TPU, about 400 epochs, and has not been run; `amazon_beauty:smollm2` has a published language
model reason (experiments/smollm2.py).
"""

import dataclasses

from experiments import alibaba2014, smollm2
from rolegen_jax import config as c

SIZES = ('', 'accelerator', smollm2.NAME)


def get_config(arg: str = '') -> c.Config:
  if arg not in SIZES:
    right = ' or '.join(f'amazon_beauty:{size}'.rstrip(':') for size in SIZES)
    raise c.ConfigError(f'--experiment=amazon_beauty:{arg}: must be {right}')
  base = alibaba2014.get_config()
  warmup = dataclasses.replace(base.warmup, steps=9000, batch=32, save_every=500)
  config = dataclasses.replace(
    base,
    name='amazon_beauty',
    data=c.DataConfig(format='ranked_sequences', path='amazon_beauty', split='leave_one_out'),
    semantic_ids=c.SemanticIdConfig(levels=3, codes=256, text='hashed_ngrams'),
    # Lists of 50 without the user's history: the beam leaves room for the longest of nearly all.
    backbone=dataclasses.replace(base.backbone, context=32, beam=80, dropout=0.5),
    # Fewer transitions and retrieved items lose a percent of hits on validation.
    reasoner=dataclasses.replace(
      base.reasoner, events=16, role_events=8, transitions=32, retrieved=128
    ),
    warmup=warmup,
    calibration=c.CalibrationConfig(examples=4000),
    evaluation=c.EvaluationConfig(ablations=('no_reasoner', *c.AT_RUN_TIME)),
  )
  if arg == smollm2.NAME:
    config = smollm2.with_smollm2(config)
  if arg != 'accelerator':
    return config
  wide = dataclasses.replace(base.backbone.temporal, width=128, head_dim=32, mlp=384)
  return dataclasses.replace(
    config,
    backbone=dataclasses.replace(config.backbone, temporal=wide, depth_layers=2),
    reasoner=dataclasses.replace(config.reasoner, transformer=wide),
    warmup=dataclasses.replace(warmup, steps=9000, batch=256),
  )
