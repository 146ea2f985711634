"""What is trending: which items everybody has acted on lately, day by day, by counting.

A day knows what was before it: the share of an item is that of all users' events, impressions left
out, strictly before midnight UTC, an event of so many days ago (`half_life`) at half its weight.
Purchases count like the rest: as five events they made it worse on both logs that were tried. Shops
sell much that is new, and what training counted months ago is no longer what sells: on ijcai15, 506
of the 825 test targets that are new to their user are in no training event, and 312 of those were
seen with others by then.

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
_IMPRESSION = EVENT_NAMES.index('impression')

Array = Any  # np.ndarray on the host, jax.Array on the device


class Trending(NamedTuple):
  """The items of the largest shares, day by day. Later times know what the last day knows."""

  first_day: Array  # int32 [], days since 1970 of the first row
  item: Array  # int32 [D, A], ascending; NO_MORE at the end
  share: Array  # fp32 [D, A]; 0 where there is no item

  def at(self, timestamp_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return items int32 [B, A] and shares fp32 [B, A] at times in seconds."""
    day = jnp.clip(timestamp_B // DAY - self.first_day, 0, len(self.item) - 1)
    return jnp.take(self.item, day, axis=0), jnp.take(self.share, day, axis=0)

  def of_rows(self, timestamp: np.ndarray, items: int) -> sp.csr_matrix:
    """Return the shares of the listed items at times [B], fp32 [B, items], on the host."""
    day = np.clip(timestamp // DAY - int(self.first_day), 0, len(self.item) - 1)
    item, share = self.item[day], self.share[day]
    row, place = np.nonzero(share)
    return sp.csr_matrix((share[row, place], (row, item[row, place])), (len(day), items))


def daily_counts(log: InteractionLog) -> tuple[int, Counts]:
  """Return the first day, and how many events there were of every item on each day, fp64 [D, I].

  There is a day more at the end, on which nothing happened yet.
  """
  first, last = (int(t) // DAY for t in (log.timestamp.min(), log.timestamp.max()))
  total = SparseSum(last - first + 2, len(log.items), np.float64)
  for part in log.parts():
    rows = np.flatnonzero(part.log.event != _IMPRESSION)
    place = part.log.timestamp[rows] // DAY - first, part.log.item[rows]
    total.add(sp.csr_array((np.ones(len(rows)), place), shape=total.shape))
  return first, Counts([total])


def of_counts(first_day: int, counts: Counts, half_life: float, width: int) -> Trending:
  """Return the `width` items of the largest shares, day by day; half_life in days."""
  days, n_items = counts.shape
  width = min(width, n_items)
  item, share = np.full((days, width), NO_MORE, np.int32), np.zeros((days, width), np.float32)
  before, total = np.zeros(n_items), 0.0
  for first, block in counts.blocks():
    for row in range(block.shape[0]):
      if total:
        found = _largest(before, width)
        item[first + row, : len(found)] = found
        share[first + row, : len(found)] = before[found] / total
      entries = slice(block.indptr[row], block.indptr[row + 1])
      before *= 0.5 ** (1 / half_life)
      # After a gap of years, products that are no longer normal numbers would slow all of this.
      before[before < 1e-30] = 0.0
      np.add.at(before, block.indices[entries], block.data[entries])
      total = float(before.sum())
  return Trending(np.int32(first_day), item, share)


def _largest(value_I: np.ndarray, width: int) -> np.ndarray:
  """Return the items of the largest values above 0, ascending; ties at the end by index."""
  least = max(np.partition(value_I, -width)[-width], 1e-300)
  found = np.flatnonzero(value_I >= least)
  return np.sort(found[np.argsort(-value_I[found], kind='stable')[:width]])


def log_likelihood(table: Trending, items: int, timestamp: np.ndarray, target: np.ndarray) -> float:
  """Return the mean log-probability, in nats, of targets [T] at times [T] of `items` items.

  By the shares of the table, mixed half and half with every item alike.
  """
  share_T = np.asarray(table.of_rows(timestamp, items)[np.arange(len(target)), target]).ravel()
  return float(np.log(0.5 * share_T + 0.5 / items).mean())
