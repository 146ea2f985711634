"""A run of RoleGen, from the log to the report.

`train` runs every stage that is not up to date; the other commands load what it leaves.
"""

from __future__ import annotations

import os
import pathlib

from rolegen_jax.config import Config
from rolegen_jax.pipeline import evaluation, stages
from rolegen_jax.pipeline.ablations import train_ablations
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.pipeline.stages import Models, Trained
from rolegen_jax.training.fit import Observers


def train(
  config: Config,
  workdir: str | os.PathLike,
  print_tables: bool = False,
  retrain: bool = False,
  observers: Observers = Observers(),
) -> pathlib.Path:
  """Run all stages in order and return the path of report.html; `observers` look on.

  Raises ConfigError naming the field or file with which a stage that is there was trained
  otherwise; with `retrain` that stage starts afresh.
  """
  run = open_run(config, workdir, retrain=retrain, observers=observers)
  run, inputs = prepare_inputs(run)  # the log, its semantic IDs, and what is counted on it
  models = train_models(run, inputs)
  observers.profile.report()
  run, inputs, models = evaluation.as_tested(run, inputs, models)
  ablations = train_ablations(run, inputs, models)
  baselines = evaluation.rank_baselines(run, inputs)
  results = evaluation.evaluate(run, inputs, models, ablations, baselines)
  return evaluation.report(run, inputs, models, results, print_tables)


def train_models(run: Run, inputs: Inputs) -> Models:
  """Run the training stages in order; those that are complete are only opened."""
  warm = stages.warm_up(run, inputs)
  kinds = stages.learn_kinds(run, inputs)
  labeled = stages.label_roles(run, inputs, kinds)
  if run.config.update.parent:
    aligned = reasoned = Trained(run.config.update.parent_key, lambda: inputs.parent().params())
  else:
    aligned = stages.align(run, inputs, labeled, kinds)
    reasoned = stages.reason(run, inputs, labeled, aligned)
  looped = stages.close_loop(run, inputs, labeled, warm, reasoned)
  calibrated = stages.calibrate(run, inputs, looped)
  return Models(warm, labeled, aligned, reasoned, looped, calibrated)
