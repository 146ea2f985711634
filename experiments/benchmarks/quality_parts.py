"""Reads the run folders of the quality sweeps.

A system's figure is the mean over seeds. Its interval resamples occasions, each with the hits of all seeds; the spread over seeds stands
beside it. Shapes: S seeds, O occasions, T (occasion, target) pairs, K list length.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Callable

import numpy as np

from experiments import quality
from rolegen_jax.config import ConfigError, EvaluationConfig
from rolegen_jax.data.prepare import load_prepared
from rolegen_jax.evaluation.metrics import Pairs, bootstrap, hit, ndcg, ranks
from rolegen_jax.progress import say
from rolegen_jax.reasoning.feedback import repeats

TESTED = 'RoleGen'
KS = (1, 10, 50)
METRICS = {f'HI@{k}': (hit, k) for k in KS} | {'NDCG@10': (ndcg, 10)}
WORLDS = ('jaccard', 'union_size')  # how far the worlds of a user lie apart, and how many candidates they have between them
CANDIDATES = 'candidates/'  # before a system's name in rankings.npz
SLICES = ('dormant', 'D1', 'dormant seen', 'dormant new', 'ACTIVE')
# What this project set out to reach, by experiment, slice and metric; of the simulated world, intervals above zero.
AIMS = {
    'alibaba2014': ('dormant', {'HI@1': 0.17, 'HI@10': 0.34, 'HI@50': 0.42}),
    'taobao_userbehavior_1k': ('D1', {'HI@1': 0.20, 'HI@10': 0.56}),
    'amazon_beauty': ('ACTIVE', {}),
}
# Of the backbone alone; one target an occasion, so HI@10 is R@10. Tuned SASRec and RPG have as much (docs/quality.md).
BACKBONE_AIMS = {'amazon_beauty': {'HI@10': 0.0821, 'NDCG@10': 0.0464}}
NEW = {'alibaba2014': 2.0}
ROLES = dict(agreement=('macro-F1 of hindsight roles', 0.8), spearman=('Spearman of removal effects', 0.7))
STABILITY = ('reward', 'kl', 'entropy', 'advantage_spread', 'clipped_share', 'logp_difference', 'reward_malformed', 'counterfactual_best', 'world_distance')


def collected(folder: pathlib.Path, kept: dict) -> dict:
  """{data: {experiment: `of_runs`}, ab: {...}, stability: {...}, aims}. What `folder` does not hold stays as `kept`, an earlier result, has it.

  Raises ConfigError when there is no finished run at all.
  """
  data, ab, old = {}, {}, kept.get('data', {})
  for name in quality.OF:
    runs = sorted(path.parent for path in (folder / name / 'points').glob('seed*/report.json'))
    if runs:
      data[name] = of_runs(runs)
    else:
      say(f'{name}: no finished run under {folder / name / "points"}; {"kept as it was" if name in old else "left out"}')
      data |= {name: old[name]} if name in old else {}
  if not data:
    raise ConfigError(f'--runs={folder}: no finished run of a sweep there; must be the folder of the sweeps of quality:NAME')
  for world, path in (('default', 'ab.json'), ('held_back', 'held_back/ab.json')):
    file = folder / 'demo' / 'points' / 'seed0' / path
    if file.exists():
      ab[world] = {k: v for k, v in json.loads(file.read_text()).items() if k != 'measures'}
  found = dict(data=data, ab=kept.get('ab', {}) | ab, stability=stability(folder / 'stability') or kept.get('stability', {}))
  return found | dict(aims=aims(found))


def stability(run: pathlib.Path) -> dict:
  """Curves of a long loop and what they come from; empty when it has not been run to its report."""
  if not (run / 'report.json').exists():
    return {}
  return curves(run / 'loop' / 'metrics.jsonl') | dict(provenance=_provenance(run, json.loads((run / 'report.json').read_text())))


def aims(found: dict) -> list[dict]:
  """What this project set out to reach and what was found, {what, aim, found}; an aim whose run is missing is left out.

  Means over seeds. `coverage` and `coarse_entropy` are RoleGen's over those of the backbone alone, `new HI@50` over the best floor's.
  """
  rows, add = [], lambda what, aim, value: rows.append(dict(what=what, aim=aim, found=float(value)))
  for name, data in found['data'].items():
    systems, (part, wanted) = data['systems'], AIMS.get(name, ('dormant', {}))
    for metric, aim in wanted.items():
      add(f'{name}: {part} {metric}', aim, systems[TESTED][part][metric]['mean'])
    for metric, aim in BACKBONE_AIMS.get(name, {}).items():
      add(f'{name}: {metric} of the backbone alone', aim, systems['no_reasoner'][part][metric]['mean'])
    if name in NEW and 'dormant new' in systems[TESTED]:
      new = {system: slices['dormant new']['HI@50']['mean'] for system, slices in systems.items()}
      add(f'{name}: dormant new HI@50, times the best floor', NEW[name], new[TESTED] / max(v for s, v in new.items() if data['kinds'][s] == 'floor'))
    for ours in (TESTED, f'{TESTED}_spread'):
      if {ours, 'no_reasoner'} <= set(systems):
        for key in ('coverage', 'coarse_entropy'):
          add(f'{name}: {key} of lists of {ours}, times the backbone alone', 1.3, data['diversity'][ours][key] / data['diversity']['no_reasoner'][key])
        add(f'{name}: {part} HI@10 of {ours} less that of the backbone alone', 0.0, systems[ours][part]['HI@10']['mean'] - systems['no_reasoner'][part]['HI@10']['mean'])
    add(f'{name}: Jaccard distance of worlds', 0.5, data['worlds']['jaccard'])
    for key, (what, aim) in ROLES.items():
      if all(key in roles for roles in data['roles']):
        add(f'{name}: {what}', aim, np.mean([roles[key] for roles in data['roles']]))
  for world, ab in found['ab'].items():
    if 'no_reasoner' in ab['lifts']:
      add(f'A/B, {world} world: orders over the backbone alone', 0.073, ab['lifts']['no_reasoner']['orders']['mean'])
  return rows


def of_runs(runs: list[pathlib.Path]) -> dict:
  """Hit rates, differences and everything else of one experiment's runs, which differ in their seed alone."""
  reports = [json.loads((run / 'report.json').read_text()) for run in runs]
  rankings = [dict(np.load(run / 'rankings.npz')) for run in runs]
  _, occasions = load_prepared(runs[0] / 'data')
  rows = rankings[0].pop('occasion')
  for run, other in zip(runs[1:], rankings[1:]):
    if not np.array_equal(other.pop('occasion'), rows):
      raise ConfigError(f'{run}: evaluated other occasions than {runs[0]}; must be runs on the same log')
  pairs, settings = Pairs.of(occasions, rows), EvaluationConfig()
  everywhere = [name for name in rankings[0] if all(name in r for r in rankings)]
  chains = [name.removeprefix(CANDIDATES) for name in everywhere if name.startswith(CANDIDATES)]
  names = [name for name in everywhere if not name.startswith(CANDIDATES)]
  place = {name: [ranks(r[name], pairs) for r in rankings] for name in names}
  value = {name: {metric: np.stack([of(rank, k) for rank in place[name]]) for metric, (of, k) in METRICS.items()} for name in names}  # [S, T]
  among = lambda r, name: ranks(r[CANDIDATES + name].reshape(len(rows), -1), pairs) > 0
  repeated = {name: np.stack([np.asarray(repeats(r[CANDIDATES + name]), np.float64).mean(1) for r in rankings]) for name in chains}  # [S, O]
  of_users = lambda value: _pooled(value, np.arange(len(rows)), settings)
  held = {name: dict(held=np.stack([among(r, name) for r in rankings]).astype(np.float64)) for name in chains}
  masks = {name: pairs.slice(name) for name in SLICES}

  def intervals(of: Callable[[str], np.ndarray], metrics=METRICS) -> dict:
    return {
        part: {m: _pooled(of(m)[:, mask], pairs.occasion[mask], settings) for m in metrics} for part, mask in masks.items() if mask.any()}

  mean = lambda get: float(np.mean([get(r) for r in reports]))
  first = reports[0]['systems']
  return dict(
      seeds=[r['provenance']['seed'] for r in reports], kinds={name: first[name]['kind'] for name in names},
      systems={name: intervals(lambda m, name=name: value[name][m]) for name in names},
      differences={name: intervals(lambda m, name=name: value[TESTED][m] - value[name][m]) for name in names if name != TESTED},
      diversity={name: {key: mean(lambda r, name=name, key=key: r['systems'][name]['diversity'][key]) for key in first[name]['diversity']} for name in names},
      worlds={key: mean(lambda r, key=key: r['worlds'][key]) for key in WORLDS},
      candidates={name: {key: mean(lambda r, name=name, key=key: r['worlds']['systems'][name][key]) for key in WORLDS} | dict(
          held=intervals(lambda m, name=name: held[name][m], ('held',)),
          difference=intervals(lambda m, name=name: held[TESTED][m] - held[name][m], ('held',)),
          repeated=of_users(repeated[name]), repeated_difference=of_users(repeated[TESTED] - repeated[name]),
      ) for name in chains},
      roles=[_roles(r['roles']) for r in reports],
      stability={run.name: curves(run / 'loop' / 'metrics.jsonl') for run in runs},
      warmup={run.name: curves(run / 'backbone' / 'metrics.jsonl', ('purchase_nll',)) for run in runs},
      provenance=[_provenance(run, report) for run, report in zip(runs, reports)],
  )


