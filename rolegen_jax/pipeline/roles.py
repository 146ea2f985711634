"""The report's section on roles: what the reasoner says of events, and what could be said.

N test examples, M last events of each, R roles.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.files import read_parquet
from rolegen_jax.data.log import ranges
from rolegen_jax.evaluation import content, role_scores
from rolegen_jax.evaluation.deletion import deletion_curves
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.inputs import Inputs
from rolegen_jax.pipeline.stages import Models
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.batched import Beside
from rolegen_jax.reasoning.explain import explaining
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.simulator import world
from rolegen_jax.simulator.base import World
from rolegen_jax.simulator.foresight import role_ceiling
from rolegen_jax.simulator.histories import Moments

# Test examples, evenly spaced: whose removal effects and explanations, and whose chances of roles.
EFFECT_EXAMPLES, ROLE_EXAMPLES = 500, 400
FIT_EXAMPLES = 1500  # training conversions that the logistic regression is fitted to
SITUATIONS = ('from the history alone', 'told the intent')


def section(
  run: Run, inputs: Inputs, models: Models, known: ExampleTable, prediction: Predictions
) -> tuple[dict[str, Any], list[str]]:
  """Return the section, and notes. `known` are the test examples with their targets."""
  params = models.calibrated.load()
  hindsight = predict.hindsight_roles(
    run.rolegen,
    known,
    inputs.interest_shift,
    params['reasoner']['intent'].get('kinds'),
    inputs.trie,
    run.mesh,
  )
  planted, truth = run.workdir / 'data' / 'planted.parquet', None
  if planted.exists():
    truth = content.planted_truth(known, read_parquet(planted), run.config.reasoner.role_events)
  sample = _evenly(known, EFFECT_EXAMPLES)
  sampled = known.picked(sample)
  effects = predict.effects(run.rolegen, params, sampled, inputs.trie, run.mesh)
  asked = _evenly(known, ROLE_EXAMPLES)
  labels = hindsight if truth is None else truth[0]
  scores = _scores(run, inputs, models, known.picked(asked), labels[asked])
  roles, notes = content.roles(hindsight, truth, scores, effects, sample)
  listed = prediction.item[sample]
  bought = np.where(listed == sampled.target[:, None], -1, listed)
  bought[:, -1] = sampled.target
  explainer = explaining(run.rolegen, params, inputs.trie, run.mesh, 1)
  choosers = {
    f'the explanation of the item {which}': explainer.over(
      Beside(sampled, items), 'explanations'
    ).effect[:, 0]
    for which, items in (('ranked first', listed), ('bought', bought[:, ::-1]))
  }
  roles['deletion'] = deletion_curves(
    run.rolegen, params['backbone'], sampled, choosers, inputs.trie, run.mesh, run.config.evaluation
  )
  equation = params['reasoner']['intent']
  notes = [*notes, content.role_gains(equation['role_gain'])]
  if models.calibrated is not models.looped:
    notes.append(content.language_weight(equation['language']))
    if run.config.reasoner.kinds:
      notes.append(content.pooled_weights(equation['pooled']))
  if run.config.reasoner.kinds:
    notes += content.kinds(equation, inputs.choices.words)
  return roles, notes


def _evenly(table: ExampleTable, most: int) -> np.ndarray:
  return np.linspace(0, len(table) - 1, min(len(table), most)).astype(np.int64)


def _scores(
  run: Run, inputs: Inputs, models: Models, known: ExampleTable, roles_NxM: np.ndarray
) -> dict[str, dict[str, dict]]:
  """Return {situation: {who: `role_scores.scores`}} of examples with targets and true roles."""
  width, last = run.config.backbone.context, run.config.reasoner.role_events
  codes, labeled = inputs.codes[:, 0], models.labeled.table.evenly(FIT_EXAMPLES)
  fit, ask = (t.rows(np.arange(len(t)), width) for t in (labeled, known))
  event = ask.history.event[:, -last:]
  unknown = dataclasses.replace(known, target=np.full_like(known.target, -1))
  params, result = models.calibrated.load(), {}
  simulated = run.config.data.format == 'simulated'
  shop = world.build(run.config.simulator) if simulated else None
  for situation, table in zip(SITUATIONS, (unknown, known)):
    told = table is known
    x, asked = (
      role_scores.features(
        rows.history, rows.timestamp, codes, last, codes[rows.target] if told else None
      )
      for rows in (fit, ask)
    )
    chances = {
      'RoleGen': predict.role_chances(run.rolegen, params, table, inputs.trie, run.mesh),
      'logistic regression': role_scores.logistic(x, labeled.roles, asked, event),
      'shares of training labels': role_scores.marginal(labeled.roles, event),
    }
    if shop:
      chances['the most that can be known'] = _ceiling(shop, known, last, told)
    result[situation] = {
      name: role_scores.scores(chance, roles_NxM) for name, chance in chances.items()
    }
  return result


def _ceiling(shop: World, known: ExampleTable, last: int, told: bool) -> np.ndarray:
  """Return the chances of roles by the simulator, which is told the category for the intent."""
  log = known.log
  users = np.unique(known.user)
  rows, _ = ranges(log.offsets[users], log.offsets[users + 1] - log.offsets[users])
  items = log.items['item_id']
  events = pl.DataFrame(
    dict(
      user_id=log.users.gather(log.user[rows]),
      item_id=items.gather(log.item[rows]),
      event=np.array(EVENT_NAMES)[log.event[rows]],
      timestamp=log.timestamp[rows],
    )
  )
  bought = items.gather(known.target).to_numpy()
  moments = Moments(
    events,
    log.users.gather(known.user).to_numpy(),
    known.timestamp,
    shop.traits.category_I[bought] if told else None,
  )
  return role_ceiling(shop, moments, last)
