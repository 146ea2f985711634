"""Runs at the smallest size, opened as far as a test needs them."""

import dataclasses
import os

from rolegen_jax.config import Config
from rolegen_jax.pipeline import stages
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.pipeline.stages import LabeledExamples, Trained
from tests import tiny

# A demo that is prepared in seconds; tests add what they vary.
SMALL = [
  f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in tiny.SIZES
] + [
  'simulator.users=150',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'semantic_ids.levels=2',
  'semantic_ids.collaborative_dim=8',
  'semantic_ids.iterations=2',
  'backbone.context=16',
  'reasoner.events=6',
  'reasoner.role_events=4',
]


@dataclasses.dataclass(frozen=True)
class Reasoned:
  """A run up to the stage `reason`."""

  run: Run
  inputs: Inputs
  warm: Trained
  labeled: LabeledExamples
  aligned: Trained
  reasoned: Trained


def open_inputs(
  config: Config, folder: str | os.PathLike, may_train: bool = True
) -> tuple[Run, Inputs]:
  """Return a run and its inputs, prepared where they are not yet."""
  run = open_run(config, folder, may_train)
  return prepare_inputs(run)


def run_to_reason(config: Config, folder: str | os.PathLike) -> Reasoned:
  """Run the stages up to `reason`."""
  run, inputs = open_inputs(config, folder)
  warm = stages.warm_up(run, inputs)
  labeled = stages.label_roles(run, inputs)
  aligned = stages.align(run, inputs, labeled)
  reasoned = stages.reason(run, inputs, labeled, aligned)
  return Reasoned(run, inputs, warm, labeled, aligned, reasoned)
