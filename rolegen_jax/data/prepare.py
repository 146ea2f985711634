"""The first stage of every run: the tables of a log -> the indexed log and its occasions."""

from __future__ import annotations

import datetime
import os
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rolegen_jax.config import COHORTS, EVENT_NAMES, DataConfig
from rolegen_jax.data import cold_items
from rolegen_jax.data.adapters import ADAPTERS, fetched_log
from rolegen_jax.data.appending import extended
from rolegen_jax.data.cuts import Cuts, find_cuts
from rolegen_jax.data.events import validate
from rolegen_jax.data.files import DataError, write_json, write_parquet
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import (
  D1,
  D2,
  D3,
  SPLITS,
  TEST,
  TRAIN,
  VALID,
  Occasions,
  find_occasions,
  occasion_times,
)
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say


class RawTables(NamedTuple):
  """A log before it is indexed."""

  events: pl.DataFrame  # as `events.validate` returns them
  items: pl.DataFrame
  left_out: dict[str, int]  # counts of what the adapter left out, by reason
  planted: pl.DataFrame | None  # ground truth by occasion and event; None for real logs
  earlier: InteractionLog | None = None  # the log that these are new days of


def read_tables(data: DataConfig) -> RawTables:
  """Read and validate the real log that `data` names.

  Raises DataError when the log is absent or malformed.
  """
  path = fetched_log(data)
  events, items, left_out = ADAPTERS[data.format](path, data)
  events, items = validate(events, items, f'{path} (events)', f'{path} (items)')
  return RawTables(events, items, left_out, planted=None)


def prepare(
  data: DataConfig, tables: RawTables, folder: str | os.PathLike, cuts: Cuts | None = None
) -> tuple[InteractionLog, Occasions, dict[str, Any]]:
  """Index a log, find its occasions and save both under `folder`; see `prepare_log`."""
  if tables.earlier is None:
    log = InteractionLog.build(tables.events, tables.items)
  else:
    log = extended(tables.earlier, tables.events, tables.items)
  is_cut = tables.earlier is None
  return prepare_log(data, log, folder, cuts, tables.left_out, tables.planted, is_cut)


def prepare_log(
  data: DataConfig,
  log: InteractionLog,
  folder: str | os.PathLike,
  cuts: Cuts | None = None,
  left_out: dict[str, int] | None = None,
  planted: pl.DataFrame | None = None,
  is_cut: bool = True,
) -> tuple[InteractionLog, Occasions, dict[str, Any]]:
  """Find the occasions of a log and save both under `folder`.

  cuts: between the splits; those of the full log where `log` holds only some of its users, see
  `shards.reader.Shards`. None finds them in the log itself.

  left_out, planted: as of RawTables. is_cut: whether the cuts follow the shares that `data` asks
  for, and not the days that were appended.

  Writes the log, occasions.parquet, planted.parquet (simulated data only) and, last,
  notes.json. Returns (log, occasions, notes); notes holds counts: users, items, rows by event,
  occasions and targets by cohort and split, and rows left out, with the reason; and where the cuts
  lie, in seconds, with the time of the first occasion after each. Raises DataError when training or
  test would have no occasion with a context and a target.
  """
  folder = storage.path(folder)
  occasions = find_occasions(log, data, cuts)
  if data.split == 'time' and cuts is None:
    cuts = find_cuts(occasion_times(occasions), data)
  left_out = dict(left_out or {})
  if data.cold_items:
    rows = log.count.sum()
    log, held = cold_items.hold_out(log, occasions, data.cold_items)
    occasions = find_occasions(log, data, cuts)
    left_out[f'training rows of {len(held)} cold items'] = int(rows - log.count.sum())
  check_no_leak(log, occasions)
  _require_occasions(log, occasions)
  notes = _notes(data, log, occasions, cuts, left_out)
  _say(data, notes, is_cut)
  log.save(folder)
  occasions.save(folder)
  if planted is not None:
    write_parquet(planted, folder / 'planted.parquet')
  write_json(notes, folder / 'notes.json')
  return log, occasions, notes


def load_prepared(folder: str | os.PathLike) -> tuple[InteractionLog, Occasions]:
  """Return what `prepare` saved under `folder`.

  Raises DataError when it is missing, damaged or of two different runs.
  """
  log, occasions = InteractionLog.load(folder), Occasions.load(folder)
  check_no_leak(log, occasions)
  return log, occasions


