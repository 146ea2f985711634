"""What a request to change the catalogue asks for, checked as a whole before anything happens.

An item that was removed comes back as what it was, where its slot and its ID are still free and
what places it has not changed. Any other is new: it gets codes, given or found (`placing.py`), and
no model has learned about it.

Shapes: n new items, m removed ones, L levels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rolegen_jax.semantic_ids.embeddings import ATTRIBUTE_COLUMNS, TEXT_COLUMNS
from rolegen_jax.serving.http.items import Change, Id, Items, Rows
from rolegen_jax.serving.http.placing import Placer
from rolegen_jax.serving.http.schema import CatalogueRequest, Changed, NewItem, Refused, Tagged


def change(
  items: Items, placer: Placer, request: CatalogueRequest, text_nxE: np.ndarray
) -> Changed:
  """Do what is asked for, as a whole or, raising Refused that names a field, not at all.

  text: the vectors of the items to add, `placer.vectors` of their columns.
  """
  check(items, request)
  if request.roll_back_to is not None:
    return items.roll_back(request.roll_back_to)
  return items.apply(_planned(items, placer, request, text_nxE))


def check(items: Items, request: CatalogueRequest) -> None:
  """Raise Refused naming a field where a change cannot be, whatever its texts say."""
  if request.if_version is not None and request.if_version != items.version:
    raise Refused(409, 'if_version', f'the version is {items.version}')
  asked = bool(request.add or request.remove or request.tag)
  if request.roll_back_to is not None:
    if asked:
      raise Refused(422, 'roll_back_to', 'must stand alone, without add, remove and tag')
    return
  if not asked:
    raise Refused(422, 'body', 'must have one of add, remove, tag and roll_back_to')
  remove = frozenset(_listed(items, x, f'remove[{i}]') for i, x in enumerate(request.remove))
  _check_once(request.remove, 'remove[{}]')
  _check_once([item.item_id for item in request.add], 'add[{}].item_id')
  _check_once([item.item_id for item in request.tag], 'tag[{}].item_id')
  tables = items.tables
  most = min(tables.capacity, tables.codes_per_level ** tables.codes.shape[1])
  room = most - len(items) + len(remove)
  if len(request.add) > room:
    raise Refused(422, 'add', f'are {len(request.add)} items; there is room for {room}')
  given = {f'add[{i}].columns': item.columns for i, item in enumerate(request.add)}
  given |= {f'tag[{i}].columns': item.columns for i, item in enumerate(request.tag)}
  items.columns.check_new(given)
  for i, tagged in enumerate(request.tag):
    _check_tagged(items, tagged, f'tag[{i}].item_id', remove)
  for i, item in enumerate(request.add):
    _check_new(items, item, f'add[{i}]', remove)


def _planned(
  items: Items, placer: Placer, request: CatalogueRequest, text_nxE: np.ndarray
) -> Change:
  """Return the change that a request, checked, asks for."""
  gone = items.numbers(request.remove, 'remove[{}]')
  remove = frozenset(gone.tolist())
  tagged = items.numbers((item.item_id for item in request.tag), 'tag[{}].item_id')
  tag = [(number, dict(item.columns)) for number, item in zip(tagged.tolist(), request.tag)]
  back, new = [], []
  returned: list[Rows] = []
  for i, item in enumerate(request.add):
    row = _row_to_return(items, item, remove, [other.codes for other in returned])
    if row is None:
      new.append((i, item))
    else:
      back.append(item)
      returned.append(row)
  text = text_nxE[[i for i, _ in new]]
  placed = _placed(items, placer, new, text, gone, returned)
  added = Rows(*(np.concatenate(parts) for parts in zip(*map(_fields, [*returned, placed]))))
  columns = [item.columns for item in (*back, *(item for _, item in new))]
  tag += [(int(number), dict(values)) for number, values in zip(added.number, columns)]
  return Change(added, gone, tag, tuple(item.item_id for _, item in new))


def _fields(rows: Rows) -> tuple[np.ndarray, ...]:
  return rows.number, rows.slot, rows.codes, rows.count, rows.text


def _listed(items: Items, item_id: Id, field: str) -> int:
  """Return the number of an item that is listed. Raises Refused."""
  number = items.number(item_id, field)
  if not items.is_listed(number):
    raise Refused(422, field, f'{item_id!r} was removed before')
  return number


def _check_tagged(items: Items, tagged: Tagged, field: str, remove: frozenset[int]) -> None:
  if _listed(items, tagged.item_id, field) in remove:
    raise Refused(422, field, f'{tagged.item_id!r} is removed by the same change')


def _check_once(item_ids: Iterable[Id], field: str) -> None:
  seen: set[Id] = set()
  for i, item_id in enumerate(item_ids):
    if item_id in seen:
      raise Refused(422, field.format(i), f'{item_id!r} is given twice')
    seen.add(item_id)


def _check_new(items: Items, item: NewItem, place: str, remove: frozenset[int]) -> None:
  if item.like is not None and item.codes is not None:
    raise Refused(422, f'{place}.codes', 'must stand alone, without `like`')
  field = f'{place}.item_id'
  items.check_kind(item.item_id, field)
  number = items.find(item.item_id)
  if number is not None and items.is_listed(number) and number not in remove:
    raise Refused(422, field, f'{item.item_id!r} is in the catalogue already; remove or tag it')


def _row_to_return(
  items: Items, item: NewItem, remove: frozenset[int], taken: list[np.ndarray]
) -> Rows | None:
  """Return an item that comes back as it was; None where it is new, or says to be another.

  taken: IDs of others that come back with it.
  """
  number = items.find(item.item_id)
  if number is None or items.slot_of[number] < 0 or number in remove:
    return None
  places = {k: v for k, v in item.columns.items() if k in TEXT_COLUMNS + ATTRIBUTE_COLUMNS}
  is_other = any(value != items.columns.get(number, name) for name, value in places.items())
  if is_other or item.codes is not None or item.like is not None:
    return None
  row = items.row(number)
  holder = items.numbers_at(items.tables.find(row.codes))[0]  # of its ID, by now
  is_taken = holder >= 0 and int(holder) not in remove
  return None if is_taken or any((row.codes == codes).all() for codes in taken) else row


def _placed(
  items: Items,
  placer: Placer,
  new: list[tuple[int, NewItem]],
  text: np.ndarray,
  remove: np.ndarray,
  returned: list[Rows],
) -> Rows:
  """Return new items, each beside its place in the request, with IDs of their own."""
  listed, n, levels = items.listed_rows(), len(new), items.tables.codes.shape[1]
  # Items that go now still say where new ones belong; their IDs are free.
  taken = [listed.codes[~np.isin(listed.number, remove)], *(rows.codes for rows in returned)]
  codes = np.zeros((n, levels), np.int32)
  points: dict[int, np.ndarray] = {}
  for place, (i, item) in enumerate(new):
    if item.codes is not None:
      codes[place] = _checked_codes(items, item.codes, f'add[{i}].codes')
    elif item.like is not None:
      like = items.row(_listed(items, item.like, f'add[{i}].like'))
      points[place] = placer.points(like.codes)[0]
    else:
      alike = placer.similarity(item.columns, text[place], items.columns, listed)
      points[place] = placer.point(alike, listed.codes, f'add[{i}].columns')
  _check_free(items, new, codes, remove, returned)
  if points:
    given = np.delete(codes, list(points), axis=0)
    codes[list(points)] = placer.assign(
      np.stack([*points.values()]), np.concatenate([*taken, given])
    )
  number = len(items.ids) + np.arange(n)
  return Rows(number, np.full(n, -1), codes, np.zeros(n, np.float32), text)


def _checked_codes(items: Items, codes: list[int], field: str) -> list[int]:
  levels, largest = items.tables.codes.shape[1], items.tables.codes_per_level - 1
  if len(codes) != levels or min(codes) < 0 or max(codes) > largest:
    raise Refused(422, field, f'must be {levels} whole numbers from 0 to {largest}')
  return codes


def _check_free(
  items: Items,
  new: list[tuple[int, NewItem]],
  codes_nxL: np.ndarray,
  remove: np.ndarray,
  returned: list[Rows],
) -> None:
  """Raise Refused where an ID that is given is another item's, saying whose.

  codes: of the new items; those of items that gave none do not matter.
  """
  if all(item.codes is None for _, item in new):
    return
  holder = items.numbers_at(items.tables.find(codes_nxL))
  is_held = (holder >= 0) & ~np.isin(holder, remove)
  other = {tuple(row.codes[0].tolist()): items.ids[int(row.number[0])] for row in returned}
  for place, (i, item) in enumerate(new):
    if item.codes is None:
      continue
    codes = tuple(codes_nxL[place].tolist())
    if is_held[place]:
      other[codes] = items.ids[int(holder[place])]
    if codes in other:
      raise Refused(422, f'add[{i}].codes', f'are those of item {other[codes]!r}')
    other[codes] = item.item_id
