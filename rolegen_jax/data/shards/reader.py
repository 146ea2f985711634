"""Read shards: packed training rows by number, from files that are mapped, never loaded in full.

A grain random-access source: `len(shards)` rows, `shards[i]` is one of them. Training reads batches
by `shards.rows`, which is what `loader.Batches` asks for, so the position in the data stays one
integer at any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Trajectories, pack_windows, packed_rows
from rolegen_jax.data.cuts import Cuts
from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.data.folders import Fingerprint, differing
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.data.recent import Recent
from rolegen_jax.data.shards.convert import DEFAULTS, FORMAT, catalogue_digest, row_type, settings
from rolegen_jax.runtime import mirror
from rolegen_jax.runtime.progress import progress

_EXPECTED = 'shards that rolegen prepare_shards wrote'


class Shards:
  """N rows of n events over the shards of one folder. `index` is its index.json."""

  def __init__(self, folder: str | os.PathLike) -> None:
    """Open the folder.

    Raises DataError when it is incomplete, or a file is missing or of another size.
    """
    self.folder = mirror.fetch(mirror.opened(folder))
    path = self.folder / 'index.json'
    with as_data_error(path, f'{_EXPECTED} to the end; the same command continues'):
      self.index = json.loads(path.read_text(encoding='utf-8'))
      if self.index['format'] != FORMAT:
        raise DataError(
          f'{path}: has format {self.index["format"]}; must be {FORMAT}: prepare the shards again'
        )
      self._row_type = row_type(self.index['width'])
      self._starts = np.cumsum([0] + [entry['rows'] for entry in self.index['shards']])
    self._mapped = [self._open(entry) for entry in self.index['shards']]

  def _open(self, entry: dict[str, Any]) -> np.ndarray:
    """Map the rows of a shard, uint8 [rows, bytes of a row]."""
    path = self.folder / entry['file']
    row_bytes = self._row_type.itemsize
    with as_data_error(path, f'one of the {_EXPECTED}'):
      rows = np.load(path, mmap_mode='r')
      if rows.dtype != self._row_type or rows.shape != (entry['rows'],):
        raise DataError(
          f'{path}: has {rows.shape} rows of {rows.dtype.itemsize} bytes; '
          f'must have {entry["rows"]} of {row_bytes}'
        )
      return np.ndarray((entry['rows'], row_bytes), np.uint8, rows)

  @property
  def digest(self) -> str:
    """16 hex digits over the content of all shards and the settings that they were made with."""
    return self.index['digest']

  @property
  def cuts(self) -> Cuts | None:
    """The cuts between the splits of the full log; None when it is split by user."""
    return self.index['cuts'] and Cuts(**self.index['cuts'])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, number: int) -> Trajectories:
    """Return one row, arrays [n]."""
    if not -len(self) <= number < len(self):
      raise IndexError(f'row {number} of {len(self)}')
    return Trajectories(*(field[0] for field in self.rows(np.array([number % len(self)]))))

  def rows(self, numbers: np.ndarray) -> Trajectories:
    """Return the rows of these numbers, int32 [B, n].

    They are what `batches.packed_rows` gives for a log in memory.
    """
    raw = np.empty((len(numbers), self._row_type.itemsize), np.uint8)
    shards = np.searchsorted(self._starts, numbers, side='right') - 1
    rows_in_shard = numbers - self._starts[shards]
    for i, (shard, row) in enumerate(zip(shards.tolist(), rows_in_shard.tolist())):
      raw[i] = self._mapped[shard][row]
    rows = raw.view(self._row_type)[:, 0]
    return Trajectories(*(rows[name].astype(np.int32) for name in Trajectories._fields))

  def check(self, config: Config, item_ids: pl.Series) -> None:
    """Check that these shards fit a run.

    item_ids: those of the log that is trained on, sorted. Raises ConfigError naming the first
    setting that the shards were made with otherwise, DataError for other items.
    """
    shard_settings = DEFAULTS | self.index['settings']
    for name, value in settings(config).items():
      if shard_settings[name] != value:
        raise ConfigError(
          f'{name}={value!r}: the shards in {self.folder} were made with '
          f'{shard_settings[name]!r}; must be the same'
        )
    if catalogue_digest(item_ids) != self.index['items_digest']:
      raise DataError(
        f'{self.folder}: was made with another items.parquet ({self.index["items"]} items, '
        f'the log has {len(item_ids)}); must be the same'
      )

  def check_files(self, files: Fingerprint) -> None:
    """Check that the log is the one that these shards were made of, by paths and content.

    files: of the log, as `folders.fingerprint` returns them; of older shards sizes are compared.
    Raises DataError naming the first file that differs.
    """
    difference = differing(files, self.index['files'])
    if difference:
      raise DataError(
        f'{self.folder}: was made of another state of the log: {difference}; '
        'prepare the shards again'
      )

  def verify(self) -> None:
    """Read every byte.

    Raises DataError naming the first file whose content is not what was written.
    """
    for entry, rows in zip(progress(self.index['shards'], 'verify'), self._mapped):
      if hashlib.sha256(rows.data).hexdigest() != entry['sha256']:
        raise DataError(
          f'{self.folder / entry["file"]}: its content is not what was written; '
          'prepare the shards again'
        )


def training_rows(
  config: Config,
  log: InteractionLog,
  occasions: Occasions,
  shards: Shards | None,
  recent: Recent | None = None,
) -> tuple[int, Callable[[np.ndarray], Trajectories]]:
  """Return the number of packed training rows and a function that gives rows by number.

  They come from `shards`, which hold the full log, or from `log` itself. With shards, `log` may
  hold some of the users; its `occasions` must have been found under `shards.cuts`. `recent` says
  which rows of the log, None = all. Raises ConfigError or DataError when the shards were made with
  other settings or items.
  """
  if shards is not None:
    shards.check(config, log.items['item_id'])
    return len(shards), shards.rows
  width = config.backbone.context
  pick = None if recent is None else lambda last_row: recent.pick(log.timestamp[last_row])
  packed = pack_windows(log.offsets, occasions.train_end(log), width, pick)

  def rows_of(numbers: np.ndarray) -> Trajectories:
    return packed_rows(log, packed, numbers, width)

  return int(packed[0].max()) + 1, rows_of
