"""Reading shards: packed training rows by number, from files that are mapped and never loaded whole.

A grain random-access source: `len(shards)` rows, `shards[i]` is one of them. Training reads batches by `shards.rows`, which
is what `pipeline.Batches` asks for, so the position in the data stays one integer at any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
import polars as pl

from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Trajectories, pack_windows, packed_rows
from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Cuts, Occasions
from rolegen_jax.data.shards.convert import FORMAT, catalogue_digest, row_type, settings
from rolegen_jax.runtime.progress import progress

_RIGHT = 'shards that rolegen prepare_shards wrote'


class Shards:
  """N rows of n events over the shards of one folder. `index` is its index.json."""

  def __init__(self, folder: str | os.PathLike):
    """Opens the folder. Raises DataError when it is incomplete, or a file is missing or of another size."""
    self.folder = pathlib.Path(folder)
    path = self.folder / 'index.json'
    with as_data_error(path, f'{_RIGHT} to the end; the same command continues'):
      self.index = json.loads(path.read_text(encoding='utf-8'))
      if self.index['format'] != FORMAT:
        raise DataError(
          f'{path}: has format {self.index["format"]}; must be {FORMAT}: prepare the shards again'
        )
      self._type = row_type(self.index['width'])
      self._starts = np.cumsum([0] + [entry['rows'] for entry in self.index['shards']])
    self._rows = [self._open(entry) for entry in self.index['shards']]

  def _open(self, entry: dict) -> np.ndarray:
    """uint8 [rows of the shard, bytes of a row], mapped."""
    path = self.folder / entry['file']
    with as_data_error(path, f'one of the {_RIGHT}'):
      found = np.load(path, mmap_mode='r')
      if found.dtype != self._type or found.shape != (entry['rows'],):
        raise DataError(
          f'{path}: has {found.shape} rows of {found.dtype.itemsize} bytes; must have {entry["rows"]} of {self._type.itemsize}'
        )
      return np.ndarray((entry['rows'], self._type.itemsize), np.uint8, found)

  @property
  def digest(self) -> str:
    """16 hex digits over the content of all shards and the settings that they were made with."""
    return self.index['digest']

  @property
  def cuts(self) -> Cuts | None:
    """Between the splits, of the whole log; None when it is split by user."""
    return self.index['cuts'] and Cuts(**self.index['cuts'])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, number: int) -> Trajectories:
    """One row, arrays [n]."""
    if not -len(self) <= number < len(self):
      raise IndexError(f'row {number} of {len(self)}')
    return Trajectories(*(field[0] for field in self.rows(np.array([number % len(self)]))))

  def rows(self, numbers: np.ndarray) -> Trajectories:
    """The rows of the given numbers, int32 [B, n]; what `rows.packed_rows` gives of a log in memory."""
    raw = np.empty((len(numbers), self._type.itemsize), np.uint8)
    shard = np.searchsorted(self._starts, numbers, side='right') - 1
    for i, (s, row) in enumerate(zip(shard.tolist(), (numbers - self._starts[shard]).tolist())):
      raw[i] = self._rows[s][row]
    found = raw.view(self._type)[:, 0]
    return Trajectories(*(found[name].astype(np.int32) for name in Trajectories._fields))

  def check(self, config: Config, item_ids: pl.Series) -> None:
    """Raises ConfigError naming the first setting that these shards were made with otherwise, DataError for other items.

    item_ids: those of the log that is trained on, sorted.
    """
    theirs = self.index['settings']
    for name, value in settings(config).items():
      if theirs[name] != value:
        raise ConfigError(
          f'{name}={value!r}: the shards in {self.folder} were made with {theirs[name]!r}; must be the same'
        )
    if catalogue_digest(item_ids) != self.index['items_digest']:
      made = f'{self.index["items"]} items, the log has {len(item_ids)}'
      raise DataError(
        f'{self.folder}: was made with another items.parquet ({made}); must be the same'
      )

  def verify(self) -> None:
    """Reads every byte. Raises DataError naming the first file whose content is not what was written."""
    for entry, rows in zip(progress(self.index['shards'], 'verify'), self._rows):
      if hashlib.sha256(rows).hexdigest() != entry['sha256']:
        raise DataError(
          f'{self.folder / entry["file"]}: its content is not what was written; prepare the shards again'
        )


def training_rows(
  config: Config, log: InteractionLog, occasions: Occasions, shards: Shards | None
) -> tuple[int, Callable[[np.ndarray], Trajectories]]:
  """(number of packed training rows, rows by number): from `shards`, which hold the whole log, or of `log` itself.

  With shards, `log` may hold a part of the users; its `occasions` must have been found under `shards.cuts`. Raises ConfigError or
  DataError when the shards were made with other settings or items.
  """
  if shards is not None:
    shards.check(config, log.items['item_id'])
    return len(shards), shards.rows
  width = config.backbone.context
  packed = pack_windows(log.offsets, occasions.train_end(log), width)
  return int(packed[0].max()) + 1, lambda rows: packed_rows(log, packed, rows, width)
