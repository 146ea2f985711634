"""The benchmark of daily updates: the days that it writes, and what it says of stored results."""

import json

import polars as pl

from experiments.benchmarks import harness, updates
from rolegen_jax.config import SimulatorConfig

DAYS = 2


def test_days_add_up_and_items_come_on_their_day(tmp_path):
  simulator = SimulatorConfig(users=60, items=80, categories=8)
  log = updates.write_days(tmp_path, simulator, 60, DAYS)

  def events(name):
    return pl.read_parquet(tmp_path / name / 'events.parquet')

  for n in range(1, DAYS + 1):
    longer = pl.concat([events(f'before_{n}'), events(f'day_{n}')])
    assert longer.sort(pl.all()).equals(events(f'before_{n + 1}').sort(pl.all()))
    assert log['events'][f'day_{n}'] == events(f'day_{n}').height
  assert events('before_1')['timestamp'].max() < events('day_1')['timestamp'].min()
  ids = [
    set(pl.read_parquet(tmp_path / name / 'items.parquet')['item_id'])
    for name in ('before_1', 'day_1', 'day_2', 'rest')
  ]
  assert sum(map(len, ids)) == len(set.union(*ids))  # each item comes once
  assert ids[1] or ids[2]
  assert set(events('day_1')['item_id']) <= ids[0] | ids[1]


def test_the_stored_results_are_told_and_drawn(tmp_path):
  path = harness.FOLDER / 'updates.json'
  results = json.loads(path.read_text(encoding='utf-8'))
  lines = updates.table(results).splitlines()
  assert len(lines) == 1 + 10 + 1 + 1 + 4 and lines[-5].startswith('an update takes 26 % of the ')
  assert harness.draw('updates', updates.plot, path, tmp_path) == [tmp_path / 'updates.png']
