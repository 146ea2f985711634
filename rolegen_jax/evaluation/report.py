"""The report of a run: report.json and report.html.

report.json holds everything, for machines; report.html is one self-contained page that needs no
network. `write_report(folder, content)` takes one plain dict. Only `title` and `provenance` are
required; a section whose key is missing or empty is left out. Intervals are `metrics.Interval` or
dicts of its fields, of shares in 0..1.

  title         str
  provenance    dict, shown as it is. Must hold data (str), simulated (bool), when, device_kind,
                versions (dict), commit, seed, config_digest; further entries are shown too
  systems       {name: {kind, metrics, settings?, diversity?}}: kind is 'model', 'ablation' or
                'baseline', metrics of `metrics.evaluate`, diversity of `diversity.list_diversity`;
                the first of kind 'model' is the system under test
  differences   {name: {slice: Interval}}: paired difference of HI@10, system under test minus
                `name`, of `metrics.compare`
  training      rows of metrics.jsonl: {stage, step, name: value, ...}
  roles         {shares?, scores?, judged_by?, agreement?, effects?, deletion?}: shares are
                {source: {role: share}}; scores {situation: {who predicts: role_scores.scores}},
                against what judged_by says; agreement of roles in hindsight, effects and deletion
                are of `agreement.role_agreement`, `agreement.effect_agreement` and
                `deletion.deletion_curves`; agreement and effects exist only in simulated data,
                where the truth is known
  worlds        of `diversity.world_diversity`, and systems: {name: {jaccard, union_size, hits,
                difference}}, the last two {slice: Interval}; difference is the first system minus
                this one
  alignment     rows of {question, items, number, chance, STAGE: accuracy after that stage, ...},
                of evaluation/alignment.py
  semantic_ids  {name: number or text}, nested dicts allowed
  trajectories  list of {user, cohort, target, rank (1-based, 0 = not listed), k,
                events: [{when, item, event, role}],
                worlds: [{name, event (index of the changed event, -1 = none), change,
                candidates: [item]}],
                sentences?: {events: [str], intents: [str]}, in the reasoner's words};
                texts are shown as they are, and the last SHOWN_EVENTS events are drawn
  notes         list of str, shown under the headline
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from typing import Any

import jinja2
import numpy as np

from rolegen_jax.data.files import renamed, write_json
from rolegen_jax.evaluation import plots
from rolegen_jax.evaluation.metrics import SLICES, Interval, verdict
from rolegen_jax.runtime import storage

METRIC = 'HI@10'  # of the headline, the plot and the paired differences
SHOWN_EVENTS = 14
REQUIRED = (
  'data',
  'simulated',
  'when',
  'device_kind',
  'versions',
  'commit',
  'seed',
  'config_digest',
)
_TABLE_METRICS = ('HI@1', 'HI@5', 'HI@10', 'HI@50', 'NDCG@10', 'MRR')
# The order of the tables after the one of the main slice.
_OTHER_SLICES = (
  *('D1', 'D2', 'dormant seen', 'dormant new', 'dormant cold'),
  *('ACTIVE', 'all', 'all cold'),
)
_PENALTY = '_exposure_penalty'  # suffix of systems whose lists an exposure penalty reordered
_EVENT_GLYPHS = {
  'impression': '·',
  'view': '○',
  'fav': '♡',
  'cart': '▣',
  'remove': '✕',
  'purchase': '★',
}

Content = dict[str, Any]


def write_report(folder: str | os.PathLike, content: Content) -> pathlib.Path:
  """Write report.json and report.html into `folder`; return the path of the page.

  Raises ValueError when the title or an entry of the provenance is missing: a number without
  provenance is not reported.
  """
  _check_required(content)
  folder = storage.path(folder)
  plain = _plain(content)
  write_json(plain, folder / 'report.json')
  page = folder / 'report.html'
  with renamed(page) as temporary:
    temporary.write_text(render(plain), encoding='utf-8')
  return page


def _check_required(content: Content) -> None:
  provenance = content.get('provenance', {})
  missing = [] if 'title' in content else ['title']
  missing += [f'provenance.{key}' for key in REQUIRED if key not in provenance]
  if missing:
    raise ValueError(f'the content of a report lacks {", ".join(missing)}')


def render(content: Content) -> str:
  """Return the page of a plain content dict (Intervals as dicts, as in report.json)."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {'number': _number, 'flat': _flat, 'interval': _interval}
  content = _with_plain_names(content)
  return environment.get_template('report.html.j2').render(
    title=content['title'],
    provenance=content['provenance'],
    notes=content.get('notes') or [],
    results=_results(content),
    diversity=_diversity(content),
    training=_training(content),
    roles=_roles(content),
    worlds=_worlds(content),
    alignment=content.get('alignment') or [],
    semantic_ids=content.get('semantic_ids') or {},
    trajectories=[_trajectory(t) for t in content.get('trajectories') or []],
    role_colors=plots.ROLE_COLORS,
    role_short=plots.ROLE_SHORT,
    glyphs=_EVENT_GLYPHS,
  )


