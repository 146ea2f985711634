"""Settings of the experiment `demo` at the smallest size that runs every stage."""

STAGE_SECTIONS = ('warmup', 'align', 'reason', 'loop_stage')  # of the config
LAYER_SIZES = ('layers=1', 'width=16', 'heads=2', 'kv_heads=2', 'head_dim=8', 'mlp=16')
SIZES = (
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'semantic_ids.levels=2',
  'semantic_ids.iterations=2',
  'backbone.context=16',
  'backbone.beam=10',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'reasoner.candidates=2',
  'loop.worlds=2',
  'evaluation.ks=(1,10)',
  'evaluation.bootstrap=20',
)


def settings(*more: str) -> list[str]:
  """Return the assignments of the small sizes, then `more`."""
  transformers = ('backbone.temporal', 'reasoner.transformer')
  layers = [f'{part}.{size}' for part in transformers for size in LAYER_SIZES]
  return [*layers, *SIZES, *more]


def set_flags(assignments: list[str]) -> list[str]:
  return [f'--set={assignment}' for assignment in assignments]
