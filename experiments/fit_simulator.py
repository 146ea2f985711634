"""Fit a simulator's presets to the marginals of two real logs and draw them.

  python -m experiments.fit_simulator --preset=alibaba2014    # fit, write, draw (minutes)
  python -m experiments.fit_simulator --kind=context --figure=docs/context_simulator.png
  python -m experiments.fit_simulator --draw_only             # redraw, no real log needed

Needs $ROLEGEN_DATA (default data/) with <preset>/events.parquet in the contract's columns. Only
fitted parameters and summary curves are written, never rows of a real log. Method: simulated
moments (summed distances of the marginals) by coordinate search with shrinking steps. No
recommender takes part.
"""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from absl import app, flags, logging
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rolegen_jax.cli.entry import parse_flags
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import EVENT_NAMES, SimulatorConfig
from rolegen_jax.data.files import renamed
from rolegen_jax.fields import local_path
from rolegen_jax.simulator import behavior, marginals, rules, world

PRESETS = ('alibaba2014', 'taobao_userbehavior_1k')
_PRESET = flags.DEFINE_enum('preset', 'both', PRESETS + ('both',), 'The real log to fit to.')
_KIND = flags.DEFINE_enum('kind', 'item_traits', ('item_traits', 'context'), 'The simulator.')
_ROUNDS = flags.DEFINE_integer('rounds', 4, 'Passes over the parameters.', lower_bound=1)
_USERS = flags.DEFINE_integer(
  'users', 900, 'Simulated users of a trial, about as many as the real logs have.', lower_bound=100
)
_DRAW_ONLY = flags.DEFINE_bool('draw_only', False, 'Only redraw the figure from the presets.')
_FIGURE = path_flag('figure', 'docs/simulator.png', 'Where the figure goes.')

# Where the search starts; the fav and cart shares are measured, not searched.
START = dict(
  events_mean=100.0,
  events_shape=1.2,
  session_events=3.0,
  gap_shape=0.9,
  purchase_rate=0.1,
  purchase_spread=0.8,
  never_share=0.1,
  tail=1.0,
  revisit=0.25,
  consideration=1.2,
)
BOUNDS = dict(
  never_share=(0.01, 0.6),
  revisit=(0.02, 0.95),
  consideration=(0.2, 4.0),
  session_events=(1.2, 40.0),
  tail=(0.2, 2.0),
)
DEFAULT_BOUNDS = (0.01, np.inf)
FIRST_STEP, SHRINK = 0.4, 0.6  # relative step of a parameter, and its factor after each round

POPULARITY = 'item popularity'
UNITS = {
  'events per user': 'events',
  'gap between active bins': 'bins',
  POPULARITY: 'share of events',
}
LOG_SCALED = ('events per user', 'gap between active bins')


def real_log(preset: str) -> pl.DataFrame:
  """Return the real log that `preset` is fitted to. Raises UsageError where it is missing."""
  folder = local_path(os.environ.get('ROLEGEN_DATA') or 'data', '$ROLEGEN_DATA')
  path = pathlib.Path(folder) / preset / 'events.parquet'
  if not path.exists():
    where = f'$ROLEGEN_DATA must be the folder that holds {preset}/events.parquet'
    raise app.UsageError(f'{path}: no such file; {where}')
  events = pl.read_parquet(path, columns=['user_id', 'item_id', 'event', 'timestamp'])
  if preset == 'taobao_userbehavior_1k':  # its days are days of UTC+8
    return events.with_columns(pl.col('timestamp') + 8 * 3600)
  return events


def trial(kind: str, preset: str, fitted: rules.Fitted, per_item: float, users: int) -> dict:
  """Return the summary of a log simulated with `fitted`, read as the real log of `preset` is."""
  config = SimulatorConfig(kind=kind, preset=preset, users=users, events_per_user_scale=1.0)
  simulator = world.build(config, fitted)
  user, item, event, time = behavior.draw_log(simulator)
  names = np.array(EVENT_NAMES)[event]
  log = pl.DataFrame({'user_id': user, 'item_id': item, 'event': names, 'timestamp': time})
  view = marginals.view_of(preset, simulator.rules.days)
  return marginals.summary(log, per_item=per_item, **view)


def loss(simulated: dict, real: dict) -> float:
  """Return the summed distances of the marginals and relative gaps of the scalars.

  Popularity has weight 3, as its curve lies in a unit square.
  """
  distances = marginals.distances(simulated, real)
  gaps = [abs(simulated['scalars'][k] / real['scalars'][k] - 1) for k in marginals.SCALARS]
  return sum(distances.values()) + 2 * distances[POPULARITY] + 0.5 * sum(gaps)


