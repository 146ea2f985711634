"""The picture of an A/B test, from its JSON alone."""

from __future__ import annotations

import os

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
  'RoleGen': '#0072B2',
  'no_reasoner': '#56B4E9',
  'SASRec': '#009E73',
  'recency': '#E69F00',
  'popularity': '#8A8A8A',
  'oracle': '#4A4A4A',
  'RoleGen_by_likelihood': '#D55E00',
  'no_reasoner_slates': '#CC79A7',
}


def draw(result: dict, path: str | os.PathLike) -> None:
  """Draw orders and customers of every arm by day, and the lifts of the tested arm."""
  with matplotlib.rc_context(
    {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9}
  ):
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    orders, customers, lifts = figure.subplots(1, 3)
    _draw_arms(result, orders, customers)
    _draw_lifts(result, lifts)
    figure.suptitle(
      f'SIMULATED A/B test, {result["simulator"]}: {result["users"]} dormant users, '
      f'{result["seeds"]} seeds',
      fontsize=10,
    )
    figure.savefig(path, dpi=110, format='png')


def _draw_arms(result: dict, orders: Axes, customers: Axes) -> None:
  days = np.arange(1, result['days'] + 1)
  for name, arm in result['arms'].items():
    width, dashes = 2 if name == result['tested'] else 1.2, '--' if name == 'oracle' else '-'
    style = dict(color=COLORS[name], label=name, lw=width, ls=dashes)
    orders.plot(days, np.cumsum(arm['by_day']['orders']), **style)
    customers.plot(days, _smooth(arm['by_day']['daily_active_customers']), **style)
  orders.set(title='Orders so far, mean over seeds', xlabel='day', ylim=(0, None))
  customers.set(title='Customers of a day, mean of the last 7 days', xlabel='day')
  orders.legend(frameon=False)


def _draw_lifts(result: dict, lifts: Axes) -> None:
  days = np.arange(1, result['days'] + 1)
  for name, lift in result['lifts'].items():
    known = [(day, interval) for day, interval in zip(days, lift['orders_by_day']) if interval]
    if not known or name not in ('no_reasoner', 'recency', 'SASRec'):
      continue
    at, intervals = zip(*known)
    mean, low, high = (
      100 * np.array([interval[key] for interval in intervals]) for key in ('mean', 'low', 'high')
    )
    lifts.plot(at, mean, color=COLORS[name], label=f'over {name}')
    if name == 'no_reasoner':
      lifts.fill_between(at, low, high, color=COLORS[name], alpha=0.25, lw=0)
      # The first quarter of the days has few orders and wide intervals.
      bottom = min(low[len(low) // 4 :].min(), mean.min(), 0)
      top = max(high[len(high) // 4 :].max(), 1)
      lifts.set_ylim(1.2 * bottom, 1.2 * top)
  lifts.axhline(0, color='black', lw=0.8)
  lifts.set(title=f'Orders so far of {result["tested"]} over others, %', xlabel='day')
  if lifts.lines[1:]:
    lifts.legend(frameon=False)


def _smooth(values: list[float], width: int = 7) -> np.ndarray:
  """Return the mean of the last `width` values, of fewer at the start."""
  sums = np.cumsum(np.append(0.0, values))
  last = np.arange(1, len(values) + 1)
  first = np.maximum(last - width, 0)
  return (sums[last] - sums[first]) / (last - first)
