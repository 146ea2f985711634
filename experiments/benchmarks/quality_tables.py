"""The tables of quality.json in Markdown, and pages that hold them between `<!-- NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import pathlib
import re

from experiments.benchmarks.quality_parts import AIMS, KS, TESTED

LOGS = dict(demo='simulated', alibaba2014='alibaba2014', taobao_userbehavior_1k='taobao 1k', amazon_beauty='amazon_beauty')
SYSTEMS = dict(no_reasoner='no reasoner', recency='personal recency', item_knn='ItemKNN')
ARMS = dict(RoleGen='RoleGen, slates', RoleGen_by_likelihood='RoleGen, by log p', no_reasoner='backbone alone, by log p',
            no_reasoner_slates='backbone alone, slates', oracle='oracle: true probabilities, short-sighted')


def tables(found: dict) -> dict[str, str]:
  """Name -> table."""
  data = found['data']
  known = [name for name in LOGS if name in data]
  made = dict(aims=_aims(found), seeds=_seeds({name: data[name] for name in known}), deletion=_deletion({name: data[name] for name in known}))
  made |= dict(summary=_summary({name: data[name] for name in known}))
  made |= {f'hits {name}': _hits(data[name], _part(name, data[name])) for name in known}
  made |= {f'candidates {name}': _candidates(data[name]) for name in known if data[name].get('candidates')}
  return made | (dict(ab=_ab(found['ab'])) if found['ab'] else {})


def write(made: dict[str, str], page: pathlib.Path) -> None:
  """Puts every table in its place on the page; one that has none there is left out."""
  text = page.read_text()
  for name, table in made.items():
    text = re.sub(rf'(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)', lambda at, table=table: f'{at[1]}{table}\n{at[2]}', text, flags=re.DOTALL)
  page.write_text(text)


def _part(name: str, data: dict) -> str:
  """The targets that are looked at: of dormant users, where there are any."""
  slices = data['systems'][TESTED]
  return 'dormant' if 'dormant' in slices else AIMS[name][0]


def _rows(head: list[str], rows: list[list[str]]) -> str:
  line = lambda cells: '| ' + ' | '.join(cells) + ' |'
  return '\n'.join([line(head), '|' + '---|' * len(head), *map(line, rows)])


def _percent(value: dict, sign: str = '', digits: int = 2) -> str:
  mean, low, high = (f'{100 * value[key]:{sign}.{digits}f}' for key in ('mean', 'low', 'high'))
  return f'{mean} [{low}, {high}]'


def _aims(found: dict) -> str:
  verdict = lambda row: 'reached' if row['found'] >= row['aim'] else 'short'
  return _rows(['', 'aim', 'found', ''], [[row['what'], f'{row["aim"]:.4g}', f'{row["found"]:.3f}', verdict(row)] for row in found['aims']])


def _seeds(data: dict) -> str:
  rows = []
  for name, of in data.items():
    by_seed = lambda k: ', '.join(f'{100 * x:.2f}' for x in of['systems'][TESTED][_part(name, of)][f'HI@{k}']['by_seed'])
    minutes = ', '.join(f'{p["wall_s"] / 60:.0f}' if p['wall_s'] else '?' for p in of['provenance'])
    commits = ', '.join(sorted({p['commit'][:7] for p in of['provenance']}))
    rows.append([LOGS[name], ', '.join(map(str, of['seeds'])), *map(by_seed, KS), minutes, commits])
  return _rows(['log', 'seeds', 'HI@1 by seed', 'HI@10', 'HI@50', 'minutes a seed', 'commits'], rows)


def _summary(data: dict) -> str:
  """HI@k of RoleGen, the backbone alone and the floors, and what RoleGen is ahead of the backbone by."""
  parts = {name: _part(name, of) for name, of in data.items()}
  title = lambda name, of: f'{LOGS[name]}, {of["systems"][TESTED][parts[name]]["HI@10"]["pairs"]:,} {parts[name]} targets'
  hits = lambda name, of, system: ' / '.join(f'{100 * of["systems"][system][parts[name]][f"HI@{k}"]["mean"]:.2f}' for k in KS) if system in of['systems'] else ''
  floors = [system for system, kind in next(iter(data.values()))['kinds'].items() if kind == 'floor']
  rows = [[SYSTEMS.get(system, system), *(hits(name, of, system) for name, of in data.items())] for system in (TESTED, 'no_reasoner', *floors)]
  rows.append(['RoleGen minus no reasoner, HI@10', *(_percent(of['differences']['no_reasoner'][parts[name]]['HI@10'], '+') for name, of in data.items())])
  return _rows(['HI@' + ' / '.join(map(str, KS)), *(title(name, of) for name, of in data.items())], rows)


def _hits(of: dict, part: str) -> str:
  rows, pairs = [], of['systems'][TESTED][part]['HI@10']['pairs']
  for system, slices in of['systems'].items():
    minus, new, diverse = of['differences'].get(system), slices.get('dormant new'), of['diversity'][system]
    hits = [f'{100 * slices[part]["HI@1"]["mean"]:.2f}', _percent(slices[part]['HI@10']), f'{100 * slices[part]["HI@50"]["mean"]:.2f}', f'{100 * slices[part]["NDCG@10"]["mean"]:.2f}']
    rest = [f'{100 * new["HI@50"]["mean"]:.1f}' if new else '', f'{diverse["coverage"]:.3f}', f'{diverse["long_tail_share"]:.3f}']
    rows.append([system, *hits, _percent(minus[part]['HI@10'], '+') if minus else '', *rest])
  targets = f'{part}, {pairs:,} targets'
  return _rows([targets, 'HI@1', 'HI@10', 'HI@50', 'NDCG@10', 'RoleGen minus it, HI@10', 'new, HI@50', 'coverage', 'long tail'], rows)


def _candidates(of: dict) -> str:
  rows = []
  for system, c in of['candidates'].items():
    part = 'dormant' if 'dormant' in c['held'] else next(iter(c['held']))
    minus = '' if system == TESTED else _percent(c['difference'][part]['held'], '+')
    repeats = [_percent(c['repeated']), '' if system == TESTED else _percent(c['repeated_difference'], '+')]
    rows.append([system, f'{c["union_size"]:.1f}', f'{c["jaccard"]:.2f}', _percent(c['held'][part]['held']), minus, *repeats])
  head = ['candidates of', 'distinct a user', 'distance of worlds', 'hold the target, %', 'RoleGen minus it', 'repeated on a path, %', 'RoleGen minus it']
  return _rows(head, rows)


def _deletion(data: dict) -> str:
  data = {name: of for name, of in data.items() if of['roles'][0]['deletion']}
  shown = lambda of, who, k: '{mean:+.3f} [{low:.3f}, {high:.3f}]'.format(**of['roles'][0]['deletion'][who]['minus_random'][k])
  chosen = [who for who in next(iter(data.values()))['roles'][0]['deletion'] if who != 'random'] if data else []
  rows = [[f'{k}, by {who}', *(shown(of, who, k) for of in data.values())] for who in chosen for k in ('1', '2', '4')]
  return _rows(['events taken out', *(LOGS[name] for name in data)], rows)


def _ab(worlds: dict) -> str:
  arms = list(dict.fromkeys(arm for ab in worlds.values() for arm in ab['arms']))
  head = ['arm', *(title for world in worlds for title in (f'{world.replace("_", "-")} world, orders', 'RoleGen over it, %'))]
  rows = []
  for arm in arms:
    cells = []
    for ab in worlds.values():
      orders, lift = ab['arms'].get(arm), ab['lifts'].get(arm)
      cells += [f'{orders["orders"]["mean"]:,.0f}' if orders else '', _percent(lift['orders'], '+', 1) if lift else '']
    rows.append([ARMS.get(arm, arm), *cells])
  return _rows(head, rows)
