"""The tables of quality.json.

They are Markdown blocks of the pages, each between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from experiments.quality import EXPERIMENTS
from rolegen_jax.pipeline.evaluation import ALL_BASELINES

TESTED = 'RoleGen'
BACKBONE = 'no_reasoner'  # the ablation that leaves the backbone alone
LOGS = {name: name for name in EXPERIMENTS} | dict(
  demo='simulated', context='simulated, context', taobao_userbehavior_1k='taobao 1k'
)
ARMS = dict(
  RoleGen='RoleGen, by log p',
  RoleGen_slates='RoleGen, slates',
  no_reasoner='backbone alone, by log p',
  no_reasoner_slates='backbone alone, slates',
  counting='counting, by log p',
  counting_slates='counting, slates',
  SASRec_slates='SASRec, slates',
  popular_opens='ten items for everybody: popular, and opening much',
  oracle='oracle: true probabilities, short-sighted',
  oracle_slates='oracle, slates',
  oracle_ahead='oracle that knows the effect of looks',
)

# What the project set out to reach: experiment -> (system, slice, metric, aim). Those of baselines
# on amazon_beauty are what they are published with; one target an occasion, so HI@10 is R@10.
HIT_AIMS = dict(
  demo=[
    (TESTED, 'dormant', 'HI@1', 0.11),
    (TESTED, 'dormant', 'HI@10', 0.38),
    (TESTED, 'dormant', 'HI@50', 0.65),
  ],
  alibaba2014=[
    (TESTED, 'dormant', 'HI@1', 0.17),
    (TESTED, 'dormant', 'HI@10', 0.34),
    (TESTED, 'dormant', 'HI@50', 0.42),
  ],
  taobao_userbehavior_1k=[(TESTED, 'D1', 'HI@1', 0.20), (TESTED, 'D1', 'HI@10', 0.56)],
  amazon_beauty=[
    (TESTED, 'ACTIVE', 'HI@10', 0.100),
    (TESTED, 'ACTIVE', 'NDCG@10', 0.060),
    ('SASRec', 'ACTIVE', 'HI@10', 0.088),
    ('SASRec', 'ACTIVE', 'NDCG@10', 0.050),
    ('item_transitions', 'ACTIVE', 'HI@10', 0.076),
    ('tiger', 'ACTIVE', 'HI@10', 0.0648),
  ],
)
NEW_ITEM_AIM = dict(alibaba2014=2.0)  # HI@50 on new items, as a multiple of the best baseline's
DIVERSITY = 'coverage', 'coarse_entropy'
LEAD_AIM = 1e-4  # lower end of the interval; 0 is no lead
ROLE_AIMS = dict(
  agreement=('macro-F1 of hindsight roles', 0.8), spearman=('Spearman of removal effects', 0.7)
)
ORDERS_AIM = 0.073
KS = (1, 10, 50)


def tables(results: dict) -> dict[str, str]:
  """Return block name -> Markdown table, for every block that `results` can fill."""
  experiments = {log: results['experiments'][log] for log in LOGS if log in results['experiments']}
  blocks = dict(
    aims=_aims_table(results),
    seeds=_seeds_table(experiments),
    collapse=_collapse_table(experiments),
    deletion=_deletion_table(experiments),
  )
  for log, summary in experiments.items():
    blocks[f'hits {log}'] = _hits_table(summary)
    if summary['candidates']:
      blocks[f'candidates {log}'] = _candidates_table(summary)
  if results['ab_tests']:
    blocks['ab'] = _ab_table(results['ab_tests'])
  return blocks


def write_blocks(blocks: dict[str, str], page: pathlib.Path) -> None:
  """Replace the blocks of `page` that have a name in `blocks`."""
  text = page.read_text(encoding='utf-8')
  for name, table in blocks.items():
    pattern = re.compile(rf'(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)', re.DOTALL)
    text = pattern.sub(lambda match, table=table: f'{match[1]}{table}\n{match[2]}', text)
  page.write_text(text, encoding='utf-8')


def aims(results: dict) -> Iterator[tuple[str, float, float]]:
  """Yield (what, aim, value reached), means over seeds, for every aim whose runs are there."""
  for log, summary in results['experiments'].items():
    systems = summary['systems']

    def mean(name: str, part: str, metric: str) -> float:
      return systems[name]['metrics'][part][metric]['mean']

    def is_baseline(name: str) -> bool:
      return systems[name]['kind'] == 'baseline'

    for name, part, metric, aim in HIT_AIMS.get(log, ()):
      if name in systems:
        yield f'{log}: {part} {metric} of {name}', aim, mean(name, part, metric)
    if log in NEW_ITEM_AIM:
      new = {name: mean(name, 'dormant new', 'HI@50') for name in systems}
      best = max(new[name] for name in systems if is_baseline(name))
      what = f'{log}: HI@50 on new items, ratio to the best baseline'
      yield what, NEW_ITEM_AIM[log], new[TESTED] / best
    part = HIT_AIMS[log][0][1] if log in HIT_AIMS else summary['slice']
    # A lead over fewer is none; logs that were run before there was `trending` lack that one.
    if set(ALL_BASELINES) - {'trending'} <= set(systems):
      ahead = min(
        system['tested_minus_it']['HI@10']['low']
        for name, system in systems.items()
        if is_baseline(name)
      )
      what = f'{log}: {summary["slice"]} HI@10 of {TESTED} minus any baseline, at least'
      yield what, LEAD_AIM, ahead
    if BACKBONE in systems:
      difference = mean(TESTED, part, 'HI@10') - mean(BACKBONE, part, 'HI@10')
      yield f'{log}: {part} HI@10 of {TESTED} minus the backbone alone', 0.0, difference
    for figure, (what, aim) in ROLE_AIMS.items():
      if all(figure in roles for roles in summary['roles']):
        yield f'{log}: {what}', aim, float(np.mean([roles[figure] for roles in summary['roles']]))
  for simulator, test in results['ab_tests'].items():
    for arm, shown in ((BACKBONE, 'by log p'), (f'{BACKBONE}_slates', 'slates')):
      if arm in test['lifts']:
        what = (
          f'A/B test, {simulator} simulator: orders, lift over the backbone alone, both {shown}'
        )
        yield what, ORDERS_AIM, test['lifts'][arm]['orders']['mean']


def _markdown(head: list[str], rows: Iterable[Iterable[str]]) -> str:
  header, *body = ['| ' + ' | '.join(cells) + ' |' for cells in (head, *rows)]
  return '\n'.join([header, '|' + '---|' * len(head), *body])


def _percent(estimate: dict, sign: str = '', digits: int = 2) -> str:
  mean, low, high = (f'{100 * estimate[key]:{sign}.{digits}f}' for key in ('mean', 'low', 'high'))
  return f'{mean} [{low}, {high}]'


def _aims_table(results: dict) -> str:
  rows = [
    [what, f'{aim:.4g}', f'{value:.4f}', 'reached' if value >= aim else 'short']
    for what, aim, value in aims(results)
  ]
  return _markdown(['', 'aim', 'measured', ''], rows)


def _seeds_table(experiments: dict) -> str:
  rows = []
  for log, summary in experiments.items():
    hits = summary['systems'][TESTED]['metrics'][summary['slice']]
    by_seed = [', '.join(f'{100 * x:.2f}' for x in hits[f'HI@{k}']['by_seed']) for k in KS]
    runs = summary['provenance']
    minutes = ', '.join(f'{run["wall_s"] / 60:.0f}' if run['wall_s'] else '?' for run in runs)
    commits = ', '.join(sorted({run['commit'][:7] for run in runs}))
    rows.append([LOGS[log], ', '.join(map(str, summary['seeds'])), *by_seed, minutes, commits])
  head = ['log', 'seeds', 'HI@1 by seed', 'HI@10', 'HI@50', 'minutes per seed', 'commits']
  return _markdown(head, rows)


def _hits_table(summary: dict) -> str:
  part, rows = summary['slice'], []
  tested = summary['systems'][TESTED]['metrics']
  cold = next((name for name in ('dormant cold', 'all cold') if name in tested), '')
  for name, system in summary['systems'].items():
    hits, diversity = system['metrics'][part], system['diversity']
    mean = {metric: f'{100 * estimate["mean"]:.2f}' for metric, estimate in hits.items()}
    kinds = [system['metrics'].get(kind) for kind in ('dormant new', *filter(None, [cold]))]
    rows.append(
      [
        name,
        mean['HI@1'],
        _percent(hits['HI@10']),
        mean['HI@50'],
        mean['NDCG@10'],
        '' if name == TESTED else _percent(system['tested_minus_it']['HI@10'], '+'),
        *(f'{100 * kind["HI@50"]["mean"]:.1f}' if kind else '' for kind in kinds),
        f'{diversity["coverage"]:.3f}',
        f'{diversity["long_tail_share"]:.3f}',
      ]
    )
  pairs = tested[part]['HI@10']['pairs']
  head = [f'{part}, {pairs:,} targets', 'HI@1', 'HI@10', 'HI@50', 'NDCG@10']
  head += ['RoleGen minus it, HI@10', 'new, HI@50']
  head += [f'{tested[cold]["HI@50"]["pairs"]:,} cold, HI@50'] if cold else []
  return _markdown([*head, 'coverage', 'long tail'], rows)


def _candidates_table(summary: dict) -> str:
  rows = []
  for name, candidates in summary['candidates'].items():
    minus = {key: _percent(candidates[f'tested_minus_{key}'], '+') for key in ('held', 'repeated')}
    if name == TESTED:
      minus = dict.fromkeys(minus, '')
    rows.append(
      [
        name,
        f'{candidates["union_size"]:.1f}',
        '' if candidates['jaccard'] is None else f'{candidates["jaccard"]:.2f}',
        _percent(candidates['held']),
        minus['held'],
        _percent(candidates['repeated']),
        minus['repeated'],
      ]
    )
  head = ['candidates of', 'distinct per user', 'distance of worlds', 'contain the target, %']
  head += ['RoleGen minus it', 'repeated or none, %', 'RoleGen minus it']
  return _markdown(head, rows)


def _hits(summary: dict, name: str) -> dict:
  return summary['systems'][name]['metrics'][summary['slice']]


def _collapse_table(experiments: dict) -> str:
  """Return diversity of RoleGen's lists, with and without the penalty, over the backbone's."""
  rows = []
  for log, summary in experiments.items():
    systems, row = summary['systems'], [LOGS[log]]
    for name in (TESTED, f'{TESTED}_exposure_penalty'):
      if not {name, BACKBONE} <= set(systems):
        row += [''] * (len(DIVERSITY) + 1)
        continue
      diversity = [systems[system]['diversity'] for system in (name, BACKBONE)]
      hits = [_hits(summary, system)['HI@10']['mean'] for system in (name, BACKBONE)]
      row += [f'{diversity[0][figure] / diversity[1][figure]:.2f}' for figure in DIVERSITY]
      row.append(f'{100 * (hits[0] - hits[1]):+.2f}')
    rows.append(row)
  per_system = ['coverage', 'entropy of coarse codes', 'HI@10, points']
  return _markdown(
    ['log', *per_system, *(f'{name}, with the penalty' for name in per_system)], rows
  )


def _deletion_table(experiments: dict) -> str:
  by_log = {log: x['deletion'] for log, x in experiments.items() if x['deletion']}
  show = '{mean:+.3f} [{low:.3f}, {high:.3f}]'.format
  choosers = dict.fromkeys(
    name for curves in by_log.values() for name in curves if name.startswith('the ')
  )  # others are of earlier versions
  rows = [
    [f'{k}, by {name}', *(show(**c[name][k]) if name in c else '' for c in by_log.values())]
    for name in choosers
    for k in ('1', '2', '4')
  ]
  return _markdown(['events removed', *(LOGS[log] for log in by_log)], rows)


def _ab_table(tests: dict) -> str:
  head = ['arm']
  for simulator in tests:
    head += [f'{simulator.replace("_", "-")} simulator, orders', 'RoleGen shown alike over it, %']
  rows = []
  for arm in dict.fromkeys(arm for test in tests.values() for arm in test['arms']):
    row = [ARMS.get(arm, arm)]
    for test in tests.values():
      orders, lift = test['arms'].get(arm), test['lifts'].get(arm)
      row.append(f'{orders["orders"]["mean"]:,.0f}' if orders else '')
      row.append(_percent(lift['orders'], '+', 1) if lift else '')
    rows.append(row)
  return _markdown(head, rows)
