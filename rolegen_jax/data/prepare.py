"""The first stage of every run: a log in any format -> the indexed log and its occasions, in one folder."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import polars as pl

from rolegen_jax.config import COHORTS, EVENT_NAMES, Config
from rolegen_jax.data.adapters import ADAPTERS, log_path
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError, write_json, write_parquet
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import SPLITS, TEST, TRAIN, Cuts, Occasions, find_occasions


def prepare(
  config: Config, folder: str | os.PathLike, cuts: Cuts | None = None
) -> tuple[InteractionLog, Occasions, dict]:
  """Reads the log that `config.data` names, validates and indexes it, finds its occasions and saves all under `folder`.

  `cuts` between the splits: those of the whole log when `config.data` takes only some users of it, see `shard_reader.Shards`.

  Writes log_*.parquet, occasions.parquet, planted.parquet (ground truth, simulated data only) and, last, notes.json.
  Returns (log, occasions, notes); notes holds counts: users, items, rows by event, occasions and targets by cohort and
  split, and what the adapter left out. Raises DataError when the log is absent or malformed, or when training or test
  would have no occasion with a context and a target.
  """
  folder = pathlib.Path(folder)
  events, items, left_out, planted = _tables(config)
  log = InteractionLog.build(events, items)
  occasions = find_occasions(log, config.data, cuts)
  check_no_leak(log, occasions)
  _need_occasions(log, occasions)
  notes = _notes(config, log, occasions, left_out)
  log.save(folder)
  occasions.save(folder)
  if planted is not None:
    write_parquet(planted, folder / 'planted.parquet')
  write_json(notes, folder / 'notes.json')
  return log, occasions, notes


def load_prepared(folder: str | os.PathLike) -> tuple[InteractionLog, Occasions]:
  """What `prepare` saved under `folder`. Raises DataError when it is missing, damaged or of two different runs."""
  log, occasions = InteractionLog.load(folder), Occasions.load(folder)
  check_no_leak(log, occasions)
  return log, occasions


def _tables(
  config: Config,
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int], pl.DataFrame | None]:
  """(events, items, counts of what was left out, planted truth or None), the first two validated."""
  if config.data.format == 'simulated':
    from rolegen_jax.simulator import world

    simulated = world.simulate(config.simulator)
    events, items = validate(
      simulated.events, simulated.items, 'simulated events', 'simulated items'
    )
    return events, items, {}, simulated.planted
  path = log_path(config.data)
  events, items, left_out = ADAPTERS[config.data.format](path, config.data)
  events, items = validate(events, items, f'{path} (events)', f'{path} (items)')
  return events, items, left_out, None


def _need_occasions(log: InteractionLog, occasions: Occasions) -> None:
  usable = (occasions.context_end > log.offsets[occasions.user]) & (
    np.diff(occasions.target_offsets) > 0
  )
  for split in (TRAIN, TEST):
    if not (usable & (occasions.split == split)).any():
      raise DataError(
        f'split {SPLITS[split]!r} has no purchase with an earlier event of the same user; must have at least one: '
        'use a longer log, or change data.test_fraction, data.valid_fraction or data.split'
      )


def _notes(
  config: Config, log: InteractionLog, occasions: Occasions, left_out: dict[str, int]
) -> dict:
  targets = np.diff(occasions.target_offsets)
  empty = occasions.context_end == log.offsets[occasions.user]

  def by_cohort(weights: np.ndarray) -> dict[str, dict[str, int]]:
    table = np.zeros((len(COHORTS), len(SPLITS)), np.int64)
    np.add.at(table, (occasions.cohort, occasions.split), weights)
    return {cohort: dict(zip(SPLITS, row.tolist())) for cohort, row in zip(COHORTS, table)}

  by_event = np.bincount(log.event, weights=log.count, minlength=len(EVENT_NAMES)).astype(int)
  return {
    'format': config.data.format,
    'simulated': config.data.format == 'simulated',
    'log_digest': log.digest,
    'occasions_digest': occasions.digest,
    'users': len(log.users),
    'items': log.items.height,
    'rows': int(log.count.sum()),
    'rows_after_collapse': len(log.item),
    'rows_by_event': dict(zip(EVENT_NAMES, by_event.tolist())),
    'first_timestamp': int(log.timestamp.min()),
    'last_timestamp': int(log.timestamp.max()),
    'train_cut': occasions.train_cut,
    'occasions': by_cohort(np.ones_like(targets)),
    'targets': by_cohort(targets),
    'occasions_without_context': int(empty.sum()),
    'left_out': left_out,
  }
