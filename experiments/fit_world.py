"""Fits the simulated world's presets to the marginals of two real logs and draws docs/simulated_world.png.

  python -m experiments.fit_world --preset=alibaba2014            # fit, write the preset, draw (minutes)
  python -m experiments.fit_world --preset=both --draw_only       # redraw from the committed statistics, no real log needed

Needs $ROLEGEN_DATA (default data/) with <preset>/events.parquet in the contract's columns. Only fitted parameters and
summary curves are written, never rows of a real log. Method: simulated moments (summed distances of the marginals) by
coordinate search with shrinking steps. No recommender takes part.
"""

import json
import os
import pathlib

import matplotlib
import numpy as np
import polars as pl
from absl import app, flags, logging

from rolegen_jax.config import EVENT_NAMES, SimulatorConfig
from rolegen_jax.simulator import behavior, marginals, rules, world

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402, after the backend is chosen
from matplotlib import ticker

PRESETS = ('alibaba2014', 'taobao_userbehavior_1k')
FLAGS = flags.FLAGS
flags.DEFINE_enum('preset', 'both', PRESETS + ('both',), 'which real log to fit to')
flags.DEFINE_integer('rounds', 4, 'passes over the parameters', lower_bound=1)
flags.DEFINE_integer(
  'users', 900, 'simulated users per trial, about as many as the real logs have', lower_bound=100
)
flags.DEFINE_bool('draw_only', False, 'only redraw the figure from the committed presets')
flags.DEFINE_string('figure', 'docs/simulated_world.png', 'where the figure goes')

# Where the search starts; the fav and cart shares are measured, not searched.
START = {
  'events_mean': 100.0, 'events_shape': 1.2, 'session_events': 3.0, 'gap_shape': 0.9, 'purchase_rate': 0.1,
  'purchase_spread': 0.8, 'never_share': 0.1, 'tail': 1.0, 'revisit': 0.25, 'consideration': 1.2,
}  # fmt: skip
BOUNDS = {
  'never_share': (0.01, 0.6), 'revisit': (0.02, 0.95), 'consideration': (0.2, 4.0), 'session_events': (1.2, 40.0),
  'tail': (0.2, 2.0),
}  # fmt: skip
UNITS = {
  'events per user': 'events',
  'gap between active bins': 'bins',
  'item popularity': 'share of events',
}


def real_log(preset: str) -> pl.DataFrame:
  path = pathlib.Path(os.environ.get('ROLEGEN_DATA', 'data')) / preset / 'events.parquet'
  if not path.exists():
    raise app.UsageError(
      f'{path} not found: set $ROLEGEN_DATA to the folder that holds {preset}/events.parquet'
    )
  events = pl.read_parquet(path, columns=['user_id', 'item_id', 'event', 'timestamp'])
  # The Taobao log's days are days of UTC+8.
  return (
    events.with_columns(pl.col('timestamp') + 8 * 3600)
    if preset == 'taobao_userbehavior_1k'
    else events
  )


def trial(preset: str, fitted: rules.Fitted, per_item: float, users: int) -> dict:
  """Summary of a log simulated with `fitted`, read as the real log of `preset` is."""
  built = world.World.build(
    SimulatorConfig(preset=preset, users=users, events_per_user_scale=1.0), fitted
  )
  user, item, code, time = behavior.draw_log(built)
  events = pl.DataFrame(
    {'user_id': user, 'item_id': item, 'event': np.array(EVENT_NAMES)[code], 'timestamp': time}
  )
  return marginals.summary(events, per_item=per_item, **marginals.view_of(preset, built.rules.days))


def loss(simulated: dict, real: dict) -> float:
  """Summed distances, popularity weighted by 3 (its curve lives in a unit square), and gaps of the scalars."""
  d = marginals.distances(simulated, real)
  scalars = [abs(simulated['scalars'][k] / real['scalars'][k] - 1) for k in marginals.SCALARS]
  return sum(d.values()) + 2 * d['item popularity'] + 0.5 * sum(scalars)


