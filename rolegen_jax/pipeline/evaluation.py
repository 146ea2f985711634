"""The last stage of a run: RoleGen, its ablations and the baselines on the test occasions, and the report.

An ablation is trained where it is not yet. Beside report.html and report.json stands rankings.npz: `occasion` int64 [N], which of
the run's occasions were asked for, and by name of each system the items int32 [N, K] that it listed, best first, -1 past the end;
under candidates/NAME the candidates int32 [N, W, P] of those that have worlds.

`run` is the `stages.Run` that the stage is part of.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

import numpy as np

from rolegen_jax.config import ABLATIONS
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.files import read_parquet, write_npz
from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import content
from rolegen_jax.evaluation.baselines import BASELINES, evaluation_rows
from rolegen_jax.evaluation.deletion import deletion_curves
from rolegen_jax.evaluation.sasrec import sasrec
from rolegen_jax.reasoning import predict
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.slate import slates
from rolegen_jax.training import steps

PENALIZED = ('RoleGen', 'no_reasoner')  # whose lists are also reported spread


def predicted(run, name: str, table: ExampleTable) -> predict.Predictions:
  """What RoleGen or the ablation of this name recommends; trains it first where it is not yet."""
  ask = lambda of, params, **how: predict.predict(
    of.rolegen, params, table, run.trie, run.mesh, run.config.backbone.beam, label=name, **how
  )
  if name == 'RoleGen':
    return ask(run, run.trained)
  if name == 'no_reasoner':
    return ask(run, run.backbone_alone(f'ablations/{name}'), reasoning=False)
  other = run.varied(**ABLATIONS[name])
  switches = steps.Switches(
    intervene=name != 'no_counterfactual', reflect=float(name != 'no_reflection')
  )
  return ask(other, other.loop(f'ablations/{name}', switches), intervene=switches.intervene)


def spread_out(
  found: predict.Predictions, timestamp: np.ndarray, items: int, weight: float
) -> np.ndarray:
  """int32 [N, k]: the lists in the order of `slates` with that spread, made one after the other as their occasions came."""
  came = np.argsort(timestamp, kind='stable')
  order = np.empty(found.item.shape, np.int64)
  order[came] = slates(found.item[came], found.score[came], np.zeros(items), 0.0, weight)
  return np.take_along_axis(found.item, order, axis=1)


def report(run, print_tables: bool = False) -> pathlib.Path:
  """Evaluates RoleGen, its ablations and the baselines on the test occasions; writes and returns report.html."""
  log, occasions = run.data
  c, started = run.config, time.monotonic()
  rows = evaluation_rows(log, occasions, TEST)
  table = run.inference_examples(
    occasions.user[rows], occasions.context_end[rows], occasions.timestamp[rows]
  )
  k = max(c.evaluation.ks)
  models = {name: predicted(run, name, table) for name in ('RoleGen', *c.evaluation.ablations)}
  found, kind = models['RoleGen'], lambda name: 'model' if name == 'RoleGen' else 'ablation'
  rankings = {name: (kind(name), of.item[:, :k], {}) for name, of in models.items()}
  if c.evaluation.exposure_penalty:
    wide = {
      name: spread_out(models[name], table.timestamp, len(run.codes), c.evaluation.exposure_penalty)
      for name in PENALIZED
      if name in models
    }
    rankings |= {
      f'{name}_exposure_penalty': (kind(name), items[:, :k], {}) for name, items in wide.items()
    }
  candidates = {name: of.candidates for name, of in models.items() if of.candidates is not None}
  for name, baseline in (BASELINES | {'SASRec': sasrec}).items():
    made = baseline(log, occasions, rows, c, k)
    rankings[name] = ('baseline', made.items, made.settings)
  listed = (
    dict(occasion=rows)
    | {name: items for name, (_, items, _) in rankings.items()}
    | {f'candidates/{name}': items for name, items in candidates.items()}
  )
  distributed.once(lambda: write_npz(listed, run.workdir / 'rankings.npz'))
  systems, differences = content.systems(c, log, occasions, rows, run.codes, rankings)
  known = dataclasses.replace(table, target=occasions.target[occasions.target_offsets[rows]])
  hindsight = predict.hindsight_roles(run.rolegen, known, run.interest_shift)
  effects = predict.effects(run.rolegen, run.trained, known, run.trie, run.mesh)
  planted = run.workdir / 'data' / 'planted.parquet'
  truth = (
    content.planted_truth(table, read_parquet(planted), c.reasoner.role_events)
    if planted.exists()
    else None
  )
  roles, notes = content.roles(hindsight, effects, found.roles, truth)
  scores = {'pivots of the reasoner': found.pivotal, 'removal effects in hindsight': effects.intent}
  roles['deletion'] = deletion_curves(
    run.rolegen, run.trained['backbone'], known, scores, run.trie, run.mesh, c.evaluation
  )
  notes.append(content.role_gains(run.trained['reasoner']['intent']['role_gain']))
  if c.calibration.steps and len(run.validation):
    notes.append(
      f'RoleGen and its ablations weigh their sources as {len(run.validation)} conversions of the validation period would have it; the baselines chose their settings there too.'
    )
  stages = (
    'backbone',
    'align',
    'reason',
    'loop',
    *(f'ablations/{name}' for name in c.evaluation.ablations),
  )
  from rolegen_jax.evaluation.report import write_report

  words, tell = run.words.report(table, found)
  page = distributed.once(
    lambda: write_report(
      run.workdir,
      dict(
        title=f'RoleGen-JAX: {c.name}',
        notes=notes,
        systems=systems,
        differences=differences,
        roles=roles,
        training=content.training_rows(run.workdir, stages),
        worlds=content.worlds(c, log, occasions, rows, run.codes, candidates),
        semantic_ids=run.catalogue.report,
        trajectories=content.trajectories(log, occasions, rows, table, found, tell),
        provenance=content.provenance(c, run.artifacts, time.monotonic() - started),
        **words,
      ),
    )
  )
  if print_tables:
    print(content.table(systems, differences, [*c.evaluation.ks]))
    print('\n'.join(notes))
  say(f'report -> {page}')
  return page
