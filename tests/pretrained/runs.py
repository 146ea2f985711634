"""Settings of a run that is small enough for a test and starts from a pretrained folder."""

from rolegen_jax.config import Config
from rolegen_jax.overrides import apply
from tests import tiny

SMALL = (
  *(f'backbone.temporal.{size}' for size in tiny.SIZES),
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'semantic_ids.collaborative_dim=8',
  'backbone.context=16',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'roles.max_conversions=64',
  *(
    f'{stage}.{size}'
    for stage in ('warmup', 'align', 'reason')
    for size in ('steps=2', 'batch=8', 'save_every=2')
  ),
)


def config(folder, *assignments: str) -> Config:
  return apply(Config(), [*SMALL, f'reasoner.pretrained={folder}', *assignments])