def fit(kind: str, preset: str, rounds: int, users: int) -> dict:
  """Return the target summary, fitted parameters and distances of one preset, as committed."""
  events = real_log(preset)
  target = marginals.summary(events)
  others = events.unique().filter(pl.col('event') != 'purchase')['event']
  shares = {f'{event}_share': float((others == event).mean()) for event in ('fav', 'cart')}

  def simulated(values: dict) -> dict:
    return trial(kind, preset, rules.Fitted(**values), target['per_item'], users)

  values, step = START | shares, FIRST_STEP
  best = loss(simulated(values), target)
  for number in range(rounds):
    for name in START:
      for factor in (1 + step, 1 / (1 + step)):
        improved = True
        while improved:  # keeps going in a direction that helps
          bounds = BOUNDS.get(name, DEFAULT_BOUNDS)
          tried = values | {name: float(np.clip(values[name] * factor, *bounds))}
          tried_loss = loss(simulated(tried), target)
          improved = tried_loss < best
          if improved:
            best, values = tried_loss, tried
    logging.info('%s round %d loss %.4f %s', preset, number, best, values)
    step *= SHRINK
  values = {name: float(f'{value:.4g}') for name, value in values.items()}
  distances = marginals.distances(simulated(values), target)
  fitted = dict(fitted=values, distance=rounded(distances))
  return {'target': rounded(target), kind: fitted}


def rounded(value):
  """Return numbers rounded to 5 digits and arrays as lists, of any nesting of dicts."""
  if isinstance(value, dict):
    return {key: rounded(x) for key, x in value.items()}
  if isinstance(value, np.ndarray):
    return [rounded(x) for x in value]
  return float(f'{value:.5g}')


def write(presets: dict) -> None:
  """Write the presets' JSON with one curve a line."""
  text = json.dumps(presets, indent=1)
  for preset in presets.values():
    for curve in preset['target']['curves'].values():
      indented = json.dumps(curve, indent=1).replace('\n', '\n    ')
      text = text.replace(indented, json.dumps(curve))
  with renamed(rules.PRESETS) as temporary:
    temporary.write_text(text + '\n', encoding='utf-8')


def draw(kind: str, presets: dict, users: int, path: str) -> None:
  """Draw every marginal of every preset, the real curve and the simulated one in each panel."""
  size = (17, 3.6 * len(presets))
  figure = Figure(figsize=size, layout='constrained')
  panels = figure.subplots(len(presets), len(marginals.MARGINALS), squeeze=False)
  for row, (preset, entry) in zip(panels, presets.items()):
    target = entry['target']
    fitted = rules.Fitted(**entry[kind]['fitted'])
    simulated = trial(kind, preset, fitted, target['per_item'], users)
    distances = marginals.distances(simulated, target)
    print(preset, 'real', target['scalars'], 'SIMULATED', rounded(simulated['scalars']))
    for panel, name in zip(row, marginals.MARGINALS):
      real, ours = target['curves'][name], simulated['curves'][name]
      panel.plot(marginals.GRID, real, color='#333333', lw=2.2, label=f'real log: {preset}')
      panel.plot(marginals.GRID, ours, color='#d1495b', lw=2.2, ls='--', label='SIMULATED')
      panel.set_title(f'{name}\ndistance {distances[name]:.3f}', fontsize=11)
      _label_axes(panel, name)
    row[0].legend(frameon=False, fontsize=8.5, loc='upper left')
  curves = 'quantile functions; popularity: top-share curve'
  figure.suptitle(f'SIMULATED log against the real logs of its presets ({curves})', fontsize=13)
  figure.savefig(path, dpi=110)


def _label_axes(panel: Axes, name: str) -> None:
  is_popularity = name == POPULARITY
  label = 'share of items, most popular first' if is_popularity else 'quantile'
  panel.set_xlabel(label, fontsize=9)
  panel.set_ylabel(UNITS.get(name, "share of the user's events"), fontsize=9)
  if name in LOG_SCALED:
    panel.set_yscale('log')
    for axis_of in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
      axis_of(ticker.FuncFormatter(_tick))
  panel.grid(alpha=0.25)
  panel.spines[['top', 'right']].set_visible(False)


def _tick(value: float, _: int) -> str:
  """Return the label of a tick, only at 1, 2 and 5 times a power of ten."""
  return f'{value:g}' if f'{value:e}'[0] in '125' else ''


def main(argv: Sequence[str]) -> None:
  del argv
  presets = rules.load_presets() if rules.PRESETS.exists() else {}
  for preset in PRESETS if _PRESET.value == 'both' else (_PRESET.value,):
    if not _DRAW_ONLY.value:
      fitted = fit(_KIND.value, preset, _ROUNDS.value, _USERS.value)
      presets[preset] = presets.get(preset, {}) | fitted
      write(presets)
    print(preset, presets[preset][_KIND.value])
  draw(_KIND.value, presets, _USERS.value, _FIGURE.value)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
