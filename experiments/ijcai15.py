"""Tmall, the log of the IJCAI-15 contest: 17,242 users, six months, day resolution. REAL data.

  rolegen train --experiment=ijcai15 --workdir=runs/ijcai15

Expect 20 minutes on two CPU cores and HI@10 of 25.7 % on the 1,090 dormant test targets, 25.6 for
the backbone alone and 25.4 for the recency baseline (two seeds; docs/quality.md). How to get the
log: docs/guide.md.

Of the source's clicks there are none: what stands as a view is a favorite, the stronger signal, so
five views make a first conversion and three a reactivation, instead of ten and five. Rows that
repeat were merged, so nobody buys an item twice. 663 of the dormant test targets are cold: nobody
touched them in training, and items have no text. Of these 157 are in the user's own history; of the
other 506, 312 were touched by others by then, which is all that is known of them.
"""

import dataclasses

from experiments import alibaba2014
from rolegen_jax import config as c


def get_config() -> c.Config:
  base = alibaba2014.get_config()
  return dataclasses.replace(
    base,
    name='ijcai15',
    data=c.DataConfig(
      format='contract',
      path='ijcai15',
      first_conversion_min_views=5,
      reactivation_min_views=3,
    ),
    semantic_ids=c.SemanticIdConfig(levels=3, codes=256),
    # 99 of 100 users have at most 36 events.
    backbone=dataclasses.replace(base.backbone, context=64),
    reasoner=dataclasses.replace(base.reasoner, events=16),
    warmup=dataclasses.replace(base.warmup, steps=1000, batch=32),
  )
