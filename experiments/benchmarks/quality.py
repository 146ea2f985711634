"""Summarize the runs of `--experiment=quality:NAME`: hit rates, roles, diversity, A/B tests.

  python -m launch.sweep --experiment=quality:demo --workdir=runs/quality/demo
  RUNS=runs/quality/demo/points/seed0,runs/quality/demo/points/seed1  # and seed2
  rolegen simulate_ab --workdir=$RUNS
  rolegen simulate_ab --workdir=$RUNS --simulator=held_back
  python -m experiments.benchmarks.quality --runs=runs/quality

The other sweeps are in experiments/quality.py; they take hours on two cores and continue where they
were stopped. This command only reads run folders: what is missing there keeps its entry of
quality.json, with its own provenance. Without --runs it renders the committed summary: the tables
of docs/quality.md and docs/quality_by_log.md, and the figures of docs/performance.

A system's figure is the mean over seeds. Its 95 % interval resamples users, each with the values
of all their occasions and all seeds: it holds for the seeds that were run, whose own figures stand
beside it.
Legend: S seeds, O occasions, T (occasion, target) pairs, K list length.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable

import numpy as np

from experiments import quality as experiment
from experiments.benchmarks import harness
from experiments.benchmarks.quality_figures import plot
from experiments.benchmarks.quality_report import TESTED, tables, write_blocks
from rolegen_jax.ab_test.plot import LIFTS_OVER
from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ABLATIONS, ConfigError, EvaluationConfig
from rolegen_jax.data.files import renamed
from rolegen_jax.data.prepare import load_prepared
from rolegen_jax.evaluation.deletion import RECENCY
from rolegen_jax.evaluation.metrics import Pairs, bootstrap, hit, ndcg, ranks
from rolegen_jax.reasoning.feedback import repeats
from rolegen_jax.runtime.progress import say

METRICS = {'HI@1': (hit, 1), 'HI@10': (hit, 10), 'HI@50': (hit, 50), 'NDCG@10': (ndcg, 10)}
# Main slice of a log -> slices that are kept, and their metrics.
SLICES = {
  'dormant': {
    'dormant': tuple(METRICS),
    'D1': ('HI@1', 'HI@10'),
    'dormant new': ('HI@50',),
    'dormant cold': ('HI@50',),
  },
  'ACTIVE': {'ACTIVE': tuple(METRICS), 'all cold': ('HI@50',)},
}
CANDIDATES = 'candidates/'  # precedes a system's name in rankings.npz
AB_RUNS = dict(
  default='demo/points/seed0/ab.json',
  held_back='demo/points/seed0/held_back/ab.json',
  context='context/points/seed0/ab.json',
)
AB_DAILY = ('orders', 'daily_active_customers')
LOOP_FIGURES = (
  'reward',
  'kl',
  'entropy',
  'advantage_std',
  'logp_difference',
  'reward_malformed',
  'world_distance',
)
CURVE_POINTS = 100

PAGES = 'quality.md', 'quality_by_log.md'
JSON_WIDTH = 720  # an object or list that fits is one line

_RUNS = path_flag('runs', '', 'Folder of the sweeps, each named like its experiment.')
_RESULTS = path_flag('results', str(harness.FOLDER / 'quality.json'), 'The summary.')
_PAGES = path_flag('pages', str(harness.ROOT / 'docs'), 'Folder of the pages of the tables.')
_FIGURES = path_flag('figures', str(harness.FIGURES), 'Folder of the figures.')


def main() -> None:
  path = pathlib.Path(_RESULTS.value)
  results = json.loads(path.read_text()) if path.exists() else {}
  if _RUNS.value:
    results = measure(pathlib.Path(_RUNS.value), results)
    results['provenance'] = harness.Store().provenance
    results = rounded(results)
    with renamed(path) as temporary:
      pathlib.Path(temporary).write_text(to_json(results) + '\n')
  blocks = tables(results)
  pages = [pathlib.Path(_PAGES.value) / name for name in PAGES]
  for page in pages:
    write_blocks(blocks, page)
  figures = harness.draw('quality', plot, path, pathlib.Path(_FIGURES.value))
  print('\n\n'.join(f'{name}\n{table}' for name, table in blocks.items()))
  print('-> ' + ', '.join(map(str, (path, *pages, *figures))))


def measure(folder: pathlib.Path, previous: dict) -> dict:
  """Return the summary of the runs under `folder`: experiments, ab_tests and stability.

  What `folder` does not hold keeps its entry of `previous`, an earlier summary. Raises ConfigError
  where no experiment has a finished run.
  """
  experiments, known = {}, previous.get('experiments', {})
  for name in experiment.EXPERIMENTS:
    points = folder / name / 'points'
    runs = sorted(report.parent for report in points.glob('seed*/report.json'))
    if runs:
      experiments[name] = summarize(Runs.load(runs))
      continue
    say(f'{name}: no finished run in {points}; its entry stays as it was')
    if name in known:
      experiments[name] = _of_today(known[name])
  if not experiments:
    raise ConfigError(f'--runs={folder}: no finished run; must be the folder of the quality sweeps')
  ab_tests = dict(previous.get('ab_tests', {}))
  for simulator, file in AB_RUNS.items():
    path = folder / file
    if path.exists():
      ab_tests[simulator] = summarize_ab(json.loads(path.read_text()))
  stability = previous.get('stability', {})
  long_run = folder / 'stability'
  if (long_run / 'report.json').exists():
    stability = curves(long_run / 'loop/metrics.jsonl', LOOP_FIGURES)
    stability['provenance'] = _provenance(long_run)
  return dict(experiments=experiments, ab_tests=ab_tests, stability=stability)


def _of_today(summary: dict) -> dict:
  """Return an earlier summary without the ablations that nobody can run any more."""
  kept = {
    name
    for name, system in summary['systems'].items()
    if system['kind'] != 'ablation' or name.removesuffix('_exposure_penalty') in ABLATIONS
  }
  parts = ('systems', 'candidates')
  return summary | {part: {n: x for n, x in summary[part].items() if n in kept} for part in parts}


@dataclasses.dataclass(frozen=True)
class Runs:
  """Runs of one experiment that differ in their seed alone.

  reports, rankings: report.json and rankings.npz of each run. pairs: the targets of the test
  occasions, which all runs share.
  """

  folders: list[pathlib.Path]
  reports: list[dict]
  rankings: list[dict[str, np.ndarray]]
  pairs: Pairs

  @classmethod
  def load(cls, folders: list[pathlib.Path]) -> Runs:
    """Read the runs in `folders`. Raises ConfigError where two evaluated different occasions."""
    reports = [json.loads((folder / 'report.json').read_text()) for folder in folders]
    rankings = [dict(np.load(folder / 'rankings.npz')) for folder in folders]
    occasion_rows = [ranking.pop('occasion') for ranking in rankings]
    for folder, rows in zip(folders, occasion_rows):
      if not np.array_equal(rows, occasion_rows[0]):
        raise ConfigError(
          f'{folder}: evaluated other occasions than {folders[0]}; must be runs on the same log'
        )
    log, occasions = load_prepared(folders[0] / 'data')
    pairs = Pairs.of(occasions, occasion_rows[0], occasions.train_events(log))
    return cls(folders, reports, rankings, pairs)

  def arrays(self) -> list[str]:
    """Return the names of the arrays that every run has."""
    return [name for name in self.rankings[0] if all(name in other for other in self.rankings)]

  def mean(self, read: Callable[[dict], float]) -> float:
    """Return the mean over runs of one number of their reports."""
    return float(np.mean([read(report) for report in self.reports]))

  def main_slice(self) -> str:
    """Return the slice that the log is about: dormant users, where there are any."""
    return 'dormant' if self.pairs.slice('dormant').any() else 'ACTIVE'


def summarize(runs: Runs) -> dict:
  """Return everything that tables and figures need of the runs of one experiment."""
  main = runs.main_slice()
  names = [name for name in runs.arrays() if not name.startswith(CANDIDATES)]
  values = {name: _list_metrics(runs, name) for name in names}
  systems = {}
  for name in names:
    first = runs.reports[0]['systems'][name]
    systems[name] = dict(
      kind=first['kind'],
      diversity={
        key: runs.mean(lambda report: report['systems'][name]['diversity'][key])
        for key in first['diversity']
      },
      metrics=_by_slice(runs, values[name]),
    )
    if name != TESTED:
      minus = {metric: values[TESTED][metric] - values[name][metric] for metric in METRICS}
      systems[name]['tested_minus_it'] = _on_slice(runs, minus, main)
  return dict(
    seeds=[report['provenance']['seed'] for report in runs.reports],
    slice=main,
    systems=systems,
    candidates=_candidates(runs, main),
    roles=[_roles(report['roles']) for report in runs.reports],
    deletion=_deletion(runs.reports[0]['roles']),
    warmup=[curves(folder / 'warmup/metrics.jsonl', ('purchase_nll',)) for folder in runs.folders],
    provenance=[_provenance(folder) for folder in runs.folders],
  )


def _list_metrics(runs: Runs, name: str) -> dict[str, np.ndarray]:
  """Return metric -> value of every pair, float64 [S, T], for the lists of one system."""
  rank_SxT = [ranks(ranking[name], runs.pairs) for ranking in runs.rankings]
  return {
    metric: np.stack([of_rank(rank_T, k) for rank_T in rank_SxT])
    for metric, (of_rank, k) in METRICS.items()
  }


def _candidates(runs: Runs, main: str) -> dict[str, dict]:
  """Return, per system with a reasoner, what the candidates of all worlds of a user are worth.

  held: share of targets among them; repeated: share of candidates that their path named before.
  Counting comes last, with as many items that it lists first.
  """
  pairs, by_name = runs.pairs, {}
  for array in filter(lambda name: name.startswith(CANDIDATES), runs.arrays()):
    by_name[array.removeprefix(CANDIDATES)] = [ranking[array] for ranking in runs.rankings]
  if by_name:
    places = by_name[TESTED][0][0].size
    by_name['counting'] = [ranking['counting'][:, None, :places] for ranking in runs.rankings]
  held, repeated, size = {}, {}, {}
  for name, candidates in by_name.items():
    union = [array_OxWxP.reshape(pairs.occasions, -1) for array_OxWxP in candidates]
    held[name] = np.stack([ranks(items, pairs) > 0 for items in union]).astype(np.float64)
    shares = [np.asarray(repeats(items), np.float64).mean(1) for items in candidates]
    repeated[name] = np.stack(shares)  # [S, O]
    size[name] = np.mean([len(np.unique(row[row >= 0])) for items in union for row in items])
  user_O = np.zeros(pairs.occasions, pairs.user.dtype)
  user_O[pairs.occasion] = pairs.user

  def distance(name: str) -> float | None:
    if name == 'counting':
      return None  # of one list; and reports of before do not know it
    return runs.mean(lambda report: report['worlds']['systems'][name]['jaccard'])

  summary = {}
  for name in by_name:
    values = dict(held=held[name], tested_minus_held=held[TESTED] - held[name])
    summary[name] = dict(
      jaccard=distance(name),
      union_size=float(size[name]),
      **_on_slice(runs, values, main),
      repeated=_estimate(repeated[name], user_O),
      tested_minus_repeated=_estimate(repeated[TESTED] - repeated[name], user_O),
    )
  return summary


def _by_slice(runs: Runs, values: dict[str, np.ndarray]) -> dict[str, dict]:
  return {
    name: _on_slice(runs, {metric: values[metric] for metric in metrics}, name)
    for name, metrics in SLICES[runs.main_slice()].items()
    if runs.pairs.slice(name).any()
  }


def _on_slice(runs: Runs, values: dict[str, np.ndarray], name: str) -> dict[str, dict]:
  """Return the estimate of each of `values` [S, T] over the pairs of one slice."""
  mask_T = runs.pairs.slice(name)
  user_T = runs.pairs.user[mask_T]
  return {metric: _estimate(value[:, mask_T], user_T) for metric, value in values.items()}


def _estimate(value_SxT: np.ndarray, user_T: np.ndarray) -> dict:
  settings = EvaluationConfig()
  interval = bootstrap(value_SxT.mean(0), user_T, settings.bootstrap, settings.seed)
  return dict(
    mean=interval.mean,
    low=interval.low,
    high=interval.high,
    pairs=interval.pairs,
    by_seed=value_SxT.mean(1).tolist(),
  )


def _roles(section: dict) -> dict:
  """Return one run's macro-F1 of roles and, where the truth is planted, of labels and effects."""
  figures = {
    f'{situation}, {name}': score['macro_f1']
    for situation, by_name in section.get('scores', {}).items()
    for name, score in by_name.items()
  }
  if 'agreement' in section:
    figures['agreement'] = section['agreement']['macro_f1']
  if 'effects' in section:
    figures |= {name: section['effects'][name] for name in ('spearman', 'same_sign')}
  return figures


