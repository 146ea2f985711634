"""The benchmark of THE step: its tables and picture from small results, and both source trees really run."""

import os
import subprocess

import pytest

from experiments.benchmarks import step_parts as lib
from experiments.benchmarks import step_plot
from rolegen_jax.config import ConfigError

PHASES = ('rollout', 'execution', 'reflection', 'other')


def made(scale: float, unknown: str = '') -> dict:
  """A small file as compile_check writes them."""
  phases = {p: dict(link=4.0 * scale, network=1.0, kinds={'all-gather': 2, 'all-reduce': 1}) for p in PHASES}
  roof = {p: dict(flops=scale, roof=0.1 * scale, bound='compute') for p in PHASES}
  memory = dict(arguments=1, temporaries=2**30 * scale, code=1, total=4, hbm=8, outputs=0, aliased=0)
  step = dict(mesh={}, compile_seconds=1.0, memory=memory, collectives=dict(unknown=unknown, phases=phases), roofline=dict(phases=roof, seconds=0.4 * scale, mfu_at_roof=0.5))
  return dict(topology='tpu:v5e:2x2', config=dict(loop_stage=dict(batch=8)), when='now', versions={}, programs=[step])


def result() -> dict:
  run = lambda s: dict(median_s=s, quartiles_s=[0.9 * s, 1.2 * s], temporaries=2**20, losses=[1.0])
  sides = {name: lib.essential(made(1.0 + i)) for i, name in enumerate(lib.SIDES)}
  return dict(compiled=dict(sides=sides), measured=dict(demo=dict(sides=dict(before=run(0.2), after=run(0.1)), ratio=2.0)))


def test_what_is_compared():
  found = lib.essential(made(2.0))
  assert found['sent']['rollout'] == 9.0 and found['collectives']['other'] == 3 and found['memory']['temporaries'] == 2**31
  with pytest.raises(ConfigError, match='collectives are unknown, why'):
    lib.essential(made(1.0, unknown='why'))


def test_table_and_picture(tmp_path):
  text = lib.table(result())
  assert '1.00 GiB' in text and 'before / after 2.00' in text
  for part in (result(), {'compiled': result()['compiled']}, {'measured': result()['measured']}):
    picture = tmp_path / 'step.png'
    step_plot.draw(part, picture)
    assert 2_000 < picture.stat().st_size < 200_000


@pytest.mark.skipif('ROLEGEN_SLOW' not in os.environ, reason='compiles the step of two source trees, three minutes: ROLEGEN_SLOW=1 runs it')
def test_both_trees_run_the_same_step():
  """The commit before and this one: the same loss of the first step, from the same parameters and cases, but for rounding."""
  if subprocess.run(['git', 'cat-file', '-e', lib.BEFORE], cwd=lib.ROOT, capture_output=True, check=False).returncode:
    pytest.skip(f'commit {lib.BEFORE} is not in this checkout')
  sizes = ('width=16', 'heads=2', 'kv_heads=1', 'head_dim=8', 'mlp=16', 'layers=1')
  small = [f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in sizes]
  small += ['semantic_ids.codes=8', 'backbone.context=8', 'reasoner.events=4', 'reasoner.role_events=2', 'reasoner.candidates=1', 'loop_stage.batch=2']
  found = lib.measured('demo', 40, 3, tuple(small))
  before, after = (found['sides'][name] for name in ('before', 'after'))
  assert after['losses'][0] == pytest.approx(before['losses'][0], rel=1e-5)
  assert len(after['seconds']) == 3 and found['ratio'] > 0 and before['temporaries'] > 0
