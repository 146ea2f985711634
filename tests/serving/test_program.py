"""The decoder as StableHLO: what runs without the package recommends the same."""

import hashlib
import json
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.examples import inference_examples
from rolegen_jax.data.files import DataError
from rolegen_jax.reasoning.predict import predict
from rolegen_jax.serving import program

EXAMPLE = pathlib.Path(__file__).parents[2] / 'docs' / 'run_decoder.py'
USER = 5


@pytest.fixture(scope='module')
def decoder(shop_at_start):
  trained, inputs = shop_at_start.trained, shop_at_start.inputs
  ids = inputs.log.items['item_id'].to_list()
  return program.Decoder(trained.rolegen, trained.params, inputs.trie, inputs.excitation, ids)


def test_a_plain_program_over_the_tables_recommends_the_same(shop_at_start, decoder, tmp_path):
  """docs/run_decoder.py knows the folder and jax alone; `predict` is what `recommend` lists by."""
  manifest = program.write(decoder, tmp_path, ['cpu'], [1])
  log, config, run = shop_at_start.inputs.log, shop_at_start.run.config, shop_at_start.run
  start, end = log.offsets[USER : USER + 2]
  time = int(log.timestamp.max()) + 1
  table = inference_examples(
    log,
    np.array([USER], np.int32),
    log.offsets[USER + 1 : USER + 2],
    np.array([time]),
    config.reasoner.role_events,
    config.reasoner.candidates,
    decoder.excitation,
  )
  expected = predict(
    decoder.rolegen, decoder.params, table, decoder.trie, run.mesh, config.backbone.beam
  )

  rows = np.repeat(np.arange(start, end), log.count[start:end])
  request = dict(
    events=[
      dict(
        item_id=decoder.item_ids[log.item[row]],
        event=EVENT_NAMES[log.event[row]],
        timestamp=int(log.timestamp[row]),
      )
      for row in np.random.default_rng(0).permutation(rows)
    ],
    time=time,
    fold=USER % manifest['folds'],
  )
  # Without the package on the path, and in a folder that has none.
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  ended = subprocess.run(
    [sys.executable, '-P', EXAMPLE, tmp_path, 'cpu'],
    input=json.dumps(request),
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=environment,
  )
  assert ended.returncode == 0, ended.stderr
  found = [json.loads(line) for line in ended.stdout.splitlines()]
  items = expected.item[0][expected.item[0] >= 0]
  assert [each['item_id'] for each in found] == [decoder.item_ids[item] for item in items]
  scores = [each['log_prob'] for each in found]
  np.testing.assert_allclose(scores, expected.score[0, : len(items)], atol=1e-4)


def test_the_example_is_short_and_imports_nothing_of_the_package():
  text = EXAMPLE.read_text(encoding='utf-8')
  code = text.split('"""')[2]
  assert 'rolegen' not in code and len([line for line in code.splitlines() if line.strip()]) <= 40


def test_the_example_says_what_a_request_is_and_for_which_platforms_there_are_programs(
  tmp_path, monkeypatch
):
  request = EXAMPLE.read_text(encoding='utf-8').split('\n\n')[3]
  asked = json.loads(request)
  assert {event['event'] for event in asked['events']} <= {*EVENT_NAMES} and asked['fold'] == 0
  pages = EXAMPLE.with_name('serving.md').read_text(encoding='utf-8')
  assert any(json.loads(each) == asked for each in pages.split('```')[1::2] if '"fold"' in each)
  programs = [dict(platform=name, batch=1) for name in ('tpu', 'cpu')]
  (tmp_path / 'manifest.json').write_text(json.dumps(dict(programs=programs)))
  monkeypatch.setattr(sys, 'argv', ['run_decoder.py', str(tmp_path), 'gpu'])
  with pytest.raises(SystemExit, match=r"has no program for 'gpu'; must be one of cpu, tpu$"):
    runpy.run_path(str(EXAMPLE))


def test_the_manifest_names_every_file_by_its_hash_and_every_table(decoder, tmp_path):
  (tmp_path / 'decoder.tpu.8').write_bytes(b'of an older export')
  manifest = program.write(decoder, tmp_path, ['cuda'], [2])
  assert json.loads((tmp_path / 'manifest.json').read_text()) == manifest
  files = {path.name for path in tmp_path.iterdir()} - {'manifest.json'}
  assert files == set(manifest['files']) == {'decoder.cuda.2', 'tables.npz', 'items.npz'}
  for name, file in manifest['files'].items():
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == file['sha256']
  exported = jax.export.deserialize(bytearray((tmp_path / 'decoder.cuda.2').read_bytes()))
  assert exported.platforms == ('cuda',) and exported.nr_devices == 1
  assert exported.calling_convention_version == manifest['programs'][0]['calling_convention']
  with np.load(tmp_path / 'tables.npz', allow_pickle=False) as tables:
    for name, table in manifest['tables'].items():
      assert (list(tables[name].shape), str(tables[name].dtype)) == (table['shape'], table['dtype'])
  # The program holds no weights.
  assert manifest['files']['decoder.cuda.2']['bytes'] < 1_000_000
  assert manifest['versions']['jax'] == jax.__version__ and '6 months' in manifest['promises']


def test_a_folder_of_other_files_is_left_alone(decoder, tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  with pytest.raises(DataError, match='holds other files; must be a new or empty folder'):
    program.require_folder(tmp_path)
  (tmp_path / 'thesis.txt').unlink()
  (tmp_path / 'decoder.cpu.1').touch()  # of an export that was cut off
  program.require_folder(tmp_path)
  (tmp_path / 'manifest.json').write_text('{"programs": []}')
  program.require_folder(tmp_path)
  (tmp_path / 'decoder.py').touch()
  with pytest.raises(DataError, match='holds other files'):
    program.require_folder(tmp_path)
  (tmp_path / 'decoder.py').unlink()
  (tmp_path / 'manifest.json').write_text('{"name": "a web app"}')
  with pytest.raises(DataError, match='holds other files'):
    program.require_folder(tmp_path)
  program.require_folder(tmp_path / 'new')
