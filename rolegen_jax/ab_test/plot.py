"""The picture of an A/B test, from its JSON alone."""

from __future__ import annotations

import os

import matplotlib
import numpy as np
from matplotlib.figure import Figure

COLOURS = {
  'RoleGen': '#0072B2',
  'no_reasoner': '#56B4E9',
  'SASRec': '#009E73',
  'recency': '#E69F00',
  'popularity': '#8A8A8A',
  'oracle': '#4A4A4A',
  'RoleGen_by_likelihood': '#D55E00',
  'no_reasoner_slates': '#CC79A7',
}


def draw(found: dict, path: str | os.PathLike) -> None:
  """Orders and customers of every arm over the days, and by how much the tested arm is ahead, with its interval."""
  with matplotlib.rc_context(
    {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9}
  ):
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    orders, customers, lifts = figure.subplots(1, 3)
    days = np.arange(1, found['days'] + 1)
    for name, arm in found['arms'].items():
      style = dict(
        color=COLOURS[name],
        label=name,
        lw=2 if name == found['tested'] else 1.2,
        ls='--' if name == 'oracle' else '-',
      )
      orders.plot(days, np.cumsum(arm['by_day']['orders']), **style)
      customers.plot(days, _smooth(arm['by_day']['daily_active_customers']), **style)
    orders.set(title='Orders so far, mean over seeds', xlabel='day', ylim=(0, None))
    customers.set(title='Customers of a day, mean of the last 7 days', xlabel='day')
    orders.legend(frameon=False)
    for name, lift in found['lifts'].items():
      known = [(day, each) for day, each in zip(days, lift['orders_by_day']) if each]
      if not known or name not in ('no_reasoner', 'recency', 'SASRec'):
        continue
      at, each = zip(*known)
      mean, low, high = (100 * np.array([x[key] for x in each]) for key in ('mean', 'low', 'high'))
      lifts.plot(at, mean, color=COLOURS[name], label=f'over {name}')
      if name == 'no_reasoner':
        lifts.fill_between(at, low, high, color=COLOURS[name], alpha=0.25, lw=0)
        lifts.set_ylim(
          1.2 * min(low[len(low) // 4 :].min(), mean.min(), 0),
          1.2 * max(high[len(high) // 4 :].max(), 1),
        )
    lifts.axhline(0, color='black', lw=0.8)
    lifts.set(title=f'Orders so far of {found["tested"]} over others, %', xlabel='day')
    if lifts.lines[1:]:
      lifts.legend(frameon=False)
    figure.suptitle(
      f'SIMULATED A/B test, {found["world"]}: {found["users"]} dormant users, {found["seeds"]} seeds',
      fontsize=10,
    )
    figure.savefig(path, dpi=110, format='png')


def _smooth(values: list[float], width: int = 7) -> np.ndarray:
  sums = np.cumsum(np.append(0.0, values))
  last = np.arange(1, len(values) + 1)
  first = np.maximum(last - width, 0)
  return (sums[last] - sums[first]) / (last - first)
