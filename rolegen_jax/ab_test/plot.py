"""The picture of an A/B test, from its JSON alone."""

from __future__ import annotations

import os

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rolegen_jax.ab_test.summary import SLATES, TESTED

# By name without `_slates`: an arm that shows slates is drawn with a broken line.
COLORS = {
  'RoleGen': '#0072B2',
  'no_reasoner': '#56B4E9',
  'SASRec': '#009E73',
  'counting': '#D55E00',
  'recency': '#E69F00',
  'popular_opens': '#CC79A7',
  'popularity': '#8A8A8A',
  'oracle': '#4A4A4A',
  'oracle_ahead': '#000000',
}
# Arms over which the lift of RoleGen, shown as they are, is drawn; the first with its interval.
LIFTS_OVER = ('no_reasoner_slates', 'no_reasoner', 'counting_slates', 'counting')


def draw(result: dict, path: str | os.PathLike) -> None:
  """Draw orders and customers of every arm by day, and the lifts of the tested arm."""
  with matplotlib.rc_context(
    {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9}
  ):
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    has_lifts = any(any(lift['orders_by_day']) for lift in result['lifts'].values())
    orders, customers, *lifts = figure.subplots(1, 3 if has_lifts else 2)
    _draw_arms(result, orders, customers)
    for axes in lifts:
      _draw_lifts(result, axes)
    figure.suptitle(
      f'SIMULATED A/B test, {result["simulator"]}: {result["users"]} dormant users, '
      f'{len(result["training_seeds"])} training x {result["seeds"]} noise seeds',
      fontsize=10,
    )
    figure.savefig(path, dpi=110, format='png')


def _draw_arms(result: dict, orders: Axes, customers: Axes) -> None:
  days = np.arange(1, result['days'] + 1)
  for name, arm in result['arms'].items():
    width = 2 if name.startswith(TESTED) else 1.2
    style = dict(color=_color(name), label=name, lw=width, ls=_dashes(name))
    orders.plot(days, np.cumsum(arm['by_day']['orders']), **style)
    customers.plot(days, _smooth(arm['by_day']['daily_active_customers']), **style)
  orders.set(title='Orders so far, mean over plays', xlabel='day', ylim=(0, None))
  customers.set(title='Customers of a day, mean of the last 7 days', xlabel='day')
  orders.legend(frameon=False, fontsize=6)


def _draw_lifts(result: dict, lifts: Axes) -> None:
  days = np.arange(1, result['days'] + 1)
  for name in (name for name in LIFTS_OVER if name in result['lifts']):
    by_day = result['lifts'][name]['orders_by_day']
    known = [(day, interval) for day, interval in zip(days, by_day) if interval]
    if not known:
      continue
    at, intervals = zip(*known)
    mean, low, high = (
      100 * np.array([interval[key] for interval in intervals]) for key in ('mean', 'low', 'high')
    )
    label = f'{result["lifts"][name]["tested"]} over {name}'
    lifts.plot(at, mean, color=_color(name), label=label, ls=_dashes(name))
    if name == LIFTS_OVER[0]:
      lifts.fill_between(at, low, high, color=_color(name), alpha=0.25, lw=0)
      # The first quarter of the days has few orders and wide intervals.
      bottom = min(low[len(low) // 4 :].min(), mean.min(), 0)
      top = max(high[len(high) // 4 :].max(), 1)
      lifts.set_ylim(1.2 * bottom, 1.2 * top)
  lifts.axhline(0, color='black', lw=0.8)
  lifts.set(title='Orders so far over arms shown alike, %', xlabel='day')
  if lifts.lines[1:]:
    lifts.legend(frameon=False, fontsize=7)


def _color(name: str) -> str:
  return COLORS[name.removesuffix(SLATES)]


def _dashes(name: str) -> str:
  return '--' if name.endswith(SLATES) else '-'


def _smooth(values: list[float], width: int = 7) -> np.ndarray:
  """Return the mean of the last `width` values, of fewer at the start."""
  sums = np.cumsum(np.append(0.0, values))
  last = np.arange(1, len(values) + 1)
  first = np.maximum(last - width, 0)
  return (sums[last] - sums[first]) / (last - first)
