"""Logs in several files, and their shards made in this process."""

import dataclasses

import numpy as np
import polars as pl
from random_logs import random_tables

from rolegen_jax.config import BackboneConfig, Config, DataConfig
from rolegen_jax.data.shards import convert

WIDTH = 32
ROWS, USERS, FILES = 4000, 90, 5


def config(**data) -> Config:
  return Config(
    data=DataConfig(format='contract', path='log', **data), backbone=BackboneConfig(context=WIDTH)
  )


def write_log(folder, files=FILES, order=0, **kwargs):
  """Write a log with ties and repeated rows, in a random order over `files` files."""
  events, items = random_tables(0, rows=ROWS, users=USERS, **kwargs)
  events = events.with_columns(pl.col('event').cast(pl.String)).sample(
    fraction=1, shuffle=True, seed=order
  )
  (folder / 'events').mkdir(parents=True)
  items.sample(fraction=1, shuffle=True, seed=order).write_parquet(folder / 'items.parquet')
  for number, rows in enumerate(np.array_split(np.arange(ROWS), files)):
    events[rows].write_parquet(folder / f'events/{number}.parquet')
  return folder


def index_of(plan: convert.Plan) -> dict:
  """Run the steps of `convert` in this process and return the index."""
  rows = pl.concat([convert.split(plan, chunk) for chunk in plan.chunks])
  logs = {
    shard: convert.shard_log(plan, rows.filter(pl.col('shard') == shard).drop('shard'))
    for shard in sorted(rows['shard'].unique())
  }
  cuts = convert.global_cuts(plan, [convert.shard_times(plan, log) for log in logs.values()])
  entries = [
    convert.entry(shard, log, convert.make_rows(plan, log, cuts)) for shard, log in logs.items()
  ]
  return convert.make_index(plan, cuts, entries)


def make_plan(folder, chunks) -> convert.Plan:
  return dataclasses.replace(convert.make_plan(config(), folder, 4), chunks=tuple(chunks))
