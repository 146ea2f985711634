"""Amazon Reviews 2014, Beauty 5-core: 22,363 users, leave-one-out, purchases only. REAL data, to be had as README.md says.

Histories are nine items long and every time is a rank, so there are no dormant cohorts here: it is the academic yardstick.
"""

import dataclasses

from experiments import alibaba2014
from rolegen_jax import config as c


def get_config(arg: str = '') -> c.Config:
  base = alibaba2014.get_config(arg)
  return dataclasses.replace(
      base, name='amazon_beauty',
      data=c.DataConfig(format='ranked_sequences', path='amazon_beauty', split='leave_one_out'),
      semantic_ids=c.SemanticIdConfig(levels=3, codes=256),
      backbone=dataclasses.replace(base.backbone, context=32),
      reasoner=dataclasses.replace(base.reasoner, events=16, role_events=8),
      warmup=dataclasses.replace(base.warmup, steps=1500, batch=32),
      evaluation=c.EvaluationConfig(ablations=('no_reasoner',)),
  )
