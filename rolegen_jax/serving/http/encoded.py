"""Users' histories, kept encoded on the device: which slot of the pool holds what.

A history that has grown is encoded from its new events on, one that has not is not encoded at all
(`models/encoded.py`). What is held is compared event by event with what is to be read, so nothing
needs to be told of events that come late, of counts that grow or of items that go: whatever differs
is encoded again from there on. Items are numbers (`items.py`), whose vectors never change.

Shapes: B rows, T new events of a row.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rolegen_jax.models.encoded import More
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.programs import Programs
from rolegen_jax.serving.http.rows import Reader, followers, latest
from rolegen_jax.serving.http.users import History
from rolegen_jax.serving.http.worlds import key_of


class Place(NamedTuple):
  """Where a history is."""

  slot: int
  kept: int  # how many of its first events are encoded there


class Slots:
  """The histories that slots hold; the least recently used makes room."""

  def __init__(self, slots: int):
    """slots: at least as many as `place` ever gets histories."""
    self._free = list(range(slots))[::-1]
    self._held: collections.OrderedDict[Any, tuple[int, History]] = collections.OrderedDict()

  def __len__(self) -> int:
    return len(self._held)

  def place(self, name: str, histories: Sequence[tuple[Hashable, History]]) -> list[Place]:
    """Return the places of the histories of a batch, by whose they are; slots hold them from now.

    name: of what encodes them; what another encodes is no use to it. One batch writes a slot once,
    and nobody else of it reads that slot further than what is written: a second history of the same
    user that needs more has a slot by its content.
    """
    used: set[int] = set()
    return [self._place((name, whose), history, used) for whose, history in histories]

  def _place(self, whose: tuple[str, Hashable], history: History, used: set[int]) -> Place:
    slot, held = self._held.get(whose, (-1, history))
    kept = _same(held, history) if slot >= 0 else 0
    if kept < len(history.item):
      if slot in used:
        return self._place((whose[0], key_of(*history)), history, used)
      held = history
    if slot < 0:
      slot = self._free.pop() if self._free else self._held.popitem(last=False)[1][0]
    self._held[whose] = slot, held
    self._held.move_to_end(whose)
    used.add(slot)
    return Place(slot, kept)

  def forget(self, slot: int) -> None:
    """Hold no more what a slot holds, if anything."""
    for whose, (held_slot, _) in self._held.items():
      if held_slot == slot:
        del self._held[whose]
        self._free.append(slot)
        return


def _same(held: History, history: History) -> int:
  """Return with how many equal events two histories begin."""
  n = min(len(held.item), len(history.item))
  differs = np.zeros(n, bool)
  for a, b in zip(held, history):
    differs |= a[:n] != b[:n]
  return int(differs.argmax()) if differs.any() else n


class Encoded:
  """Encodes what of histories is not yet."""

  def __init__(self, programs: Programs, items: Items, width: int):
    """width: the most events of a history that are read."""
    self._programs, self._items, self._width = programs, items, width
    self._slots = Slots(programs.slots)
    self.events = {'kept': 0, 'encoded': 0}  # of the histories that were asked for

  def __len__(self) -> int:
    return len(self._slots)

  def of(self, name: str, trie: Trie, whose: Sequence[Hashable], readers: Sequence[Reader]) -> Any:
    """Return the slots int32 [B] in which the histories are encoded.

    name: of the backbone that encodes them. whose: the histories of one user grow.
    """
    windows = [latest(reader.history, self._width) for reader in readers]
    places = self._slots.place(name, list(zip(whose, windows)))
    short: list[int] = []
    long: list[int] = []
    for row, (place, window) in enumerate(zip(places, windows)):
      missing = len(window.item) - place.kept
      if missing:
        (short if missing <= self._programs.few else long).append(row)
      self.events['kept'] += place.kept if missing <= self._programs.few else 0
    for rows, width in ((short, self._programs.few), (long, self._width)):
      if rows:
        kept = np.array([places[row].kept if rows is short else 0 for row in rows], np.int32)
        slot = np.array([places[row].slot for row in rows], np.int32)
        new = followers([windows[row] for row in rows], kept, self._items, width)
        self.events['encoded'] += int(new.segment[:, 1:].sum())
        self._programs.encode(name, trie, More(new, kept, slot))
    return np.array([place.slot for place in places], np.int32)

  def forget(self, slot: int) -> None:
    """Encode the history of a slot anew when it is read next."""
    self._slots.forget(slot)

  def clear(self) -> None:
    """Encode everything anew: an error left the device in a state that nobody knows."""
    self._programs.empty_pool()
    self._slots = Slots(self._programs.slots)
