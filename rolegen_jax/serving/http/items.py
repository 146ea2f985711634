"""The items that are served: by id, by number, by place in the tables of the device; in versions.

Three names of an item. The shop's *id*. Its *number*, never used again for another item: what the
server remembers (histories, worlds, columns) is by number; the numbers of the log's items are their
indices there. Its *slot*, the index in the tables (`hot_swap.py`), which another item gets once the
item is gone and room is needed.

A change is undone by its inverse, so an item that comes back has its slot again, and what the
models learned about it. What a request asks for becomes a change in `changes.py`. One thread makes
the changes.

Shapes: N numbers, C slots, L levels, E width of text vectors, n items of a change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from rolegen_jax.serving.hot_swap import MutableCatalogue
from rolegen_jax.serving.http.columns import Columns, grown
from rolegen_jax.serving.http.schema import Changed, Refused, Value

KEPT_VERSIONS = 1000  # that can be returned to

Id = int | str


@dataclasses.dataclass(frozen=True)
class Rows:
  """Items on their way in or out, as the tables hold them."""

  number: np.ndarray  # int64 [n]
  slot: np.ndarray  # int64 [n]; -1 = any that is free
  codes: np.ndarray  # int32 [n, L]
  count: np.ndarray  # fp32 [n], training events
  text: np.ndarray  # fp32 [n, E]


@dataclasses.dataclass(frozen=True)
class Change:
  """What happens at once: first `remove`, then `add`, then `tag`."""

  add: Rows
  remove: np.ndarray  # int64 [m], numbers
  tag: list[tuple[int, dict[str, Value | None]]]  # number, columns
  new_ids: tuple[Id, ...] = ()  # of the items whose numbers are new: the next ones
  names: tuple[tuple[Id, int], ...] = ()  # ids that mean other numbers from then on


class Items:
  """The catalogue and its versions."""

  def __init__(
    self,
    ids: list[Id],
    tables: MutableCatalogue,
    columns: Columns,
    counts_I: np.ndarray,
    text_IxE: np.ndarray | None,
  ):
    """The numbers and slots of the items `ids` are their places there.

    counts, text: what the tables were built with.
    """
    self.tables, self.columns = tables, columns
    n = len(ids)
    self.ids = list(ids)
    self._kind = type(ids[0])
    self._number_of: dict[Id, int] = {item: number for number, item in enumerate(ids)}
    # int64 [N and room]: the slot of each number, -1 = another item has it now; is it listed.
    self.slot_of = np.arange(n)
    self._listed = np.ones(n, bool)
    # By slot: int64 [C], the number of the item whose codes it holds, -1 = none; fp32 [C], [C, E].
    self.number_at = grown(np.arange(n), tables.capacity, -1)[: tables.capacity]
    self._count = grown(counts_I.astype(np.float32), tables.capacity, 0)[: tables.capacity]
    vectors = np.zeros((n, 0), np.float32) if text_IxE is None else text_IxE
    self._text = grown(vectors.astype(np.float32), tables.capacity, 0)[: tables.capacity]
    # False while, and ever since, a change was done in part: an error of the device.
    self.is_whole = True
    self.version = 0
    # The states that can be returned to, oldest first: the versions that were this state, and what
    # undoes the change that led there.
    self._states: list[tuple[set[int], Change | None]] = [({0}, None)]

  # Looking up

  def __len__(self) -> int:
    return self.tables.items

  def number(self, item_id: Id, field: str) -> int:
    """Return the number of an item that is listed, or was. Raises Refused naming the field."""
    number = self.find(item_id)
    if number is None:
      raise Refused(422, field, f'{item_id!r} is not in the catalogue')
    return number

  def find(self, item_id: Id) -> int | None:
    """Return the number of an item that is listed, or was; None where there is none."""
    # True == 1, and 1.0: only an id of the log's own type is one.
    return self._number_of.get(item_id) if type(item_id) is self._kind else None

  def check_kind(self, item_id: Id, field: str) -> None:
    """Raise Refused naming the field where an id is not of the type of the log's."""
    if type(item_id) is not self._kind:
      right = 'a whole number' if self._kind is int else 'text'
      raise Refused(422, field, f'must be {right}, as the ids of the log are')

  def numbers(self, item_ids: Iterable[Id], field: str) -> np.ndarray:
    """Return the numbers int64 [n] of items. Raises Refused naming the place in the field."""
    found = [self.number(item, field.format(i)) for i, item in enumerate(item_ids)]
    return np.array(found, np.int64)

  def is_listed(self, number: int) -> bool:
    """Return whether an item can be recommended now."""
    return bool(self._listed[number])

  def slots(self, number: np.ndarray) -> np.ndarray:
    """Return the slots int64 [...] of numbers [...]; -1 where gone, or where the number is -1."""
    return np.where(number >= 0, self.slot_of[np.maximum(number, 0)], -1)

  def numbers_at(self, slot: np.ndarray) -> np.ndarray:
    """Return the numbers int64 [...] of slots [...]; -1 where the slot is -1."""
    return np.where(slot >= 0, self.number_at[np.maximum(slot, 0)], -1)

  def listed_rows(self) -> Rows:
    """Return all items that are listed."""
    slot = np.flatnonzero(self.tables.listed)
    return self._rows(self.number_at[slot], slot)

  def examples(self, code: int, most: int) -> list[Id]:
    """Return the listed items of a coarse code, those with the most training events first."""
    slot = np.flatnonzero(self.tables.listed & (self.tables.codes[:, 0] == code))
    first = slot[np.argsort(-self._count[slot], kind='stable')[:most]]
    return [self.ids[number] for number in self.number_at[first].tolist()]

  def row(self, number: int) -> Rows:
    """Return an item whose slot is still its own."""
    return self._rows(np.array([number]), self.slot_of[[number]])

  def allowed_slots(self, where: dict[str, Any], exclude: np.ndarray) -> np.ndarray:
    """Return which slots a request may get, bool [C]; exclude: numbers."""
    allowed = self.columns.satisfy(where, len(self.ids))
    allowed[exclude] = False
    return (self.number_at >= 0) & allowed[np.maximum(self.number_at, 0)]

  def _rows(self, number: np.ndarray, slot: np.ndarray) -> Rows:
    return Rows(number, slot, self.tables.codes[slot], self._count[slot], self._text[slot])

  # Changing

  def state(self) -> Changed:
    """Return the version."""
    return Changed(self.version, len(self))

  def apply(self, change: Change) -> Changed:
    """Do a change. Raises Refused, and does nothing, where its codes are taken."""
    undo = self._do(change)
    self.version += 1
    self._states.append(({self.version}, undo))
    del self._states[:-KEPT_VERSIONS]
    return self.state()

  def roll_back(self, version: int) -> Changed:
    """Return to the items of an earlier version, as a new version. Raises Refused."""
    places = [i for i, (versions, _) in enumerate(self._states) if version in versions]
    if not places:
      raise Refused(
        422,
        'roll_back_to',
        f'{version} cannot be returned to; must be at least {min(self._states[0][0])}, at most '
        f'{self.version}, and not rolled back itself',
      )
    while len(self._states) > places[0] + 1:
      undo = self._states.pop()[1]
      assert undo is not None  # only the first state has none
      self._do(undo)
    self.version += 1
    self._states[-1][0].add(self.version)
    return self.state()

  def _do(self, change: Change) -> Change:
    """Do a change and return its inverse."""
    add, removed = change.add, self._rows(change.remove, self.slot_of[change.remove])
    text = add.text if self._text.shape[1] else None
    self.is_whole = False
    try:
      slot = self.tables.swap(
        add.codes, removed.slot, text=text, indices=add.slot, counts=add.count, names=add.number
      )
    except ValueError as error:  # of what was asked for; the tables are as before
      self.is_whole = True
      raise Refused(422, 'add', str(error)) from None
    meant = tuple((x, self._number_of[x]) for x in change.new_ids if x in self._number_of)
    self._enlist(change, slot)
    self._number_of.update(change.names)
    self._listed[change.remove] = False
    self._listed[add.number] = True
    before = [(number, self.columns.update(number, values)) for number, values in change.tag]
    self.is_whole = True
    return Change(removed, add.number, before[::-1], names=meant)

  def _enlist(self, change: Change, slot: np.ndarray) -> None:
    """Take note of what the added items are called and where they are."""
    add = change.add
    self.slot_of = grown(self.slot_of, len(self.ids) + len(change.new_ids), -1)
    self._listed = grown(self._listed, len(self.slot_of), False)
    self.ids.extend(change.new_ids)
    displaced = self.number_at[slot]
    self.slot_of[displaced[displaced >= 0]] = -1
    self.slot_of[add.number], self.number_at[slot] = slot, add.number
    self._count[slot], self._text[slot] = add.count, add.text
    for number in add.number.tolist():
      self._number_of[self.ids[number]] = number
