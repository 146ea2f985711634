"""Ablations: RoleGen with one part turned off, made by the stages that this takes."""

from __future__ import annotations

import functools
from collections.abc import Callable

from rolegen_jax.config import WITHOUT
from rolegen_jax.pipeline import stages
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.inputs import Inputs
from rolegen_jax.pipeline.stages import Models, Trained
from rolegen_jax.reasoning.ablations import REPLACEMENTS, Replacement, without
from rolegen_jax.training import steps
from rolegen_jax.training.losses import Params


def train_ablations(run: Run, inputs: Inputs, models: Models) -> dict[str, Trained]:
  """Make what `evaluation.ablations` names: trained, calibrated, both or neither."""
  names = run.config.evaluation.ablations
  return {name: train_ablation(run, inputs, models, name) for name in names}


def _replaced(run: Run, trained: Trained, replace: Replacement) -> Callable[[], dict[str, Params]]:
  return functools.cache(lambda: replace(trained.load(), run.mesh))


def train_ablation(run: Run, inputs: Inputs, models: Models, ablation: str) -> Trained:
  """Make RoleGen with one part turned off; `config.ABLATIONS` says what that takes."""
  name, looped = f'ablations/{ablation}', models.looped
  if ablation in REPLACEMENTS:
    whole = models.calibrated
    return Trained(f'{whole.key} {ablation}', _replaced(run, whole, REPLACEMENTS[ablation]))
  if ablation == 'no_reasoner':
    return stages.calibrate(run, inputs, looped, name, reasoning=False, of='loop')
  if ablation in WITHOUT:
    rest = Trained(looped.key, _replaced(run, looped, without(WITHOUT[ablation])))
    return stages.calibrate(run, inputs, rest, name, of='loop')
  varied, switches = run.ablated(ablation), ablation_switches(ablation)
  if ablation == 'tiger':
    return stages.warm_up(varied, inputs, name)
  labeled, warm, reasoned = models.labeled, models.warm, models.reasoned
  if varied.config.reasoner != run.config.reasoner:
    reasoned = stages.reason(varied, inputs, labeled, models.aligned, f'reason/{ablation}')
  looped = stages.close_loop(varied, inputs, labeled, warm, reasoned, name, switches)
  return stages.calibrate(varied, inputs, looped, name, intervene=bool(switches.intervene))


def ablation_switches(ablation: str) -> steps.Switches:
  """Return what an ablation turns off in the joint train step."""
  return steps.Switches(
    intervene=ablation != 'no_interventions', reflect=float(ablation != 'no_reflection')
  )
