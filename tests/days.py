"""A simulated log cut by time: a first part to train on, and days that come later."""

import pathlib

import polars as pl

from rolegen_jax.config import SimulatorConfig
from rolegen_jax.simulator import world

DAY = 86_400


def simulated(config: SimulatorConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
  """The events of a simulated log with the day of each, counted from the first, and its items."""
  log = world.simulate(config)
  first = log.events['timestamp'].min()
  return log.events.with_columns(day=(pl.col('timestamp') - first) // DAY), log.items


def write(folder: pathlib.Path, events: pl.DataFrame, items: pl.DataFrame) -> pathlib.Path:
  """Write a log of the contract."""
  folder.mkdir(parents=True)
  events.drop('day', strict=False).write_parquet(folder / 'events.parquet')
  items.write_parquet(folder / 'items.parquet')
  return folder


def cut(
  folder: pathlib.Path, config: SimulatorConfig, start: int, days: list[int]
) -> list[pathlib.Path]:
  """Write the log before day `start`, and the spans from each of `days` to the next, as folders.

  The items of a folder are those that no earlier folder touched. Every eighth item comes with day
  `start`; what was done with it before is left out.
  """
  events, items = simulated(config)
  events = events.filter((pl.col('item_id') % 8 != 1) | (pl.col('day') >= start))
  known = pl.Series([], dtype=items.schema['item_id'])
  folders = []
  for begin, end in zip([0, start, *days], [start, *days]):
    part = events.filter(pl.col('day').is_between(begin, end - 1))
    touched = part['item_id'].unique()
    new = touched.filter(~touched.is_in(known.implode()))
    known = pl.concat([known, new])
    new_items = items.filter(pl.col('item_id').is_in(new.implode()))
    folders.append(write(folder / f'{end:03}', part, new_items))
  return folders