def _require_occasions(log: InteractionLog, occasions: Occasions) -> None:
  has_context = occasions.context_end > log.offsets[occasions.user]
  has_target = np.diff(occasions.target_offsets) > 0
  for split in (TRAIN, TEST):
    if not (has_context & has_target & (occasions.split == split)).any():
      raise DataError(
        f'split {SPLITS[split]!r} has no purchase with an earlier event of the same user; '
        'must have at least one: use a longer log, or change data.test_fraction, '
        'data.valid_fraction or data.split'
      )


def _notes(
  data: DataConfig,
  log: InteractionLog,
  occasions: Occasions,
  cuts: Cuts | None,
  left_out: dict[str, int],
) -> dict[str, Any]:
  n_targets = np.diff(occasions.target_offsets)
  without_context = occasions.context_end == log.offsets[occasions.user]
  parts = [part.log for part in log.parts()]
  by_event = np.zeros(len(EVENT_NAMES), np.int64)
  for part in parts:
    by_event += np.bincount(part.event, part.count, len(EVENT_NAMES)).astype(np.int64)
  return {
    'format': data.format,
    'simulated': data.format == 'simulated',
    'log_digest': log.digest,
    'occasions_digest': occasions.digest,
    'users': len(log.users),
    'items': log.items.height,
    'rows': int(by_event.sum()),
    'rows_after_collapse': len(log.item),
    'rows_by_event': dict(zip(EVENT_NAMES, by_event.tolist())),
    'first_timestamp': int(min(part.timestamp.min() for part in parts)),
    'last_timestamp': int(max(part.timestamp.max() for part in parts)),
    **_split_notes(occasions, cuts),
    'occasions': _by_cohort_and_split(occasions, np.ones_like(n_targets)),
    'targets': _by_cohort_and_split(occasions, n_targets),
    'occasions_without_context': int(without_context.sum()),
    'left_out': left_out,
  }


def _split_notes(occasions: Occasions, cuts: Cuts | None) -> dict[str, Any]:
  """Return where the cuts lie and what share of the dormant occasions each split has.

  Without a dormant occasion the shares are of all occasions with a target.
  """
  chosen = (occasions.cohort == D1) | (occasions.cohort == D2)
  kind = 'dormant occasions'
  if not chosen.any():
    chosen, kind = occasions.cohort != D3, 'occasions'
  counts = np.bincount(occasions.split[chosen], minlength=len(SPLITS))
  shares = counts / max(int(counts.sum()), 1)
  starts = {
    f'{SPLITS[split]}_from': _iso(occasions.timestamp[occasions.split == split].min())
    for split in (VALID, TEST)
    if cuts and (occasions.split == split).any()
  }
  return {
    'train_cut': occasions.train_cut,
    'valid_cut': cuts.valid if cuts else -1,
    **starts,
    'share_of': kind,
    'shares': {SPLITS[split]: round(float(shares[split]), 4) for split in (TRAIN, VALID, TEST)},
  }


def _iso(seconds: int) -> str:
  """Return a time as YYYY-MM-DD, with hh:mm:ss where it is not midnight UTC."""
  time = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
  return time.strftime('%Y-%m-%d %H:%M:%S').removesuffix(' 00:00:00')


def _say(data: DataConfig, notes: dict[str, Any], is_cut: bool) -> None:
  """Say where the cuts lie and what was left out."""
  if not is_cut:
    say(f'data: new days, with purchases from {notes["test_from"]} on')
  elif data.split == 'time':
    shares = ' / '.join(f'{100 * share:.1f}' for share in notes['shares'].values())
    wanted = (1 - data.test_fraction - data.valid_fraction, data.valid_fraction, data.test_fraction)
    asked = ' / '.join(f'{100 * share:.1f}' for share in wanted)
    say(
      f'data: validation from {notes.get("valid_from", "nowhere")}, '
      f'test from {notes["test_from"]}: {shares} % of {notes["share_of"]} (asked for {asked})'
    )
  for reason, count in notes['left_out'].items():
    if count:
      say(f'data: {count} {"row" if count == 1 else "rows"} left out ({reason})')


def _by_cohort_and_split(occasions: Occasions, weights: np.ndarray) -> dict[str, dict[str, int]]:
  """Sum `weights` [O] by cohort name, then split name."""
  table = np.zeros((len(COHORTS), len(SPLITS)), np.int64)
  np.add.at(table, (occasions.cohort, occasions.split), weights)
  return {cohort: dict(zip(SPLITS, row.tolist())) for cohort, row in zip(COHORTS, table)}
