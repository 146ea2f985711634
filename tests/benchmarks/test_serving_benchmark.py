"""The serving benchmark: its searches and figures; a baseline that lists what it may."""

import json

import numpy as np
import polars as pl
import pytest

from experiments.benchmarks import harness, serving, serving_figures, serving_sides
from rolegen_jax import config as configs
from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.serving.load import plan

SHOP = plan.Shop([1, 2], {1: {}, 2: {}}, 1_700_000_000)
RESULTS = harness.FOLDER / 'serving.json'


@pytest.mark.parametrize('highest', (0.3, 5.0, 37.0))
def test_the_highest_rate_is_between_one_that_held_and_one_that_did_not(monkeypatch, highest):
  def load(url, shop, mix):
    ms = 50.0 if mix.rps <= highest else 500.0
    return None, dict(failed=0, kinds=dict(recommend=dict(latency_ms=dict(p99=ms))))

  monkeypatch.setattr(serving, 'load', load)
  found = serving.highest_rate('', SHOP)
  best = found['rps_within_limit']
  assert best <= highest and all(t['rps'] > highest for t in found['trials'] if t['rps'] > best)
  assert best == 0 if highest < serving.FIRST_RPS else best > 0.8 * highest


def test_a_soak_needs_the_rate_that_it_is_a_share_of():
  with pytest.raises(ConfigError, match='must come after throughput'):
    serving._highest(harness.Store())
  with pytest.raises(ConfigError, match='--sections=souk'):
    serving.measure(harness.Store(), workdir='.', sections=('souk',))


def test_a_server_that_does_not_start_is_told(tmp_path):
  with pytest.raises(ConfigError, match='did not get ready.*no config.json there'):
    with serving_sides.ours(str(tmp_path)):
      pass


def test_requests_are_asked_at_their_times_and_lost_ones_are_kept(monkeypatch):
  monkeypatch.setattr(serving, 'KILL_S', 1.0)
  asked = serving.Asked(SHOP, ('http://127.0.0.1:1',))
  asked.run()
  assert not asked.latencies and len(asked.lost) > 0
  assert all(each.startswith('ConnectionRefusedError') for each in asked.lost)


def test_the_committed_results_have_every_section_its_provenance_and_its_load(tmp_path):
  results = json.loads(RESULTS.read_text(encoding='utf-8'))
  sections = [name.partition(', ') for name in results['points']]
  assert {name for name, _, run in sections if not run} == set(serving.SECTIONS)
  assert {name for name, _, run in sections if run} == {'throughput', 'reasoning'}
  for point in results['points'].values():
    assert point['commit'] and point['when'] and len(point['load_average']) == 2
  assert len(serving_figures.table(results).splitlines()) == len(serving_figures.rows(results))
  serving_figures.plot(results, tmp_path / 'serving.png')
  assert (tmp_path / 'serving.png').stat().st_size < harness.MAX_FIGURE_BYTES
  documented = (harness.ROOT / 'docs' / 'serving.md').read_text(encoding='utf-8')
  assert serving_figures.markdown(results) in documented


def test_the_baseline_has_as_many_weights_and_lists_items(tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  from experiments.benchmarks import serving_t5

  codes = np.array([[0, 1], [0, 2], [1, 0], [2, 2]])
  run = tmp_path / 'run'
  for part in ('semantic_ids', 'data'):
    (run / part).mkdir(parents=True)
  np.savez(run / 'semantic_ids/catalogue.npz', item_ids=np.array([10, 20, 30, 40]), codes=codes)
  config = overrides.apply(
    Config(), ['backbone.beam=4', 'evaluation.ks=(1,4)', 'semantic_ids.codes=8']
  )
  (run / 'config.json').write_text(json.dumps(configs.to_dict(config)), encoding='utf-8')
  events = pl.DataFrame(
    dict(user_id=['a', 'a', 'b'], item_id=[20, 30, 40], event='view', timestamp=[1, 2, 3])
  )
  items = pl.DataFrame(dict(item_id=[10, 20, 30, 40]))
  InteractionLog.build(*validate(events, items)).save(run / 'data')
  model = serving_t5.Model(str(run), 60_000)
  assert abs(model.parameters / 60_000 - 1) < 0.25
  assert set(model.recommend('a', 4)) == {10, 20, 30, 40}
