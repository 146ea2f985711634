"""What is trending: which items everybody has acted on lately, day by day, by counting.

A day knows what was before it: the share of an item is that of all users' events, impressions left
out, strictly before midnight UTC, an event of so many days ago (`half_life`) at half its weight.
Repeated rows count once, and purchases like the rest: as five events they made it worse on both
logs that were tried. Shops sell much that is new, and what training counted months ago is no longer
what sells: on ijcai15, 506 of the 825 test targets that are new to their user are in no training
event, and 312 of those were seen with others by then.

Training reads the same table at the times of its own examples, so nothing in it is ahead of them.

D days, A items listed a day, I items of the catalogue, T targets, B rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.sparse_sums import Counts, SparseSum

DAY = 86_400  # seconds
NO_MORE = np.iinfo(np.int32).max
PAGE = 64  # rows: a log that grows by some compiles nothing anew
IMPRESSION = EVENT_NAMES.index('impression')

Array = Any  # np.ndarray on the host, jax.Array on the device


class Trending(NamedTuple):
  """The items of the largest shares, a row for each day that knows more than the one before it."""

  day: Array  # int32 [D], days since 1970 from which on a row is right; NO_MORE where there is none
  item: Array  # int32 [D, A], ascending; NO_MORE at the end
  share: Array  # fp32 [D, A]; 0 where there is no item

  def at(self, timestamp_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return items int32 [B, A] and shares fp32 [B, A] at times in seconds."""
    row = jnp.sum(self.day <= (timestamp_B // DAY)[:, None], axis=1)
    row = jnp.maximum(row - 1, 0)  # the first row knows nothing
    return jnp.take(self.item, row, axis=0), jnp.take(self.share, row, axis=0)

  def padded(self) -> Trending:
    """Return it with room for a PAGE of rows at least, and whole PAGEs in all."""
    more = PAGE + -len(self.item) % PAGE
    day = np.pad(self.day, (0, more), constant_values=NO_MORE)
    item = np.pad(self.item, ((0, more), (0, 0)), constant_values=NO_MORE)
    return Trending(day, item, np.pad(self.share, ((0, more), (0, 0))))

  def of_rows(self, timestamp: np.ndarray, items: int) -> sp.csr_matrix:
    """Return the shares of the listed items at times [B], fp32 [B, items], on the host."""
    row_B = np.maximum(np.searchsorted(self.day, timestamp // DAY, side='right') - 1, 0)
    item, share = self.item[row_B], self.share[row_B]
    row, place = np.nonzero(share)
    return sp.csr_matrix((share[row, place], (row, item[row, place])), (len(row_B), items))


def daily_counts(log: InteractionLog) -> tuple[int, Counts]:
  """Return the first day, and how many events there were of every item on each day, fp64 [D, I].

  There is a day more at the end, on which nothing happened yet.
  """
  first, last = (int(t) // DAY for t in (log.timestamp.min(), log.timestamp.max()))
  total = SparseSum(last - first + 2, len(log.items), np.float64)
  for part in log.parts():
    rows = np.flatnonzero(part.log.event != IMPRESSION)
    place = part.log.timestamp[rows] // DAY - first, part.log.item[rows]
    total.add(sp.csr_array((np.ones(len(rows)), place), shape=total.shape))
  return first, Counts([total])


def of_counts(first_day: int, counts: Counts, half_life: float, width: int) -> Trending:
  """Return the `width` items of the largest shares, day by day; half_life in days."""
  days, n_items = counts.shape
  item, share = np.full((days, width), NO_MORE, np.int32), np.zeros((days, width), np.float32)
  before, last = np.zeros(n_items), 0  # what there was by the end of the day `last`
  is_new = np.arange(days) == 0  # the days that know more than the one before
  for first, block in counts.blocks():
    for day in range(first, first + block.shape[0]):
      entries = slice(block.indptr[day - first], block.indptr[day - first + 1])
      if day + 1 == days or entries.start == entries.stop:
        continue  # nothing is added, all fade alike
      before *= 0.5 ** ((day - last) / half_life)
      before[before < 1e-30] = 0.0  # beside today's events
      np.add.at(before, block.indices[entries], block.data[entries])
      last, is_new[day + 1] = day, True
      item[day + 1], share[day + 1] = largest_shares(before, width)
  row = np.flatnonzero(is_new)
  return Trending((first_day + row).astype(np.int32), item[row], share[row])


def mass(log: InteractionLog, half_life: float) -> tuple[int, np.ndarray]:
  """Return the last day of a log, and what there is of each item by its end, fp64 [I].

  That is what `of_counts` has there before it lists the largest.
  """
  last, total = int(log.timestamp.max()) // DAY, np.zeros(len(log.items))
  for part in log.parts():
    rows = np.flatnonzero(part.log.event != IMPRESSION)
    age = last - part.log.timestamp[rows] // DAY
    total += np.bincount(part.log.item[rows], 0.5 ** (age / half_life), len(total))
  return last, total


def largest_shares(mass_I: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Return a row of a table: the items of the largest shares, int32 [width], and the shares."""
  item, share = np.full(width, NO_MORE, np.int32), np.zeros(width, np.float32)
  found = _largest(mass_I, width)
  item[: len(found)] = found
  share[: len(found)] = mass_I[found] / mass_I.sum()
  return item, share


def _largest(value_I: np.ndarray, width: int) -> np.ndarray:
  """Return the items of the largest values above 0, ascending; ties at the end by index."""
  some = np.flatnonzero(value_I)
  if len(some) > width:
    least = np.partition(value_I[some], -width)[-width]
    some = some[value_I[some] >= least]
    some = some[np.argsort(-value_I[some], kind='stable')[:width]]
  return np.sort(some)


def log_likelihood(table: Trending, items: int, timestamp: np.ndarray, target: np.ndarray) -> float:
  """Return the mean log-probability, in nats, of targets [T] at times [T] of `items` items.

  By the shares of the table, mixed half and half with every item alike.
  """
  share_T = np.asarray(table.of_rows(timestamp, items)[np.arange(len(target)), target]).ravel()
  return float(np.log(0.5 * share_T + 0.5 / items).mean())
