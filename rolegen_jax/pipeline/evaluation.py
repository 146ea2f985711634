"""The last stages: baselines, what every model recommends on the test occasions, and the report.

Nothing is trained here but the baselines, which are a stage of their own.

Beside report.html and report.json stands rankings.npz: `occasion` int64 [N], the rows of the run's
occasions that were asked for; by name of each system the items int32 [N, K] that it listed, best
first, -1 past the end; and under candidates/NAME the candidates int32 [N, W, P] of those that have
worlds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import shlex
import time
from typing import Any

import numpy as np

from rolegen_jax.config import AT_RUN_TIME, WITHOUT, EvaluationConfig, digest
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.files import DataError, write_json, write_npz
from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import content
from rolegen_jax.evaluation.baselines import (
  BASELINES,
  BaselineInputs,
  Ranking,
  evaluation_rows,
)
from rolegen_jax.evaluation.factorization import u2i
from rolegen_jax.evaluation.sasrec import sasrec
from rolegen_jax.evaluation.trajectories import Trajectories
from rolegen_jax.pipeline import artifacts, roles
from rolegen_jax.pipeline.ablations import ablation_switches
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.inputs import Inputs, inference_table
from rolegen_jax.pipeline.stages import Models, Trained, validation_examples
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.history_filter import without_history
from rolegen_jax.serving.slate import Exposure, Opened, slates

ALL_BASELINES = BASELINES | {'u2i': u2i, 'SASRec': sasrec}
# Systems whose lists are also reported with an exposure penalty.
PENALIZED = ('RoleGen', 'no_reasoner')
KINDS = ('model', 'ablation', 'baseline')  # of systems, in the order of the report


@dataclasses.dataclass(frozen=True)
class Results:
  """What every system recommends on the test occasions."""

  rows: np.ndarray  # int64 [N], of the occasions
  table: ExampleTable  # of those occasions, targets unknown
  predictions: dict[str, Predictions]  # of RoleGen, its ablations and `tiger`
  rankings: content.Rankings


def as_tested(run: Run, inputs: Inputs, models: Models) -> tuple[Run, Inputs, Models]:
  """Return what is asked about the test occasions, and by which models and counts.

  Those of a run that appends days are in these days, which it has learned from. So its parent is
  asked, which had not seen them, and whatever trains or fits weights is left out.
  """
  if not inputs.before:
    return run, inputs, models
  left = tuple(name for name in run.config.evaluation.ablations if name in AT_RUN_TIME)
  evaluation = dataclasses.replace(run.config.evaluation, ablations=left)
  run = dataclasses.replace(run, config=dataclasses.replace(run.config, evaluation=evaluation))
  parent = Trained(f'{run.config.update.parent_key} parent', inputs.parent().calibrated)
  return run, inputs.before(), dataclasses.replace(models, looped=parent, calibrated=parent)


def next_day(run: Run, inputs: Inputs) -> dict[str, dict]:
  """Say what the parent of a run, which had not seen its new days, makes of them.

  Write next_day.json: metrics by slice of the test occasions, which are those of the new days. An
  item that is new is one that the parent has learned nothing of.
  """
  key = run.config.update.parent_key
  stage = run.begin('next_day', inputs.hashes | dict(parent=key))
  path = stage.folder / 'next_day.json'
  if not stage.is_complete:
    parent = Trained(f'{key} parent', functools.cache(inputs.parent().calibrated))
    plain = dataclasses.replace(run.config.evaluation, exposure_penalty=0.0)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, evaluation=plain))
    results = rank_all(run, inputs, {'RoleGen': parent}, {})
    systems, _ = content.systems(
      run.config, inputs.log, inputs.occasions, results.rows, inputs.codes, results.rankings
    )
    metrics = {
      part: {name: dataclasses.asdict(interval) for name, interval in of_part.items()}
      for part, of_part in systems['RoleGen']['metrics'].items()
    }
    distributed.once(lambda: write_json(metrics, path))
    stage.finish(f'{len(results.rows)} occasions')
  return artifacts.read_json(path)


def rank_baselines(run: Run, inputs: Inputs) -> dict[str, Ranking]:
  """Stage `baselines`: what every baseline lists on the test occasions."""
  config = run.config
  rows = evaluation_rows(inputs.log, inputs.occasions, TEST, config.evaluation.occasions)
  k = max(config.evaluation.ks)
  stage = run.begin('baselines', inputs.hashes)
  if not stage.is_complete:
    known = BaselineInputs(
      inputs.log,
      inputs.occasions,
      inputs.interest_shift,
      config,
      inputs.choices.kernel,
      inputs.bars_history,
      inputs.trending,
    )
    for name, baseline in ALL_BASELINES.items():
      path = stage.folder / f'{name}.npz'  # each on its own, so that a kill costs one at most
      if not distributed.once(path.exists):
        ranking = baseline(known, rows, k)
        saved = dict(items=ranking.items, settings=np.array(json.dumps(ranking.settings)))
        distributed.once(lambda: write_npz(saved, path))
    stage.finish(f'{len(ALL_BASELINES)} baselines on {len(rows)} occasions')
  rankings = {}
  for name in ALL_BASELINES:
    saved = artifacts.read_arrays(stage.folder / f'{name}.npz', 'items', 'settings')
    rankings[name] = Ranking(saved['items'][:, :k], json.loads(str(saved['settings'])))
  return rankings


def evaluate(
  run: Run,
  inputs: Inputs,
  models: Models,
  ablations: dict[str, Trained],
  baselines: dict[str, Ranking],
) -> Results:
  """Rank the catalogue for every test occasion, by RoleGen, its ablations and the baselines."""
  return rank_all(run, inputs, {'RoleGen': models.calibrated} | ablations, baselines)


def rank_all(
  run: Run, inputs: Inputs, trained: dict[str, Trained], baselines: dict[str, Ranking]
) -> Results:
  """Rank the catalogue for every test occasion, by these models and the baselines."""
  config, occasions = run.config.evaluation, inputs.occasions
  rows = evaluation_rows(inputs.log, occasions, TEST, config.occasions)
  table = inference_table(
    run, inputs, occasions.user[rows], occasions.context_end[rows], occasions.timestamp[rows]
  )
  predictions = {name: _predict(run, inputs, table, name, model) for name, model in trained.items()}
  k = max(config.ks)
  rankings: content.Rankings = {
    name: (_kind(name), prediction.item[:, :k], _settings(run, name))
    for name, prediction in predictions.items()
  }
  if config.exposure_penalty:
    for name in (name for name in PENALIZED if name in predictions):
      items = penalize_exposure(
        predictions[name], table.timestamp, len(inputs.codes), config.exposure_penalty
      )
      rankings[f'{name}_exposure_penalty'] = (_kind(name), items[:, :k], {})
  for name, ranking in baselines.items():
    rankings[name] = ('baseline', ranking.items, ranking.settings)
  by_kind = dict(sorted(rankings.items(), key=lambda system: KINDS.index(system[1][0])))
  return Results(rows, table, predictions, by_kind)


def _kind(name: str) -> str:
  return {'RoleGen': 'model', 'tiger': 'baseline'}.get(name, 'ablation')


def _settings(run: Run, name: str) -> dict[str, Any]:
  """Return the settings of a baseline that is a model of ours; {} for other systems."""
  config = run.config.ablated(name)
  return dict(steps=config.warmup.steps, beam=config.backbone.beam) if name == 'tiger' else {}


def _predict(
  run: Run, inputs: Inputs, table: ExampleTable, name: str, model: Trained
) -> Predictions:
  """Recommend for every example, or read what the same code said of them before.

  So an evaluation that was cut off goes on with the system that it was at.
  """
  run = run.ablated(name)
  settings = dataclasses.replace(run.config, evaluation=EvaluationConfig())
  examples = hashlib.sha256(table.end.tobytes() + table.timestamp.tobytes()).hexdigest()
  asked = digest(distributed.code_digest(), name, model.key, settings, inputs.hashes, examples)
  path = run.workdir / 'predictions' / f'{name}.npz'
  if distributed.once(lambda: path.exists() and _asked_before(path) == asked):
    say(f'{name}: predicted before')
    saved: dict[str, Any] = artifacts.read_arrays(path)
    del saved['asked']
    predictions = Predictions(terms=None, **saved)
  else:
    predictions = predict.predict(
      run.rolegen,
      model.load(),
      table,
      inputs.trie,
      run.mesh,
      run.config.backbone.beam,
      reasoning=name not in ('no_reasoner', 'tiger'),
      intervene=bool(ablation_switches(name).intervene),
      label=name,
    )
    predictions = predictions._replace(terms=None)  # large, and of lists with the history
    found = {k: x for k, x in predictions._asdict().items() if x is not None}
    path.parent.mkdir(exist_ok=True)
    distributed.once(lambda: write_npz(found | dict(asked=np.array(asked)), path))
  if not inputs.bars_history:
    return predictions
  lists = without_history(predictions.item, predictions.score, table.log, table.user, table.end)
  return predictions._replace(item=lists[0], score=lists[1])


def _asked_before(path: pathlib.Path) -> str:
  """Return the key of saved predictions, '' where they cannot be read."""
  try:
    return str(artifacts.read_arrays(path, 'asked')['asked'])
  except DataError:
    return ''


def penalize_exposure(
  predictions: Predictions, timestamp: np.ndarray, items: int, penalty: float
) -> np.ndarray:
  """Return the lists int32 [N, k] reordered by `slates`, made one after the other by time."""
  by_time = np.argsort(timestamp, kind='stable')
  lists = np.empty_like(predictions.item)
  nothing = Opened(np.zeros(lists.shape, np.float32), 1.0)
  ordered = predictions.item[by_time], predictions.score[by_time]
  lists[by_time] = slates(*ordered, nothing, 0.0, Exposure(penalty, items)).item
  return lists


def report(
  run: Run, inputs: Inputs, models: Models, results: Results, print_tables: bool = False
) -> pathlib.Path:
  """Write report.html, report.json and rankings.npz; return the path of report.html."""
  started = time.monotonic()
  config, log, occasions = run.config, inputs.log, inputs.occasions
  _write_rankings(run, results)
  systems, differences = content.systems(
    config, log, occasions, results.rows, inputs.codes, results.rankings
  )
  role_section, notes = _roles(run, inputs, models, results)
  told, metric = inputs.choices.told(inputs.bars_history), f'HI@{_main_k(config.evaluation.ks)}'
  notes = [told, *content.parts(systems, metric), *content.experts(systems, metric), *notes]
  if config.evaluation.occasions:
    notes += [content.some_occasions(config.evaluation.occasions)]
  notes += content.short_lists(config.evaluation.ks, len(log.items), results.rankings)
  serve = f'rolegen serve --workdir={shlex.quote(str(run.workdir))}'
  notes += [f'A page with every user, the worlds and the reasons behind each list: {serve}']
  words, tell = _words(run, inputs, models, results)
  candidates = _candidates(results) | _counted(results)
  trajectories = Trajectories(
    log, occasions, results.rows, results.table, results.predictions['RoleGen']
  )
  ablations = (f'ablations/{name}' for name in config.evaluation.ablations)
  kinds = ('kinds',) if config.reasoner.kinds else ()
  stages = ('warmup', *kinds, 'align', 'reason', 'loop', *ablations)
  page = dict(
    title=f'RoleGen-JAX: {config.name}',
    notes=notes,
    systems=systems,
    differences=differences,
    roles=role_section,
    training=content.training_rows(run.workdir, stages),
    worlds=content.worlds(config, log, occasions, results.rows, inputs.codes, candidates),
    semantic_ids=inputs.catalogue.report,
    trajectories=trajectories.draw(tell),
    provenance=content.provenance(config, inputs.hashes, time.monotonic() - started),
    **words,
  )
  from rolegen_jax.evaluation.report import write_report  # brings matplotlib, slow to import

  path = distributed.once(lambda: write_report(run.workdir, page))
  if print_tables:
    print(content.table(systems, differences, [*config.evaluation.ks]))
    print('\n'.join(notes))
  print(headline(systems))
  say(f'report -> {path}')
  say(f'next: rolegen recommend --workdir={run.workdir} --output=recommendations.parquet')
  say(f'or, after pip install -r requirements-serve.txt, lists and a page over HTTP: {serve}')
  return path


def _main_k(ks: tuple[int, ...]) -> int:
  return 10 if 10 in ks else ks[-1]


def headline(systems: dict[str, dict]) -> str:
  """Return a table: hit rates of RoleGen, of its parts alone and of the best baseline."""
  tested = systems['RoleGen']['metrics']
  part = 'dormant' if 'dormant' in tested else 'all'
  ks = [name for name in tested[part] if name.startswith('HI@')]
  k = f'HI@{_main_k(tuple(int(name[3:]) for name in ks))}'

  def mean(name: str, metric: str) -> float:
    return 100 * systems[name]['metrics'][part][metric].mean

  baselines = [name for name, system in systems.items() if system['kind'] == 'baseline']
  parts = [name for name in ('no_language_model', 'counts_only', 'no_reasoner') if name in systems]
  shown = ['RoleGen', *parts, max(baselines, key=lambda name: mean(name, k))]
  width = max(map(len, shown))
  title = f'{part}, hit rate in %'.ljust(width + 10)
  lines = [title + ''.join(f'{name:>8}' for name in ks)]
  for name in shown:
    kind = '' if systems[name]['kind'] == 'model' else f' ({systems[name]["kind"]})'
    values = ''.join(f'{mean(name, metric):8.2f}' for metric in ks)
    lines.append((name + kind).ljust(max(width + 10, len(title))) + values)
  return '\n'.join(lines)


def _candidates(results: Results) -> dict[str, np.ndarray]:
  """Return the candidates of each system whose worlds are its own."""
  own = {name: p for name, p in results.predictions.items() if name not in WITHOUT}
  return {name: p.candidates for name, p in own.items() if p.candidates is not None}


def _counted(results: Results) -> dict[str, np.ndarray]:
  """Return as many items as RoleGen has candidates that counting lists first, as one world."""
  candidates = results.predictions['RoleGen'].candidates
  if candidates is None:
    return {}
  size = candidates[0].size
  return {'counting': results.rankings['counting'][1][:, None, :size]}


def _write_rankings(run: Run, results: Results) -> None:
  arrays = dict(occasion=results.rows)
  arrays |= {name: items for name, (_, items, _) in results.rankings.items()}
  arrays |= {f'candidates/{name}': items for name, items in _candidates(results).items()}
  distributed.once(lambda: write_npz(arrays, run.workdir / 'rankings.npz'))


def _roles(
  run: Run, inputs: Inputs, models: Models, results: Results
) -> tuple[dict[str, Any], list[str]]:
  """Return the report's section on roles, and notes."""
  config, occasions = run.config, inputs.occasions
  first_target = occasions.target[occasions.target_offsets[results.rows]]
  known = dataclasses.replace(results.table, target=first_target)
  section, notes = roles.section(run, inputs, models, known, results.predictions['RoleGen'])
  if config.update.appends:
    notes.append(
      'The test occasions are in the days that this version appended, and all systems know what '
      'was known before: RoleGen is the version that this one continued.'
    )
    return section, notes
  n_validation = len(validation_examples(run, inputs))
  if config.calibration.steps and n_validation:
    notes.append(
      f'RoleGen and its ablations fitted the weights of experts to {n_validation} conversions of '
      'the validation period; the baselines chose their settings there too.'
    )
  return section, notes


def _words(
  run: Run, inputs: Inputs, models: Models, results: Results
) -> tuple[dict[str, Any], Any]:
  """Return the report's sections on words, and what tells an example in words, or None."""
  if not inputs.words:
    return {}, None
  from rolegen_jax.evaluation.alignment import questions, sentences

  stages = dict(align=models.aligned, reason=models.reasoned, loop=models.calibrated)
  reasoners = {name: stage.load()['reasoner'] for name, stage in stages.items()}
  alignment = inputs.words.alignment
  sections = dict(alignment=questions(run.rolegen, reasoners, alignment, run.mesh))
  if not run.config.text.rationales:
    return sections, None

  def tell(examples: list[int]) -> list[tuple[list[str], list[str]]]:
    return sentences(
      run.rolegen,
      reasoners['loop'],
      alignment.over(results.table),
      examples,
      results.predictions['RoleGen'],
      run.mesh,
    )

  return sections, tell
