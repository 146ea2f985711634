"""What arms of an A/B test sold, with intervals, and by how much one arm is ahead of another.

Every measure is linear in values of single (seed, user) pairs, so a resample is two vectors of weights: seeds and users are drawn with
replacement, each on its own (the pigeonhole bootstrap for crossed factors: Owen, Annals of Applied Statistics 2007), the same
for all arms, which makes differences paired.

Shapes: S seeds, N users, D days, R resamples.
"""

from __future__ import annotations

import numpy as np

from rolegen_jax.ab_test.arms import Played

MEASURES = {  # name -> what it is
  'orders': 'orders of the cohort over all days',
  'conversion_rate': 'share of the cohort that orders at least once',
  'daily_active_customers': 'users who order on a day, mean over days',
  'gmv': 'prices of all orders, in the currency of the item table',
}
SHARE_OF = {
  'shown_view_rate': 'shown_views',
  'shown_order_rate': 'shown_orders',
}  # a visit, for reading; no intervals


def values(played: list[Played]) -> dict[str, np.ndarray]:
  """[S, N] of each measure: what a pair contributes; the measure is the sum over users of the mean over seeds."""
  orders = np.stack([p.orders for p in played])
  users, days = orders.shape[1:]
  return dict(
    orders=orders.sum(2, dtype=np.float64),
    conversion_rate=orders.any(2) / users,
    daily_active_customers=(orders > 0).sum(2) / days,
    gmv=np.stack([p.revenue.sum(1, dtype=np.float64) for p in played]),
  )


def weights(seeds: int, users: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """How often each seed [R, S] (as a share) and each user [R, N] is drawn. One seed has no spread: its weight is always 1."""
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)
  return draw(seeds) / seeds, draw(users)


def summarise(arms: dict[str, list[Played]], tested: str, resamples: int, seed: int) -> dict:
  """The arms' measures, the lifts of `tested` over each other arm, and both by day. Intervals hold 95 %."""
  seeds, (users, days) = len(next(iter(arms.values()))), next(iter(arms.values()))[0].orders.shape
  seed_RxS, user_RxN = weights(seeds, users, resamples, seed)
  totals = lambda value_SxN: ((seed_RxS @ value_SxN) * user_RxN).sum(1)
  found, drawn, means = {}, {}, {}
  for name, played in arms.items():
    measured = values(played)
    drawn[name] = {measure: totals(value) for measure, value in measured.items()}
    means[name] = {measure: float(value.mean(0).sum()) for measure, value in measured.items()}
    orders = np.stack([p.orders for p in played])
    visits = sum(int(p.visits.sum()) for p in played)
    found[name] = {
      measure: interval(means[name][measure], drawn[name][measure]) for measure in MEASURES
    }
    found[name] |= {
      label: sum(int(getattr(p, field).sum()) for p in played) / max(visits, 1)
      for label, field in SHARE_OF.items()
    }
    found[name]['by_day'] = dict(
      orders=orders.sum(1).mean(0).tolist(),
      daily_active_customers=(orders > 0).sum(1).mean(0).tolist(),
      gmv=np.stack([p.revenue.sum(0, dtype=np.float64) for p in played]).mean(0).tolist(),
    )
    found[name]['orders_by_seed'] = orders.sum((1, 2)).tolist()
  result = dict(
    tested=tested,
    users=users,
    days=days,
    seeds=seeds,
    resamples=resamples,
    visits=visits / seeds,
    arms=found,
    lifts={},
  )
  for name in arms if tested in arms else ():
    if name != tested:
      result['lifts'][name] = {
        m: lift(means[tested][m], means[name][m], drawn[tested][m], drawn[name][m])
        for m in MEASURES
      }
      sums = [np.cumsum(np.stack([p.orders for p in arms[arm]]), axis=2) for arm in (tested, name)]
      result['lifts'][name]['orders_by_day'] = [
        lift(
          *(float(total[:, :, d].mean(0).sum()) for total in sums),
          *(totals(total[:, :, d]) for total in sums),
        )
        for d in range(days)
      ]
  return result


def lift(
  ours: float, theirs: float, ours_R: np.ndarray, theirs_R: np.ndarray
) -> dict[str, float] | None:
  """Ours over theirs, less 1; None where there is nothing to compare with."""
  return interval(ours / theirs - 1, ours_R / theirs_R - 1) if theirs and theirs_R.all() else None


def interval(mean: float, drawn_R: np.ndarray) -> dict[str, float]:
  low, high = np.percentile(drawn_R, [2.5, 97.5])
  return dict(mean=mean, low=float(low), high=float(high))


def table(found: dict) -> str:
  """Arms and lifts as text."""
  size = f'{found["users"]} dormant users, {found["days"]} days, {found["seeds"]} seeds, {found["visits"]:.0f} visits a seed'
  lines = [f'{found["world"]}: {size}; 95 % intervals over seeds and users']
  first = max(13, *(len(name) + 1 for name in found['arms']))
  lines.append(
    f'{"":{first}}{"orders":>24}{"conversion rate, %":>24}{"daily customers":>24}{"GMV":>30}{"views, orders of slate a visit":>34}'
  )
  for name, arm in found['arms'].items():
    shown = (
      ('orders', 0, 24, 1),
      ('conversion_rate', 2, 24, 100),
      ('daily_active_customers', 1, 24, 1),
      ('gmv', 0, 30, 1),
    )
    cells = ''.join(_cell(arm[measure], *style) for measure, *style in shown)
    lines.append(
      f'{name:{first}}{cells}{arm["shown_view_rate"]:24.3f}{arm["shown_order_rate"]:10.4f}'
    )
  for name, lifts in found['lifts'].items():
    cells = ''.join(
      _cell(lifts[measure], 2, width, 100, True)
      for measure, width in zip(MEASURES, (24, 24, 24, 30))
    )
    lines.append(f'{found["tested"]} over {name}, %\n' + ' ' * first + cells)
  return '\n'.join(lines)


def _cell(value: dict | None, digits: int, width: int, times: float = 1, sign: bool = False) -> str:
  if value is None:
    return '–'.rjust(width)
  mean, low, high = (
    f'{times * value[key]:{"+" if sign else ""}.{digits}f}' for key in ('mean', 'low', 'high')
  )
  return f'{mean} [{low}, {high}]'.rjust(width)
