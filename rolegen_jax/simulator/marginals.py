"""Five marginals of a log as curves on a fixed grid, so that a simulated log can be compared with summaries of a real one."""

from __future__ import annotations

import numpy as np
import polars as pl

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
) -> dict:
  """Curves of the MARGINALS on GRID and the SCALARS of a log with columns user_id, item_id, event, timestamp.

  `bin_days`: width of the time bin in which a user is active or not (gaps are counted in bins). `day_level`: timestamps
  are floored to days first, as in a log that knows days only. Identical rows count once. Popularity is the share of
  events (y) held by the top share of items (x); with `per_item` it is taken on random users, so few that events per
  distinct item are as in the log compared with (a small sample has a longer tail). No noise: fixed seed.
  """
  if day_level:
    events = events.with_columns(pl.col('timestamp') // 86_400 * 86_400)
  events = (
    events.select('user_id', 'item_id', 'event', 'timestamp')
    .unique()
    .sort('user_id', 'timestamp', 'item_id', 'event')
  )
  start = events['timestamp'].min()
  events = events.with_columns(
    seen=pl.col('timestamp') > pl.col('timestamp').min().over('user_id', 'item_id'),
    bought=pl.col('event') == 'purchase',
    bin=((pl.col('timestamp') - start) / (86_400 * bin_days)).baseline().cast(pl.Int64),
  )
  users = events.group_by('user_id', maintain_order=True).agg(
    pl.len(), pl.col('bought').mean(), pl.col('seen').mean()
  )
  bins = events.select('user_id', 'bin').unique().sort('user_id', 'bin')
  gaps = bins.with_columns(gap=pl.col('bin').diff().over('user_id')).drop_nulls()['gap']
  samples = (users['len'], gaps, users['bought'], None, users['seen'])
  curves = {name: quantiles(s.to_numpy()) for name, s in zip(MARGINALS, samples) if s is not None}
  curves['item popularity'] = popularity(events, per_item)
  scalars = events['bought'].mean(), events['seen'].mean(), events.filter('bought')['seen'].mean()
  return {
    'curves': curves,
    'scalars': dict(zip(SCALARS, scalars)),
    'per_item': len(events) / events['item_id'].n_unique(),
  }


def quantiles(values: np.ndarray) -> np.ndarray:
  """Mid-level quantiles on GRID: the ends are the 0.5 % and 99.5 % points, so that one odd user does not set them."""
  return np.quantile(values, np.clip(GRID, 0.005, 0.995))


def popularity(events: pl.DataFrame, per_item: float | None, draws: int = 8) -> np.ndarray:
  """Lorenz curve from the top, on GRID; mean over `draws` random user samples if `per_item` is given."""
  rng, curves = np.random.default_rng(0), []
  users, items = (
    np.unique(events[c].to_numpy(), return_inverse=True)[1] for c in ('user_id', 'item_id')
  )
  for _ in range(draws if per_item else 1):
    if per_item:
      order = np.argsort(rng.permutation(users.max() + 1)[users], kind='stable')
      first = np.zeros(len(items), bool)
      first[np.unique(items[order], return_index=True)[1]] = True
      ratio = np.arange(1, len(items) + 1) / np.cumsum(first)
      below = np.flatnonzero(
        ratio < per_item
      )  # the last time that the growing sample is still sparser than asked
      kept = items[order[: below[-1] + 1]]
    else:
      kept = items
    counts = np.sort(np.bincount(kept)[np.unique(kept)])[::-1]
    held = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    curves.append(np.interp(GRID, np.linspace(0, 1, len(held)), held))
  return np.mean(curves, axis=0)


def distances(simulated: dict, real: dict) -> dict[str, float]:
  """Area between simulated and real curve per marginal.

  For quantile curves this is the Wasserstein-1 distance over the mean of the real log (0.1 = an average user is off by a
  tenth of the mean); for popularity the area between two curves in the unit square.
  """
  out = {}
  for name in MARGINALS:
    a, b = (np.asarray(s['curves'][name]) for s in (simulated, real))
    gap = np.trapezoid(np.abs(a - b), GRID)
    out[name] = float(gap if name == 'item popularity' else gap / np.trapezoid(b, GRID))
  return out


def view_of(preset: str, days: int) -> dict:
  """How a simulated log is read to compare it with a real one: keyword arguments of `summary`.

  alibaba2014 knows days only. taobao_userbehavior_1k covers 9 days: its day stands for a ninth of the simulated period.
  """
  return (
    {'bin_days': 1.0, 'day_level': True}
    if preset == 'alibaba2014'
    else {'bin_days': days / 9, 'day_level': False}
  )
