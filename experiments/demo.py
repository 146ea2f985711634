"""The simulated shop log at a size that trains in minutes on two CPU cores. SIMULATED data.

  rolegen train --experiment=demo --workdir=runs/demo

Expect five to six minutes on two idle CPU cores, HI@10 of about 35 % on the dormant test targets,
29 % for its backbone without a reasoner, and 36 % for counting, which trains nothing.
docs/simulator.md says what is simulated.
"""

from collections.abc import Callable

from rolegen_jax import config as c


def get_config() -> c.Config:
  model = c.TransformerConfig(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp=160)
  loop_optimizer = c.OptimizerConfig(learning_rate=1e-3, warmup_steps=20)
  return c.Config(
    name='demo',
    semantic_ids=c.SemanticIdConfig(levels=3, codes=32, text='hashed_ngrams'),
    backbone=c.BackboneConfig(temporal=model, context=64, beam=50, dropout=0.3),
    reasoner=c.ReasonerConfig(transformer=model, events=16, role_events=12),
    # The losses are flat from about there on; that of the warmup is not.
    warmup=_stage(400),
    align=_stage(90),
    reason=_stage(130),
    loop_stage=c.StageConfig(40, 16, loop_optimizer, save_every=40),
    calibration=c.CalibrationConfig(examples=800),
    evaluation=c.EvaluationConfig(
      # Those that train cost a closed loop each.
      ablations=('no_reasoner', 'no_language_model'),
      occasions=600,
      sasrec=_sasrec(),
      # Of 0.3, 0.5, 0.7 and 1.0 the largest at which validation HI@10 is not below that of the
      # backbone alone, in any of three seeds.
      exposure_penalty=1.0,
    ),
  )


def sweep(add: Callable[..., None], arg: str = '') -> None:
  """Does a user gain from more worlds? Adds `arg` seeds of each (default 2), over one log."""
  for worlds in (2, 4, 8):
    for seed in range(int(arg or 2)):
      add(f'worlds{worlds}_seed{seed}', f'loop.worlds={worlds}', f'seed={seed}')


def _sasrec() -> c.SasrecConfig:
  """Return what validation NDCG@10 preferred among short runs; it still rises at 900 steps."""
  return c.SasrecConfig(
    widths=(64,),
    blocks=2,
    heads=4,
    context=64,
    learning_rate=2e-3,
    negatives=256,
    full_softmax=0,
    steps=600,
    check_every=150,
  )


def _stage(steps: int) -> c.StageConfig:
  optimizer = c.OptimizerConfig(learning_rate=4e-3, warmup_steps=30)
  return c.StageConfig(steps, 32, optimizer, save_every=100)