def _provenance(run: pathlib.Path, report: dict) -> dict:
  """wall_s: from the first training step to the report, stops included."""
  about = {key: report['provenance'][key] for key in ('seed', 'commit', 'when', 'config_digest', 'artefacts', 'device_kind', 'versions')}
  starts = [json.loads(path.open().readline())['at'] for path in run.glob('*/time.0.jsonl')]
  return about | dict(wall_s=round(datetime.datetime.fromisoformat(about['when']).timestamp() - min(starts)) if starts else None)


def _pooled(value_SxT: np.ndarray, occasion_T: np.ndarray, settings: EvaluationConfig) -> dict:
  found = bootstrap(value_SxT.mean(0), occasion_T, settings.bootstrap, settings.seed)
  return dict(mean=found.mean, low=found.low, high=found.high, pairs=found.pairs, by_seed=value_SxT.mean(1).tolist())


def _roles(section: dict) -> dict:
  """Of one run: agreement with planted roles where they are known, and the deletion curves."""
  found = {name: section[name]['macro_f1'] for name in ('agreement', 'foresight') if name in section}
  if 'effects' in section:
    found |= {name: section['effects'][name] for name in ('spearman', 'same_sign')}
  return found | dict(deletion=section.get('deletion') or {})


def curves(path: pathlib.Path, figures: tuple[str, ...] = STABILITY) -> dict:
  """Step and figures of a stage's metrics.jsonl, at most a hundred rows: means of as many equal parts."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  parts = np.array_split(np.arange(len(rows)), min(len(rows), 100))
  return {name: [float(np.mean([rows[i][name] for i in part])) for part in parts] for name in ('step', *figures)}
