"""Alibaba 2014, season 1: 884 users, 123 days, day resolution, item = brand. REAL data.

  rolegen train --experiment=alibaba2014 --workdir=runs/alibaba

Expect 12 to 29 minutes on two CPU cores. Before evidence was multiplied (decision 22), HI@10 was
about 32 % on the 488 dormant test targets, with or without the reasoner; the recency baseline
reaches about 32 % too (docs/quality.md). How to get the log: docs/guide.md.
"""

import dataclasses

from rolegen_jax import config as c


def get_config() -> c.Config:
  model = c.TransformerConfig(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp=160)
  return c.Config(
    name='alibaba2014',
    data=c.DataConfig(format='alibaba2014', path='raw/alibaba2014_t_alibaba_data.csv'),
    semantic_ids=c.SemanticIdConfig(levels=3, codes=64),
    backbone=c.BackboneConfig(temporal=model, context=128, beam=50, dropout=0.3, view_weight=0.5),
    reasoner=c.ReasonerConfig(transformer=model, events=24, role_events=12),
    # 2,631 training conversions: the backbone overfits within a few hundred steps (validation
    # HI@10), so it gets few.
    warmup=_stage(120, 16, 1.5e-3),
    align=_stage(150, 32, 3e-3),
    reason=_stage(200, 32, 2e-3),
    loop_stage=dataclasses.replace(_stage(100, 16, 3e-4), save_every=20),
    # Views weigh a tenth of purchases, as in the backbone. On few validation occasions NDCG@10 is
    # flat long before its noise lets patience run out.
    evaluation=c.EvaluationConfig(sasrec=c.SasrecConfig(view_weight=0.1, steps=6000)),
  )


def _stage(steps: int, batch: int, learning_rate: float) -> c.StageConfig:
  optimizer = c.OptimizerConfig(learning_rate=learning_rate, warmup_steps=50, weight_decay=0.1)
  return c.StageConfig(steps, batch, optimizer, save_every=100)
