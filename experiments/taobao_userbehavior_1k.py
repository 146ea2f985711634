"""Taobao UserBehavior, its first 982 users: 9 days, second resolution, category ids. REAL data, to be had as README.md says."""

import dataclasses

from experiments import alibaba2014
from rolegen_jax import config as c


def get_config(arg: str = '') -> c.Config:
  base = alibaba2014.get_config(arg)
  return dataclasses.replace(
    base,
    name='taobao_userbehavior_1k',
    data=c.DataConfig(
      format='taobao_userbehavior', path='raw/UserBehavior_first100001.csv', max_users=982
    ),
    semantic_ids=c.SemanticIdConfig(levels=3, codes=256),
  )
