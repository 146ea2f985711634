"""The runs that experiments/benchmarks/quality.py reads: an experiment with every ablation (amazon_beauty: its own), under three seeds. --experiment=quality:NAME

  python -m launch.sweep --experiment=quality:demo --workdir=runs/quality/demo
  python -m launch.sweep --experiment=quality:alibaba2014 --workdir=runs/quality/alibaba2014
  python -m launch.sweep --experiment=quality:taobao_userbehavior_1k --workdir=runs/quality/taobao_userbehavior_1k
  python -m launch.sweep --experiment=quality:amazon_beauty --workdir=runs/quality/amazon_beauty
  python -m experiments.benchmarks.quality --runs=runs/quality

Settings are those of the experiment, chosen on validation occasions; each seed looks at the test occasions once.
"""

import dataclasses
import importlib

from rolegen_jax import config as c

OF = ('demo', 'alibaba2014', 'taobao_userbehavior_1k', 'amazon_beauty')
ONE_ABLATION = ('amazon_beauty',)  # no dormant cohort there: the backbone alone is what it is for
SEEDS = 3


def get_config(arg: str = 'demo') -> c.Config:
  name = arg or 'demo'
  if name not in OF:
    raise c.ConfigError(f'--experiment=quality:{name}: must be one of {", ".join(OF)}')
  base = importlib.import_module(f'experiments.{name}').get_config()
  if name in ONE_ABLATION:
    return base
  return dataclasses.replace(
    base, evaluation=dataclasses.replace(base.evaluation, ablations=tuple(c.ABLATIONS))
  )


def sweep(add, arg: str = '') -> None:
  """As many seeds as `arg` says; three."""
  for seed in range(int(arg or SEEDS)):
    add(f'seed{seed}', f'seed={seed}')
