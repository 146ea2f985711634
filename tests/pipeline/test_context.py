"""What a run is refused for before it begins, and what at the edge of its range makes a run."""

import dataclasses
import json
import os
import random
import shutil

import polars as pl
import pytest

from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data import digests
from rolegen_jax.data.adapters import log_path
from rolegen_jax.data.digests import content_digest
from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_data
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.simulator import world
from tests import tiny

FIELDS = overrides.field_paths(Config())
# All at the least that is allowed.
LEAST = (
  *(f'{model}.{size}=1' for model in ('backbone.temporal', 'reasoner.transformer')
    for size in ('layers', 'width', 'heads', 'kv_heads', 'mlp')),
  'backbone.temporal.head_dim=2',
  'reasoner.transformer.head_dim=2',
  *(f'backbone.{name}=1' for name in ('query_layers', 'depth_layers', 'beam')),
  *(f'reasoner.{name}=1' for name in ('role_events', 'intents', 'intent_levels')),
  *(f'reasoner.{name}=1' for name in ('candidates', 'coarse_codes', 'transitions', 'retrieved')),
  'reasoner.events=2',
  'backbone.context=2',
  'semantic_ids.codes=2',
  'semantic_ids.levels=2',
  'loop.worlds=2',
  'evaluation.ks=(1,)',
)  # fmt: skip


@pytest.mark.parametrize(
  'assignments, message',
  [
    (['warmup.batch=6'], 'warmup.batch=6: must be a multiple of 8, the devices of mesh axes data'),
    (['align.batch=12'], 'align.batch=12: must be a multiple of 8'),
    (['reason.batch=1'], 'reason.batch=1: must be a multiple of 8'),
    (['loop_stage.batch=9'], 'loop_stage.batch=9: must be a multiple of 8'),
    (['evaluation.batch=4'], 'evaluation.batch=4: must be a multiple of 8'),
    # Whoever decodes with whole parameters lays rows over all devices.
    (['mesh.data=4', 'mesh.tensor=2', 'loop_stage.batch=4'], 'loop_stage.batch=4: .* of 8'),
    (['mesh.data=3'], 'mesh=.*: needs 3 devices, there are 8'),
    (['mesh.fsdp=3'], 'mesh=.*: 8 devices cannot be divided by 3'),
    (['mesh.tensor=8', 'mesh.data=1'], "kv_heads=2 cannot be divided over 8 devices"),
  ],
)  # fmt: skip
def test_what_the_devices_do_not_divide_never_reaches_the_disk(tmp_path, assignments, message):
  with pytest.raises(ConfigError, match=message):
    open_run(tiny.config(*assignments), tmp_path / 'run')
  assert not list(tmp_path.iterdir())


def test_a_value_out_of_its_range_never_reaches_the_disk(tmp_path):
  wrong = dataclasses.replace(tiny.config(), loop=dataclasses.replace(Config().loop, worlds=17))
  with pytest.raises(ConfigError, match='loop.worlds=17: must be 2 to 16'):
    open_run(wrong, tmp_path / 'run')
  assert not list(tmp_path.iterdir())


def test_a_complete_stage_may_have_had_any_batch(tmp_path):
  config = tiny.config('warmup.batch=6')
  (tmp_path / 'warmup').mkdir()
  (tmp_path / 'warmup' / 'DONE.json').write_text('{}')
  assert open_run(config, tmp_path, may_train=False).config == config
  with pytest.raises(ConfigError, match='evaluation.batch=4'):
    open_run(tiny.config('warmup.batch=6', 'evaluation.batch=4'), tmp_path, may_train=False)


def test_the_config_of_a_run_has_its_paths_written_out(tmp_path, monkeypatch):
  home = tmp_path / 'home'
  (home / 'shop').mkdir(parents=True)
  for name in ('items', 'events'):
    pl.DataFrame({'item_id': [1]}).write_parquet(home / 'shop' / f'{name}.parquet')
  monkeypatch.setenv('HOME', str(home))
  shop = dataclasses.replace(Config().data, format='contract', path='~/shop')
  run = open_run(dataclasses.replace(tiny.config(), data=shop), tmp_path / 'run')
  assert run.config.data.path == str(home / 'shop')
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['data']['path'] == str(home / 'shop')


