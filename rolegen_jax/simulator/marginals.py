"""Five marginals of a log as curves on a fixed grid.

With them a simulated log can be compared with summaries of a real one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.simulator.rules import DAY

GRID = np.linspace(0, 1, 41)  # quantile levels, and catalogue shares of the popularity curve
MARGINALS = (
  'events per user',
  'gap between active bins',
  'conversion rate per user',
  'item popularity',
  'repeat share per user',
)
SCALARS = ('conversion rate', 'repeat share', 'purchases seen before')


def summary(
  events: pl.DataFrame,
  bin_days: float = 1.0,
  day_level: bool = False,
  per_item: float | None = None,
) -> dict[str, Any]:
  """Return the curves of the MARGINALS on GRID and the SCALARS of a log.

  Identical rows count once. Popularity is the share of events (y) held by the top share of items
  (x). No noise: the seed is fixed.

  events: columns user_id, item_id, event, timestamp. bin_days: width of the time bin in which a
  user is active or not (gaps are counted in bins). day_level: floor timestamps to days first, as in
  a log that knows days only. per_item: take popularity on random users, so few that events per
  distinct item are as in the log compared with (a small sample has a longer tail).
  """
  if day_level:
    events = events.with_columns(pl.col('timestamp') // DAY * DAY)
  events = (
    events.select('user_id', 'item_id', 'event', 'timestamp')
    .unique()
    .sort('user_id', 'timestamp', 'item_id', 'event')
  )
  start = events['timestamp'].min()
  first_contact = pl.col('timestamp').min().over('user_id', 'item_id')
  events = events.with_columns(
    seen=pl.col('timestamp') > first_contact,
    bought=pl.col('event') == 'purchase',
    bin=((pl.col('timestamp') - start) / (DAY * bin_days)).floor().cast(pl.Int64),
  )
  users = events.group_by('user_id', maintain_order=True).agg(
    pl.len(), pl.col('bought').mean(), pl.col('seen').mean()
  )
  bins = events.select('user_id', 'bin').unique().sort('user_id', 'bin')
  gaps = bins.with_columns(gap=pl.col('bin').diff().over('user_id')).drop_nulls()['gap']
  curves = {
    'events per user': quantiles(users['len'].to_numpy()),
    'gap between active bins': quantiles(gaps.to_numpy()),
    'conversion rate per user': quantiles(users['bought'].to_numpy()),
    'repeat share per user': quantiles(users['seen'].to_numpy()),
    'item popularity': popularity(events, per_item),
  }
  scalars = events['bought'].mean(), events['seen'].mean(), events.filter('bought')['seen'].mean()
  return {
    'curves': curves,
    'scalars': dict(zip(SCALARS, scalars)),
    'per_item': len(events) / events['item_id'].n_unique(),
  }


def quantiles(values: np.ndarray) -> np.ndarray:
  """Return quantiles on GRID.

  The ends are the 0.5 % and 99.5 % points, so that one odd user does not set them.
  """
  return np.quantile(values, np.clip(GRID, 0.005, 0.995))


def popularity(events: pl.DataFrame, per_item: float | None, draws: int = 8) -> np.ndarray:
  """Return the Lorenz curve from the top, on GRID.

  per_item: if given, the mean over `draws` random samples of users, see `summary`.
  """
  rng = np.random.default_rng(0)
  users, items = (
    np.unique(events[column].to_numpy(), return_inverse=True)[1]
    for column in ('user_id', 'item_id')
  )
  if not per_item:
    return _lorenz(items)
  curves = []
  for _ in range(draws):
    shuffled: np.ndarray = rng.permutation(int(np.max(users)) + 1)[users]
    order = np.argsort(shuffled, kind='stable')
    curves.append(_lorenz(_sparse_sample(items[order], per_item)))
  return np.mean(curves, axis=0)


def _sparse_sample(items: np.ndarray, per_item: float) -> np.ndarray:
  """Return the longest prefix of `items` with fewer than `per_item` events per distinct item."""
  is_first = np.zeros(len(items), bool)
  is_first[np.unique(items, return_index=True)[1]] = True
  events_per_item = np.arange(1, len(items) + 1) / np.cumsum(is_first)
  sparse = np.flatnonzero(events_per_item < per_item)
  return items[: sparse[-1] + 1]


def _lorenz(items: np.ndarray) -> np.ndarray:
  counts = np.sort(np.bincount(items)[np.unique(items)])[::-1]
  event_share = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
  return np.interp(GRID, np.linspace(0, 1, len(event_share)), event_share)


def distances(simulated: dict[str, Any], real: dict[str, Any]) -> dict[str, float]:
  """Return the area between the simulated and the real curve of each marginal.

  For quantile curves this is the Wasserstein-1 distance over the mean of the real log (0.1 = an
  average user is off by a tenth of the mean); for popularity the area between two curves in the
  unit square.
  """
  areas = {}
  for name in MARGINALS:
    simulated_curve = np.asarray(simulated['curves'][name])
    real_curve = np.asarray(real['curves'][name])
    area = np.trapezoid(np.abs(simulated_curve - real_curve), GRID)
    if name != 'item popularity':
      area = area / np.trapezoid(real_curve, GRID)
    areas[name] = float(area)
  return areas


def view_of(preset: str, days: int) -> dict[str, Any]:
  """Return how a simulated log is read to compare it with a real one: arguments of `summary`.

  alibaba2014 knows days only. taobao_userbehavior_1k covers 9 days: its day stands for a ninth of
  the simulated period.
  """
  if preset == 'alibaba2014':
    return {'bin_days': 1.0, 'day_level': True}
  return {'bin_days': days / 9, 'day_level': False}
