"""The report of a run: `report.json` (everything, for machines) and `report.html` (one self-contained page, no network).

`write_report(folder, content)` takes one plain dict. Only `title` and `provenance` are required; a section whose key is
missing or empty is left out. Intervals are `metrics.Interval` or dicts of its fields, shares in 0..1.

  title           str
  provenance      dict shown as it is; must hold data (str), simulated (bool), when, device_kind, versions (dict), commit,
                  seed, config_digest. Further entries (formulae, raw times ...) are shown too.
  systems         {name: {kind: 'model' | 'ablation' | 'baseline', metrics: metrics.evaluate(...), settings?: dict,
                  diversity?: diversity.list_diversity(...)}}; the first of kind 'model' is the system under test
  differences     {name: {slice: Interval}}: paired difference of HI@10, system under test minus `name` (metrics.compare)
  training        rows of metrics.jsonl: {stage, step, name: value, ...}
  roles           {shares?: {'hindsight': {role: share}, 'predicted': ...}, agreement?: agreement.role_agreement(...),
                  effects?: agreement.effect_agreement(...), deletion?: deletion.deletion_curves(...)}; agreement and effects
                  exist only where the truth is known
  worlds          diversity.world_diversity(...), and systems: {name: {jaccard, union_size, hits and difference (of the first less this): {slice: Interval}}}
  alignment       rows of {question, items, number, chance, STAGE: accuracy after that stage ...}, evaluation/alignment.py
  semantic_ids    {figure name: number or text}, nested dicts allowed
  trajectories    list of {user, cohort, target, rank (1-based, 0 = not listed), k, events: [{when, item, event, role}],
                  worlds: [{name, event (index of the intervened event, -1 = none), change, candidates: [item]}]}; texts
                  are labels as they are to be read; sentences?: {events: [str], intents: [str]} in the reasoner's words; the last SHOWN_EVENTS events are drawn
  notes           list of str, shown under the headline
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib

import jinja2
import numpy as np

from rolegen_jax.data.files import write_json
from rolegen_jax.evaluation import plots
from rolegen_jax.evaluation.metrics import SLICES, Interval, verdict

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
_MAIN = ('HI@1', 'HI@5', 'HI@10', 'HI@50', 'NDCG@10', 'MRR')  # columns of the tables by slice
_EVENT_GLYPHS = {
  'impression': '·',
  'view': '○',
  'fav': '♡',
  'cart': '▣',
  'remove': '✕',
  'purchase': '★',
}


def write_report(folder: str | os.PathLike, content: dict) -> pathlib.Path:
  """Writes report.json and report.html into `folder`; returns the path of the page.

  Raises ValueError when the title or an entry of the provenance is missing: a number without provenance is not reported.
  """
  provenance = content.get('provenance', {})
  missing = [key for key in REQUIRED if key not in provenance]
  if missing or 'title' not in content:
    raise ValueError(
      f'report content lacks {", ".join([f"provenance.{m}" for m in missing] or ["title"])}'
    )
  folder = pathlib.Path(folder)
  plain = _plain(content)
  write_json(plain, folder / 'report.json')
  page, temporary = folder / 'report.html', folder / f'.report.html.{os.getpid()}.tmp'
  temporary.write_text(render(plain), encoding='utf-8')
  os.replace(temporary, page)
  return page


def render(content: dict) -> str:
  """The page of a plain content dict (Intervals as dicts, as in report.json)."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {'figure': _number, 'flat': _flat}
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
    trajectories=_trajectories(content),
    role_colours=plots.ROLE_COLOURS,
    role_short=plots.ROLE_SHORT,
    glyphs=_EVENT_GLYPHS,
  )


def _plain(value):
  """JSON-able copy: dataclasses as dicts, numpy as Python, figures that are no number as None."""
  if dataclasses.is_dataclass(value):
    return _plain(dataclasses.asdict(value))
  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, np.generic):
    return _plain(value.item())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value) -> str:
  """A figure for a table: four significant digits, thousands apart; anything else as text."""
  if value is None:
    return '–'
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def _flat(value: dict, prefix: str = '') -> list[tuple[str, object]]:
  """(dotted name, leaf) of a nested dict; a list becomes one text."""
  out = []
  for key, v in value.items():
    if isinstance(v, dict):
      out += _flat(v, f'{prefix}{key}.')
    else:
      out.append((f'{prefix}{key}', ', '.join(map(_number, v)) if isinstance(v, list) else v))
  return out


def _points(share: float) -> str:
  return f'{100 * share:+.1f}'