def test_the_folder_of_the_logs_is_a_local_path(tmp_path, monkeypatch):
  data = dataclasses.replace(Config().data, format='contract', path='shop')
  (tmp_path / 'logs' / 'shop').mkdir(parents=True)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('ROLEGEN_DATA', '~/logs')
  assert log_path(data) == tmp_path / 'logs' / 'shop'
  monkeypatch.setenv('ROLEGEN_DATA', 'gs://b/logs')
  with pytest.raises(ConfigError, match=r'\$ROLEGEN_DATA=gs://b/logs: must be a file system path'):
    log_path(data)


def test_a_run_is_that_of_its_log_wherever_the_log_was_copied(tmp_path, monkeypatch):
  simulated = world.simulate(tiny.config('simulator.users=300').simulator)
  shop = tmp_path / 'first' / 'shop'
  shop.mkdir(parents=True)
  simulated.events.write_parquet(shop / 'events.parquet')
  simulated.items.write_parquet(shop / 'items.parquet')
  config = tiny.config('data.format=contract', 'data.path=shop')
  monkeypatch.setenv('ROLEGEN_DATA', str(shop.parent))
  monkeypatch.setattr(digests, '_SETTLED_S', -1.0)
  digest = prepare_data(open_run(config, tmp_path / 'run')).log.digest
  kept = json.loads((tmp_path / 'run/data/.files.json').read_text())
  assert set(kept.values()) >= {content_digest(path) for path in shop.iterdir()}
  copy = tmp_path / 'second' / 'shop'
  shutil.copytree(shop, copy, copy_function=shutil.copyfile)
  os.utime(copy / 'items.parquet', (1, 1))
  shutil.rmtree(shop)
  monkeypatch.setenv('ROLEGEN_DATA', str(copy.parent))
  assert prepare_data(open_run(config, tmp_path / 'run', may_train=False)).log.digest == digest
  simulated.events[1:].write_parquet(copy / 'events.parquet')
  with pytest.raises(ConfigError, match='data was made from other files: events.parquet has cha'):
    prepare_data(open_run(config, tmp_path / 'run', may_train=False))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(40))
def test_what_is_accepted_opens_a_run(tmp_path, seed):
  rng = random.Random(seed)
  texts = ['0', '1', '2', '3', '7', '64', '1000', '0.5', '1e-6', 'true', 'false', '()', '(1, 7)']
  opened = 0
  while opened < 3:
    assignments = [f'{rng.choice(FIELDS)}={rng.choice(texts)}' for _ in range(2)]
    try:
      config = tiny.config(*assignments)
      run = open_run(config, tmp_path / str(opened))
    except (ConfigError, DataError) as error:
      names = [a.partition('=')[0].rpartition('.')[2] for a in assignments]
      assert any(name in str(error) for name in [*names, 'mesh=', 'devices']), (assignments, error)
      continue
    assert run.config == config
    opened += 1


@pytest.mark.parametrize(
  'assignments',
  [
    LEAST,
    ('semantic_ids.levels=8', 'reasoner.intent_levels=7', 'reasoner.coarse_codes=8'),
    ('reasoner.text_pieces=1', 'reasoner.train=frozen', 'reasoner.lora.rank=64'),
    ('reasoner.train=lora', "reasoner.lora.targets=('wq',)"),
    ('backbone.temporal.layer_pattern=L', 'backbone.temporal.window=1', 'loop.worlds=16'),
    ('reasoner.transformer.tied=false', 'reasoner.transformer.rope_scaling.kind=llama3'),
  ],
)
def test_the_edges_of_the_ranges_make_models(assignments):
  rolegen = RoleGen(tiny.config(*assignments))
  for name, model_fn in rolegen.model_fns.items():
    shapes = functional.flatten(functional.abstract(model_fn)[1])
    assert all(shape.size for shape in shapes.values()), name
