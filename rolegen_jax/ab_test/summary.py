"""What the arms of an A/B test sold, with intervals, and the lift of RoleGen over each other arm.

Lifts are like for like: RoleGen by log p over arms by log p, its slates over slates.

Every measure is linear in values of single (training seed, noise seed, user) triples, so a resample
is three vectors of weights: each of the three is drawn with replacement on its own (the pigeonhole
bootstrap for crossed factors: Owen, Annals of Applied Statistics 2007). All arms share them, which
makes differences paired.

Shapes: T training seeds, S noise seeds, P = T * S plays, the noise seeds of a training seed side by
side, N users, D days, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rolegen_jax.ab_test.arms import Played

# Name of a measure -> what it is.
MEASURES = {
  'orders': 'orders of the cohort over all days',
  'conversion_rate': 'share of the cohort that orders at least once',
  'daily_active_customers': 'users who order on a day, mean over days',
  'gmv': 'prices of all orders, in the currency of the item table',
}
TESTED, SLATES = 'RoleGen', '_slates'
# Shown in orders of their own, which count what a look does, as slates do.
POPULAR_OPENS, AHEAD = 'popular_opens', 'oracle_ahead'
# Per visit, for reading; without intervals.
PER_VISIT = {'shown_view_rate': 'shown_views', 'shown_order_rate': 'shown_orders'}


def values(played: list[Played]) -> dict[str, np.ndarray]:
  """Return [P, N] of each measure: what a user contributes to a play.

  The measure is the sum over users of the mean over plays.
  """
  orders = np.stack([p.orders for p in played])
  users, days = orders.shape[1:]
  return dict(
    orders=orders.sum(2, dtype=np.float64),
    conversion_rate=orders.any(2) / users,
    daily_active_customers=(orders > 0).sum(2) / days,
    gmv=np.stack([p.revenue.sum(1, dtype=np.float64) for p in played]),
  )


class Resamples:
  """How often each play [R, P] (as a share) and each user [R, N] is drawn in each resample.

  A play is drawn by its training seed and its noise seed. A single seed does not vary: its weight
  is always 1.
  """

  def __init__(self, training_seeds: int, seeds: int, users: int, resamples: int, seed: int):
    rng = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
      return rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)

    training_RxT, seed_RxS, self.user_RxN = draw(training_seeds), draw(seeds), draw(users)
    play_RxTxS = training_RxT[:, :, None] * seed_RxS[:, None] / (training_seeds * seeds)
    self.play_RxP = play_RxTxS.reshape(resamples, -1)

  def totals(self, value_PxN: np.ndarray) -> np.ndarray:
    """Return the measure under each resample, [R]."""
    return ((self.play_RxP @ value_PxN) * self.user_RxN).sum(1)


def tested_against(name: str) -> str:
  """Return the arm whose lift over arm `name` is like for like: RoleGen shown as `name` is."""
  counts_looks = name.endswith(SLATES) or name in (POPULAR_OPENS, AHEAD)
  return TESTED + SLATES if counts_looks else TESTED


def summarize(
  arms: dict[str, list[Played]], training_seeds: list[int], resamples: int, seed: int
) -> dict:
  """Return the arms' measures, and the lifts of RoleGen over every other arm, also by day.

  Intervals hold 95 %. arms: the P plays of each, those of the first training seed first.
  """
  first = next(iter(arms.values()))
  plays, (users, days) = len(first), first[0].orders.shape
  seeds = plays // len(training_seeds)
  draws = Resamples(len(training_seeds), seeds, users, resamples, seed)
  visits = sum(int(p.visits.sum()) for p in next(reversed(arms.values())))
  ours = {name: tested_against(name) for name in arms}
  return dict(
    tested=TESTED,
    users=users,
    days=days,
    seeds=seeds,
    training_seeds=training_seeds,
    resamples=resamples,
    visits=visits / plays,
    arms={name: _measure(played, seeds, draws) for name, played in arms.items()},
    lifts={
      name: dict(tested=our, **_lifts(arms[our], arms[name], draws))
      for name, our in ours.items()
      if our in arms and our != name
    },
  )


def about_intervals(training_seeds: list[int]) -> str:
  """Return what the intervals are over."""
  if len(training_seeds) > 1:
    return '95 % intervals over training seeds, noise seeds and users'
  return '95 % intervals over noise seeds and users, for one training seed'


def _measure(played: list[Played], seeds: int, draws: Resamples) -> dict[str, Any]:
  """Return the measures of one arm, with intervals, and its days."""
  measures: dict[str, Any] = {
    name: interval(float(value.mean(0).sum()), draws.totals(value))
    for name, value in values(played).items()
  }
  visits = max(sum(int(p.visits.sum()) for p in played), 1)
  for label, field in PER_VISIT.items():
    measures[label] = sum(int(getattr(p, field).sum()) for p in played) / visits
  orders = np.stack([p.orders for p in played])
  revenue = np.stack([p.revenue.sum(0, dtype=np.float64) for p in played])
  measures['by_day'] = dict(
    orders=orders.sum(1).mean(0).tolist(),
    daily_active_customers=(orders > 0).sum(1).mean(0).tolist(),
    gmv=revenue.mean(0).tolist(),
  )
  by_play = orders.sum((1, 2))
  measures['orders_by_seed'] = by_play.reshape(-1, seeds).tolist()  # [T, S]
  return measures


def _lifts(ours: list[Played], theirs: list[Played], draws: Resamples) -> dict[str, Any]:
  """Return the lift of one arm over another in every measure, and in orders up to each day."""

  def compare(our_PxN: np.ndarray, their_PxN: np.ndarray) -> dict[str, float] | None:
    our_mean, their_mean = (float(value.mean(0).sum()) for value in (our_PxN, their_PxN))
    return lift(our_mean, their_mean, draws.totals(our_PxN), draws.totals(their_PxN))

  our_values, their_values = values(ours), values(theirs)
  lifts: dict[str, Any] = {name: compare(our_values[name], their_values[name]) for name in MEASURES}
  our_orders, their_orders = (
    np.cumsum(np.stack([p.orders for p in arm]), axis=2) for arm in (ours, theirs)
  )
  lifts['orders_by_day'] = [
    compare(our_orders[:, :, d], their_orders[:, :, d]) for d in range(our_orders.shape[2])
  ]
  return lifts


def lift(
  ours: float, theirs: float, ours_R: np.ndarray, theirs_R: np.ndarray
) -> dict[str, float] | None:
  """Return ours over theirs, less 1; None where there is nothing to compare with."""
  return interval(ours / theirs - 1, ours_R / theirs_R - 1) if theirs and theirs_R.all() else None


def interval(mean: float, resampled_R: np.ndarray) -> dict[str, float]:
  """Return the mean with its percentile interval of 95 %."""
  low, high = np.percentile(resampled_R, [2.5, 97.5])
  return dict(mean=mean, low=float(low), high=float(high))


def table(result: dict) -> str:
  """Return arms and lifts as text."""
  training = ', '.join(map(str, result['training_seeds']))
  size = (
    f'{result["users"]} dormant users, {result["days"]} days, {result["visits"]:.0f} visits a '
    f'play, {result["seeds"]} noise seeds, trained with seed {training}'
  )
  first = max(13, *(len(name) + 1 for name in result['arms']))
  titles = ('orders', 'conversion rate, %', 'daily customers')
  lines = [
    f'{result["simulator"]}: {size}; {about_intervals(result["training_seeds"])}',
    ' ' * first
    + ''.join(f'{title:>24}' for title in titles)
    + f'{"GMV":>30}{"views, orders of slate a visit":>34}',
  ]
  styles = dict(
    orders=(0, 24, 1),
    conversion_rate=(2, 24, 100),
    daily_active_customers=(1, 24, 1),
    gmv=(0, 30, 1),
  )
  for name, arm in result['arms'].items():
    cells = ''.join(_cell(arm[measure], *style) for measure, style in styles.items())
    rates = f'{arm["shown_view_rate"]:24.3f}{arm["shown_order_rate"]:10.4f}'
    lines.append(f'{name:{first}}{cells}{rates}')
  for name, lifts in result['lifts'].items():
    cells = ''.join(
      _cell(lifts[measure], 2, width, 100, signed=True) for measure, (_, width, _) in styles.items()
    )
    lines += [f'{lifts["tested"]} over {name}, %', ' ' * first + cells]
  if result['opens_agreement'] is not None:
    lines.append(
      'Spearman correlation of what items open, as counted for everybody, with the true effects '
      f'of looks at them: {result["opens_agreement"]:.2f}, mean over users'
    )
  about = result['provenance']
  if about['dirty'] is not False:
    lines.append(f'not from a clean checkout: commit {about["commit"]}')
  return '\n'.join(lines)


def _cell(
  value: dict | None, digits: int, width: int, factor: float = 1, signed: bool = False
) -> str:
  if value is None:
    return '–'.rjust(width)
  sign = '+' if signed else ''
  mean, low, high = (f'{factor * value[key]:{sign}.{digits}f}' for key in ('mean', 'low', 'high'))
  return f'{mean} [{low}, {high}]'.rjust(width)
