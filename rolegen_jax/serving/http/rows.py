"""Histories as rows that the models read, where items are slots of the tables.

Shapes: B rows, n events of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rolegen_jax.config import Config
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.users import History
from rolegen_jax.serving.http.worlds import key_of


class Reader(NamedTuple):
  """Whose history is read, and when."""

  user: int  # index, which decides over whom is counted what their events lead to
  history: History  # strictly before `time`
  time: int


def known(history: History, items: Items) -> History:
  """Return a history without the items whose slots others have by now: no table knows them."""
  still = items.slots(history.item) >= 0
  return history if still.all() else history.picked(np.flatnonzero(still))


def examples(
  readers: Sequence[Reader], items: Items, excitation: Excitation, config: Config, size: int
) -> tuple[Examples, list[bytes]]:
  """Return rows [size] of the latest events of histories that are `known`, the last row repeated.

  Beside them the key of what each row is read from: the events and who the user is, not the time.
  """
  width, reasoner = config.backbone.context, config.reasoner
  windows = [_window(reader.history, width) for reader in readers]
  rows = np.minimum(np.arange(size), len(readers) - 1)
  number = np.stack([windows[row].item for row in rows])
  user = np.array([readers[row].user for row in rows])
  others = [np.stack([getattr(windows[row], f) for row in rows]) for f in Trajectories._fields[1:]]

  def unknown(*shape: int) -> np.ndarray:
    return np.full((size, *shape), -1, np.int32)

  read = Examples(
    history=Trajectories(items.slots(number).astype(np.int32), *others),
    timestamp=np.array([readers[row].time for row in rows], np.int32),
    excites=_excites(user, number, items, excitation),
    target=unknown(),
    roles=unknown(reasoner.role_events),
    path=unknown(reasoner.candidates),
  )
  folds = len(excitation.code)
  keys = [key_of(reader.user % folds, *window) for reader, window in zip(readers, windows)]
  return read, keys


def _window(history: History, width: int) -> Trajectories:
  """Return the latest events of a history, arrays [width]; items are numbers."""
  n = min(len(history.item), width)
  latest = slice(len(history.item) - n, None)

  def padded(field: np.ndarray, padding: int) -> np.ndarray:
    row = np.full(width, padding, np.int32)
    row[width - n :] = field[latest]
    return row

  ones = np.ones(len(history.item), np.int32)
  return Trajectories(
    padded(history.item, -1),
    padded(history.event, 0),
    padded(history.count, 0),
    padded(history.timestamp, 0),
    padded(ones, 0),
  )


def _excites(
  user_B: np.ndarray, number_Bxn: np.ndarray, items: Items, excitation: Excitation
) -> Excites:
  """Return what events lead to: nothing, for items that were not there to be counted."""
  counted = number_Bxn < excitation.code.shape[1]
  excites = excitation.of(user_B, np.where(counted, number_Bxn, -1))
  next_slot = items.slots(excites.next_item)
  return excites._replace(
    next_item=np.maximum(next_slot, 0).astype(np.int32),
    share=np.where(next_slot >= 0, excites.share, np.float32(0)),
  )