def _deletion(section: dict) -> dict[str, dict]:
  """Return the deletion curves: chooser -> events removed -> log p lost beyond others' removals.

  The others are random events and, by a name of its own, the latest ones.
  """
  curves = section.get('deletion') or {}
  beyond = {name: curve['minus_random'] for name, curve in curves.items() if name != 'random'}
  return beyond | {
    f'{name}, over the latest': curve['minus_recency']
    for name, curve in curves.items()
    if name not in (RECENCY, 'random')
  }


def curves(path: pathlib.Path, figures: tuple[str, ...]) -> dict[str, list[float]]:
  """Return step and `figures` of a metrics.jsonl, as means of at most CURVE_POINTS equal parts."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  parts = np.array_split(np.arange(len(rows)), min(len(rows), CURVE_POINTS))
  return {
    name: [float(np.mean([rows[i][name] for i in part])) for part in parts]
    for name in ('step', *figures)
  }


def summarize_ab(result: dict) -> dict:
  """Return what table and figure need of an ab.json."""
  fields = (
    'simulator',
    'tested',
    'slate',
    'users',
    'days',
    'seeds',
    'training_seeds',
    'resamples',
    'visits',
    'provenance',
  )
  arms, lifts = {}, {}
  for name, arm in result['arms'].items():
    by_day = {figure: arm['by_day'][figure] for figure in AB_DAILY}
    arms[name] = dict(orders=arm['orders'], by_day=by_day)
  for name, lift in result['lifts'].items():
    by_day = lift['orders_by_day'] if name in LIFTS_OVER else []
    lifts[name] = dict(tested=lift['tested'], orders=lift['orders'], orders_by_day=by_day)
  return {field: result[field] for field in fields} | dict(arms=arms, lifts=lifts)


def _provenance(folder: pathlib.Path) -> dict:
  """Return the run's provenance.

  wall_s: from the first training step to the report, pauses included.
  """
  report = json.loads((folder / 'report.json').read_text())['provenance']
  fields = ('seed', 'commit', 'when', 'config_digest', 'artifacts', 'device_kind', 'versions')
  starts = [
    json.loads(path.read_text().splitlines()[0])['at'] for path in folder.glob('*/time.0.jsonl')
  ]
  end = datetime.datetime.fromisoformat(report['when']).timestamp()
  wall_s = round(end - min(starts)) if starts else None
  return {field: report[field] for field in fields} | dict(wall_s=wall_s)


def rounded(value: object) -> object:
  """Return the value with its numbers to six digits, more than any table shows."""
  if isinstance(value, float):
    return float(f'{value:.6g}')
  if isinstance(value, list):
    return [rounded(x) for x in value]
  return {key: rounded(x) for key, x in value.items()} if isinstance(value, dict) else value


def to_json(value: object, indent: int = 0) -> str:
  """Return indented JSON in which what fits JSON_WIDTH, or is a list of numbers, is one line."""
  line = json.dumps(value)
  numbers = isinstance(value, list) and all(isinstance(x, (int, float)) for x in value)
  if not isinstance(value, (dict, list)) or numbers or indent + len(line) <= JSON_WIDTH:
    return line
  margin = ' ' * (indent + 1)
  if isinstance(value, dict):
    parts = [f'{json.dumps(key)}: {to_json(x, indent + 1)}' for key, x in value.items()]
  else:
    parts = [to_json(x, indent + 1) for x in value]
  opening, closing = '{}' if isinstance(value, dict) else '[]'
  return f'{opening}\n{margin}' + f',\n{margin}'.join(parts) + f'\n{" " * indent}{closing}'


if __name__ == '__main__':
  entry.run(main)
