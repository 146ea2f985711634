"""New days of a log: checked against the log that they continue, and appended to it.

The new days are a log of the data contract, of the new events alone. Its table of items has the new
items; what it says of items that the log has already is not read.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from rolegen_jax.config import DataConfig
from rolegen_jax.data.adapters import Adapted, fetched_log
from rolegen_jax.data.contract import read_contract
from rolegen_jax.data.faults import Faults
from rolegen_jax.data.files import DataError
from rolegen_jax.data.log import InteractionLog


def read_new_days(data: DataConfig, log: InteractionLog) -> Adapted:
  """Read and validate the new days that `data` names, which continue `log`, as an adapter does.

  Raises DataError naming the file and the row for an event that is not after the log's last one,
  for ids or columns of items other than the log's, and for whatever the data contract refuses.
  """
  path, faults = fetched_log(data), Faults(data)
  events, items = read_contract(path, data, faults, log.items, int(log.timestamp.max()))
  _check_user_ids(events, log, f'{path} (events)')
  is_known = items['item_id'].is_in(log.items['item_id'].implode())
  faults.count('items_known_already', int(is_known.sum()))
  items = _with_columns_of(items.filter(~is_known), log.items, f'{path} (items)')
  return events, items, dict(faults.counts)


def require_purchase(events: pl.DataFrame, log: InteractionLog, name: str) -> None:
  """Raise DataError unless an occasion of the new days has a context: the run is asked about them.

  events: as `read_new_days` returns them; name: where they are from.
  """
  is_first = pl.col('timestamp') == pl.col('timestamp').min().over('user_id')
  is_new = ~pl.col('user_id').is_in(log.users.implode())
  if events.filter((pl.col('event') == 'purchase') & ~(is_first & is_new)).is_empty():
    raise DataError(
      f"{name}: column 'event': no user who did something before has a purchase; must be one at "
      'least, which the run is asked about: give more days at once'
    )


def extended(log: InteractionLog, events: pl.DataFrame, items: pl.DataFrame) -> InteractionLog:
  """Return `log` with later events and new items, as if both had been indexed at once.

  events, items: as `read_new_days` returns them. Users and items get the indices that their ids
  have among all, so those of the log may be other ones than before.
  """
  all_items = pl.concat([log.items, items]).sort('item_id')
  new = InteractionLog.build(events, all_items)
  users = pl.concat([log.users, new.users]).unique().sort()
  item = np.concatenate([_places(all_items['item_id'], log.items['item_id'])[log.item], new.item])
  user = np.concatenate([_places(users, log.users)[log.user], _places(users, new.users)[new.user]])
  order = np.argsort(user, kind='stable')  # a user's new events are later than all earlier ones
  return InteractionLog(
    users=users,
    items=all_items,
    offsets=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))]),
    item=item[order].astype(np.int32),
    event=np.concatenate([log.event, new.event])[order],
    timestamp=np.concatenate([log.timestamp, new.timestamp])[order],
    count=np.concatenate([log.count, new.count])[order],
  )


def _places(all_ids: pl.Series, ids: pl.Series) -> np.ndarray:
  return all_ids.search_sorted(ids).to_numpy()


def _check_user_ids(events: pl.DataFrame, log: InteractionLog, name: str) -> None:
  found, expected = events.schema['user_id'], log.users.dtype
  if found != expected:
    raise DataError(
      f"{name}: column 'user_id' has type {found}, in the log that it continues {expected}; "
      'must be the same type'
    )


def _with_columns_of(items: pl.DataFrame, known: pl.DataFrame, name: str) -> pl.DataFrame:
  """Return the new items with the columns of the log's, in their order. Raises DataError."""
  if not items.height:
    return known.clear()
  for column in known.columns:
    if column not in items.columns:
      raise DataError(
        f'{name}: column {column!r} is missing; must be there, as the items of the log have it'
      )
    found, expected = items.schema[column], known.schema[column]
    if found != expected:
      raise DataError(
        f'{name}: column {column!r} has type {found}, in the log that it continues {expected}; '
        'must be the same type'
      )
  for column in items.columns:
    if column not in known.columns:
      raise DataError(
        f'{name}: column {column!r} is none of the items of the log; must be one of '
        f'{", ".join(known.columns)}: leave it out, or train afresh with it'
      )
  if 'embedding' in known.columns:
    (usual,), sizes = known['embedding'].head(1).list.len(), items['embedding'].list.len()
    if (wrong := (sizes != usual).arg_true()).len():
      raise DataError(
        f"{name}: column 'embedding', item {items['item_id'][wrong[0]]!r}: {sizes[wrong[0]]} "
        f'numbers; must be {usual}, as the items of the log have'
      )
  return items.select(known.columns)
