"""Taobao UserBehavior, its first 982 users: 9 days, second resolution, category ids. REAL data.

  rolegen train --experiment=taobao_userbehavior_1k --workdir=runs/taobao

Expect 12 to 29 minutes on two CPU cores and HI@10 of 53.7 % on the 149 dormant test targets, with
or without the reasoner, 53.0 for the recency baseline (one seed; docs/quality.md). How to get the
log: docs/guide.md.
"""

import dataclasses

from experiments import alibaba2014
from rolegen_jax import config as c


def get_config() -> c.Config:
  return dataclasses.replace(
    alibaba2014.get_config(),
    name='taobao_userbehavior_1k',
    data=c.DataConfig(
      format='taobao_userbehavior', path='raw/UserBehavior_first100001.csv', max_users=982
    ),
    semantic_ids=c.SemanticIdConfig(levels=3, codes=256),
  )