def _plain(value: Any) -> Any:
  """Return a copy for JSON: dataclasses as dicts, numpy as Python, NaN and infinity as None."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return _plain(dataclasses.asdict(value))
  if isinstance(value, dict):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(entry) for entry in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, np.generic):
    return _plain(value.item())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_plain_names(content: Content) -> Content:
  """Return the content with systems and stages named as a reader says them."""
  named = dict(content)
  for section in ('systems', 'differences'):
    named[section] = _rename(content.get(section) or {})
  worlds = content.get('worlds')
  if worlds and 'systems' in worlds:
    named['worlds'] = worlds | dict(systems=_rename(worlds['systems']))
  rows = content.get('training') or []
  named['training'] = [row | dict(stage=_stage_name(row['stage'])) for row in rows]
  return named


def _rename(systems: dict[str, Any]) -> dict[str, Any]:
  return {_system_name(name): system for name, system in systems.items()}


def _system_name(name: str) -> str:
  """Return 'no reasoner, exposure penalty' for 'no_reasoner_exposure_penalty', and so on."""
  if name.endswith(_PENALTY):
    return f'{_system_name(name.removesuffix(_PENALTY))}, exposure penalty'
  return dict(item_knn='ItemKNN', u2i='U2I').get(name, name.replace('_', ' '))


def _stage_name(name: str) -> str:
  """Return 'ablation: no reasoner' for the stage 'ablations/no_reasoner'."""
  folder, _, ablation = name.rpartition('/')
  return f'ablation: {_system_name(ablation)}' if folder == 'ablations' else name


def _number(value: Any) -> str:
  """Format a number to four significant digits with commas at thousands; other values as text."""
  if value is None:
    return '–'
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def _interval(interval: dict, spec: str, scale: float = 1) -> str:
  """Format an interval as 'mean [low, high]', each number by `spec`."""
  mean, low, high = (format(scale * interval[part], spec) for part in ('mean', 'low', 'high'))
  return f'{mean} [{low}, {high}]'


def _flat(nested: dict, prefix: str = '') -> list[tuple[str, Any]]:
  """Return (dotted name, leaf) of a nested dict; a list becomes one text."""
  leaves: list[tuple[str, Any]] = []
  for key, value in nested.items():
    if isinstance(value, dict):
      leaves += _flat(value, f'{prefix}{key}.')
    elif isinstance(value, list):
      leaves.append((f'{prefix}{key}', ', '.join(map(_number, value))))
    else:
      leaves.append((f'{prefix}{key}', value))
  return leaves


def _results(content: Content) -> dict | None:
  """Return the headline, tables by slice, and the two plots of systems."""
  systems = content['systems']
  if not systems:
    return None
  present = [part for part in SLICES if any(part in s['metrics'] for s in systems.values())]
  main = 'dormant' if 'dormant' in present else present[0]
  intervals = {
    name: (system['kind'], Interval(**system['metrics'][main][METRIC]))
    for name, system in systems.items()
    if METRIC in system['metrics'].get(main, {})
  }
  scores = {name: _score(kind, interval) for name, (kind, interval) in intervals.items()}
  tested = next((name for name, system in systems.items() if system['kind'] == 'model'), None)
  best = max(intervals, key=lambda name: intervals[name][1].mean) if intervals else None
  slices = [main, *(part for part in _OTHER_SLICES if part in present and part != main)]
  return dict(
    slice=main,
    metric=METRIC,
    tested=tested,
    best=best,
    baseline_wins=best is not None and intervals[best][0] == 'baseline' and tested is not None,
    scores=scores,
    plot=plots.system_intervals(intervals, f'{METRIC}, {main}') if intervals else '',
    tables=[_table(systems, part) for part in slices],
    levels=_table(systems, main, levels=True),
    settings={name: _flat(s['settings']) for name, s in systems.items() if s.get('settings')},
    **_differences(content['differences'], tested, main),
  )


def _score(kind: str, interval: Interval) -> dict[str, str]:
  """Return what the headline says of a system, in per cent."""
  low, high = f'{100 * interval.low:.1f}', f'{100 * interval.high:.1f}'
  return dict(kind=kind, mean=f'{100 * interval.mean:.1f}', range=f'{low}–{high}')


def _differences(differences: dict, tested: str | None, part: str) -> dict[str, Any]:
  """Return the paired differences on one slice: a plot, and (name, verdict, mean, low, high)."""
  shown = {
    name: Interval(**by_slice[part]) for name, by_slice in differences.items() if part in by_slice
  }
  if not tested or not shown:
    return dict(difference_plot='', differences=[])
  rows = [
    (name, verdict(d), _points(d.mean), _points(d.low), _points(d.high))
    for name, d in shown.items()
  ]
  return dict(difference_plot=plots.differences(shown, tested, METRIC), differences=rows)


def _points(share: float) -> str:
  """Format a difference of shares as percentage points."""
  return f'{100 * share:+.1f}'


def _table(systems: dict, part: str, levels: bool = False) -> dict[str, Any]:
  """Return the table of one slice: its main metrics, or its HS@k by semantic-ID level."""
  metrics_of = {name: s['metrics'][part] for name, s in systems.items() if part in s['metrics']}
  present = dict.fromkeys(metric for metrics in metrics_of.values() for metric in metrics)
  shown = [m for m in present if (m.startswith('HS@') if levels else m in _TABLE_METRICS)]
  best = {
    metric: max(
      metrics[metric]['mean'] or 0.0 for metrics in metrics_of.values() if metric in metrics
    )
    for metric in shown
  }
  rows = []
  for name, metrics in metrics_of.items():
    cells = [_cell(metrics.get(metric), best[metric]) for metric in shown]
    rows.append((name, systems[name]['kind'], cells))
  first_system = next(iter(metrics_of.values()))
  counts = next(iter(first_system.values()))
  return dict(
    name=part,
    metrics=shown,
    pairs=counts['pairs'],
    users=counts['users'],
    rows=rows,
  )


def _cell(interval: dict | None, best: float) -> dict[str, Any] | None:
  """Return a table cell in per cent, marked if it is the best of its column."""
  if not interval or interval['mean'] is None:
    return None
  return dict(
    mean=f'{100 * interval["mean"]:.2f}',
    low=f'{100 * interval["low"]:.1f}',
    high=f'{100 * interval["high"]:.1f}',
    is_best=interval['mean'] == best > 0,
  )


def _diversity(content: Content) -> dict | None:
  systems = content['systems'].items()
  rows = {name: system['diversity'] for name, system in systems if system.get('diversity')}
  if not rows:
    return None
  return dict(names=list(next(iter(rows.values()))), rows=rows)


def _training(content: Content) -> dict[str, str]:
  """Return a plot for each stage; stages and metrics come in the order in which they appear.

  A metric logged only once has no curve.
  """
  by_stage: dict[str, dict[str, tuple[list, list]]] = {}
  for row in content['training']:
    series = by_stage.setdefault(row['stage'], {})
    for name, value in row.items():
      if name in ('stage', 'step') or not _is_number(value):
        continue
      steps, values = series.setdefault(name, ([], []))
      steps.append(row['step'])
      values.append(value)
  plotted = {}
  for stage, series in by_stage.items():
    curves = {name: (steps, values) for name, (steps, values) in series.items() if len(steps) > 1}
    if curves:
      plotted[stage] = plots.curves(curves, stage)
  return plotted


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _roles(content: Content) -> dict | None:
  roles = content.get('roles') or {}
  if not roles:
    return None
  shares, agreement, effects = (roles.get(key) for key in ('shares', 'agreement', 'effects'))
  bins = {name: x['RoleGen']['reliability'] for name, x in (roles.get('scores') or {}).items()}
  drawn = dict(
    shares_plot=plots.role_shares(shares) if shares else '',
    reliability_plot=plots.reliability(bins) if bins else '',
    confusion_plot=plots.confusion(agreement['confusion'], agreement['names']) if agreement else '',
    effects_plot=plots.effects(effects['estimated'], effects['true']) if effects else '',
  )
  for part, done, effect in (('drop', 'removed', 'lost'), ('gain', 'added', 'gained')):
    worth = {
      name: {int(k): Interval(**x) for k, x in curve[part].items()}
      for name, curve in (roles.get('deletion') or {}).items()
    }
    drawn[f'{done}_plot'] = plots.deletion(worth, done, effect) if worth else ''
  optional = ('scores', 'judged_by', 'agreement', 'effects', 'deletion')
  return dict.fromkeys(optional) | roles | drawn


def _worlds(content: Content) -> dict | None:
  worlds = content.get('worlds')
  if not worlds:
    return None
  systems = {}
  for name, system in worlds.get('systems', {}).items():
    on_dormant = {part: _dormant_or_first(system[part]) for part in ('hits', 'difference')}
    systems[name] = system | on_dormant
  jaccard_WxW = worlds.get('jaccard_WxW')
  return dict(
    figures={name: v for name, v in worlds.items() if name not in ('jaccard_WxW', 'systems')},
    systems=systems,
    plot=plots.world_distances(jaccard_WxW) if jaccard_WxW else '',
  )


def _dormant_or_first(by_slice: dict[str, Any]) -> Any:
  return by_slice.get('dormant', next(iter(by_slice.values())))


def _trajectory(trajectory: dict[str, Any]) -> dict[str, Any]:
  """Return a trajectory as drawn: its last SHOWN_EVENTS events, and worlds beneath them.

  `column` of a world is the drawn event that it changes, -1 if there is none.
  """
  events = trajectory['events']
  n_earlier = max(0, len(events) - SHOWN_EVENTS)
  worlds = [
    world | dict(column=max(world['event'] - n_earlier, -1)) for world in trajectory['worlds']
  ]
  words = trajectory.get('sentences') or dict(events=[], intents=[])
  sentences = [(event, sentence) for event, sentence in zip(events, words['events']) if sentence]
  return trajectory | dict(
    events=events[n_earlier:],
    n_earlier=n_earlier,
    worlds=worlds,
    sentences=sentences,
    intents=words['intents'],
  )