def _results(content: dict) -> dict | None:
  """Headline, tables by slice, and the two plots."""
  systems = content.get('systems') or {}
  if not systems:
    return None
  present = [s for s in SLICES if any(s in x['metrics'] for x in systems.values())]
  main = 'dormant' if 'dormant' in present else present[0]
  interval = lambda name, s: Interval(**systems[name]['metrics'][s][METRIC])
  scored = {
    n: (x['kind'], interval(n, main))
    for n, x in systems.items()
    if METRIC in x['metrics'].get(main, {})
  }
  tested = next((n for n, x in systems.items() if x['kind'] == 'model'), None)
  best = max(scored, key=lambda n: scored[n][1].mean) if scored else None
  ordered = [
    main,
    *(
      s
      for s in ('D1', 'D2', 'dormant seen', 'dormant new', 'ACTIVE', 'all')
      if s in present and s != main
    ),
  ]
  result = dict(
    slice=main,
    metric=METRIC,
    tested=tested,
    best=best,
    baseline_wins=best is not None and scored[best][0] == 'baseline' and tested is not None,
    scored={
      n: (kind, f'{100 * v.mean:.1f}', f'{100 * v.low:.1f}–{100 * v.high:.1f}')
      for n, (kind, v) in scored.items()
    },
    plot=plots.system_intervals(scored, f'{METRIC}, {main}') if scored else '',
    tables=[_table(systems, s, lambda m: m in _MAIN) for s in ordered],
    levels=_table(systems, main, lambda m: m.startswith('HS@')),
    settings={n: _flat(x['settings']) for n, x in systems.items() if x.get('settings')},
    differences=[],
    difference_plot='',
  )
  differences = {
    n: {s: Interval(**v) for s, v in by_slice.items()}
    for n, by_slice in (content.get('differences') or {}).items()
  }
  shown = {n: by_slice[main] for n, by_slice in differences.items() if main in by_slice}
  if tested and shown:
    result['difference_plot'] = plots.differences(shown, tested, METRIC)
    result['differences'] = [
      (n, verdict(v), _points(v.mean), _points(v.low), _points(v.high)) for n, v in shown.items()
    ]
  return result


def _table(systems: dict, name: str, wanted) -> dict:
  """The metrics of one slice that `wanted` lets through; report.json holds all of them."""
  rows = {n: x['metrics'][name] for n, x in systems.items() if name in x['metrics']}
  metrics = list(dict.fromkeys(m for r in rows.values() for m in r if wanted(m)))
  highest = {m: max((r[m]['mean'] or 0.0) for r in rows.values() if m in r) for m in metrics}
  cell = lambda v, m: (
    v
    and v['mean'] is not None
    and dict(
      mean=f'{100 * v["mean"]:.2f}',
      low=f'{100 * v["low"]:.1f}',
      high=f'{100 * v["high"]:.1f}',
      best=v['mean'] == highest[m] > 0,
    )
  )
  counts = next(iter(next(iter(rows.values())).values()))
  return dict(
    name=name,
    metrics=metrics,
    pairs=counts['pairs'],
    occasions=counts['occasions'],
    rows=[(n, systems[n]['kind'], [cell(r.get(m), m) for m in metrics]) for n, r in rows.items()],
  )


def _diversity(content: dict) -> dict | None:
  rows = {
    n: x['diversity'] for n, x in (content.get('systems') or {}).items() if x.get('diversity')
  }
  return dict(names=list(next(iter(rows.values()))), rows=rows) if rows else None


def _training(content: dict) -> dict[str, str]:
  """stage -> plot, stages and names in order of appearance; names that are logged fewer than twice have no curve."""
  by_stage: dict[str, dict[str, tuple[list, list]]] = {}
  for row in content.get('training') or []:
    series = by_stage.setdefault(row['stage'], {})
    for name, value in row.items():
      if (
        name not in ('stage', 'step')
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
      ):
        steps, values = series.setdefault(name, ([], []))
        steps.append(row['step'])
        values.append(value)
  kept = {
    stage: {n: s for n, s in series.items() if len(s[0]) > 1} for stage, series in by_stage.items()
  }
  return {stage: plots.curves(series, stage) for stage, series in kept.items() if series}


def _roles(content: dict) -> dict | None:
  roles = content.get('roles') or {}
  if not roles:
    return None
  agreement, effects = roles.get('agreement'), roles.get('effects')
  drops = {
    name: {int(k): Interval(**v) for k, v in found['drop'].items()}
    for name, found in (roles.get('deletion') or {}).items()
  }
  return dict(
    deletion=roles.get('deletion'),
    deletion_plot=plots.deletion(drops) if drops else '',
    shares_plot=plots.role_shares(roles['shares']) if roles.get('shares') else '',
    agreement=agreement,
    confusion_plot=plots.confusion(agreement['confusion'], agreement['names']) if agreement else '',
    effects=effects,
    effects_plot=plots.effects(effects['estimated'], effects['true']) if effects else '',
  )


def _worlds(content: dict) -> dict | None:
  worlds = content.get('worlds')
  if not worlds:
    return None
  figures = {n: v for n, v in worlds.items() if n not in ('jaccard_WxW', 'systems')}
  systems = {
    name: s
    | {
      part: s[part].get('dormant', next(iter(s[part].values()))) for part in ('hits', 'difference')
    }
    for name, s in worlds.get('systems', {}).items()
  }
  return dict(
    figures=figures,
    systems=systems,
    plot=plots.world_distances(worlds['jaccard_WxW']) if 'jaccard_WxW' in worlds else '',
  )


def _trajectories(content: dict) -> list[dict]:
  """The last SHOWN_EVENTS events of each; indices of intervened events follow, and one that is not drawn says so."""
  out = []
  for trajectory in content.get('trajectories') or []:
    cut = max(0, len(trajectory['events']) - SHOWN_EVENTS)
    worlds = [
      w | {'column': w['event'] - cut if w['event'] >= cut else -1} for w in trajectory['worlds']
    ]
    said = trajectory.get('sentences') or dict(events=[], intents=[])
    told = [(event, why) for event, why in zip(trajectory['events'], said['events']) if why]
    out.append(
      trajectory
      | {
        'events': trajectory['events'][cut:],
        'earlier': cut,
        'worlds': worlds,
        'told': told,
        'intents': said['intents'],
      }
    )
  return out