def fit(preset: str, rounds: int, users: int) -> dict:
  """{'fitted', 'target', 'distance'} of one preset, as committed."""
  events = real_log(preset)
  target = marginals.summary(events)
  rest = events.unique().filter(pl.col('event') != 'purchase')['event']
  marks = {f'{mark}_share': float((rest == mark).mean()) for mark in ('fav', 'cart')}
  values, step = START | marks, 0.4
  best = loss(trial(preset, rules.Fitted(**values), target['per_item'], users), target)
  for turn in range(rounds):
    for name in START:
      for factor in (1 + step, 1 / (1 + step)):
        better = True
        while better:  # keeps going in a direction that helps
          low, high = BOUNDS.get(name, (0.01, np.inf))
          tried = values | {name: float(np.clip(values[name] * factor, low, high))}
          found = loss(trial(preset, rules.Fitted(**tried), target['per_item'], users), target)
          better = found < best
          if better:
            best, values = found, tried
    logging.info('%s round %d loss %.4f %s', preset, turn, best, values)
    step *= 0.6
  values = {k: float(f'{v:.4g}') for k, v in values.items()}
  found = trial(preset, rules.Fitted(**values), target['per_item'], users)
  return {
    'fitted': values,
    'target': plain(target),
    'distance': plain(marginals.distances(found, target)),
  }


def plain(x):
  """Numbers rounded to 5 digits, arrays as lists."""
  if isinstance(x, dict):
    return {k: plain(v) for k, v in x.items()}
  return [plain(v) for v in x] if isinstance(x, np.ndarray) else float(f'{x:.5g}')


def write(presets: dict) -> None:
  """The presets' JSON with one curve a line, by a temporary name."""
  text = json.dumps(presets, indent=1)
  for preset in presets.values():
    for curve in preset['target']['curves'].values():
      text = text.replace(json.dumps(curve, indent=1).replace('\n', '\n    '), json.dumps(curve))
  temporary = rules.PRESETS.with_suffix('.tmp')
  temporary.write_text(text + '\n')
  temporary.rename(rules.PRESETS)


def draw(presets: dict, users: int, path: str) -> None:
  """Both presets x 5 marginals, the real curve and the simulated one in each panel."""
  grid = marginals.GRID
  figure, axes = plt.subplots(
    len(presets), 5, figsize=(17, 3.6 * len(presets)), layout='constrained', squeeze=False
  )
  for row, (preset, entry) in zip(axes, presets.items()):
    found = trial(preset, rules.Fitted(**entry['fitted']), entry['target']['per_item'], users)
    distance = marginals.distances(found, entry['target'])
    print(preset, 'real', entry['target']['scalars'], 'SIMULATED', plain(found['scalars']))
    for axis, name in zip(row, marginals.MARGINALS):
      axis.plot(
        grid, entry['target']['curves'][name], color='#333333', lw=2.2, label=f'real log: {preset}'
      )
      axis.plot(grid, found['curves'][name], color='#d1495b', lw=2.2, ls='--', label='SIMULATED')
      axis.set_title(f'{name}\ndistance {distance[name]:.3f}', fontsize=11)
      axis.set_xlabel(
        'share of items, most popular first' if name == 'item popularity' else 'quantile',
        fontsize=9,
      )
      axis.set_ylabel(UNITS.get(name, "share of the user's events"), fontsize=9)
      if name in ('events per user', 'gap between active bins'):
        axis.set_yscale('log')
        for side in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
          side(
            ticker.FuncFormatter(lambda value, _: f'{value:g}' if f'{value:e}'[0] in '125' else '')
          )
      axis.grid(alpha=0.25)
      axis.spines[['top', 'right']].set_visible(False)
    row[0].legend(frameon=False, fontsize=8.5, loc='upper left')
  title = 'SIMULATED world against the real logs its presets were fitted to (quantile functions; popularity: top-share curve)'
  figure.suptitle(title, fontsize=13)
  figure.savefig(path, dpi=110)


def main(argv):
  del argv
  presets = rules.load_presets() if rules.PRESETS.exists() else {}
  for preset in PRESETS if FLAGS.preset == 'both' else (FLAGS.preset,):
    if not FLAGS.draw_only:
      presets[preset] = fit(preset, FLAGS.rounds, FLAGS.users)
      write(presets)
    print(preset, presets[preset]['distance'], presets[preset]['fitted'])
  draw(presets, FLAGS.users, FLAGS.figure)


if __name__ == '__main__':
  app.run(main)
