"""The table of recommendations, with reasons.

Columns:
  user_id
  rank        1.., in falling order of rank_score
  item_id
  log_prob    log p of the item among all that were scored; does not fall along a list
  rank_score  what the order is by: log_prob plus what the item opens, less exposure (`slate.py`)
  opens       how much of interest contact with the item moves (`slate.py`)
  world       the first world that names the item; 0 = the factual one; -1 = none
  terms       what each expert adds to log_prob, nats, less its mean over the items that were found
              for the user: only differences between items of one user mean something
  seen        whether the user touched the item before
  carried_by  the latest events that carried the item most: how long ago, role towards it, and how
              many nats it loses without the event, of log p among the items found and without
              what chains name (`reasoning/explain.py`)
  why         the largest positive terms in words, the candidates' named by the world of the item
              and what was done in it; then seen and carried_by

Shapes: N users, K items found for each, R recommendations, W worlds, E experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.trending import DAY
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.reasoning.explain import Explanations
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.serving.history_filter import holds
from rolegen_jax.serving.slate import Slates

SHOWN_TERMS, SMALLEST = 3, 0.05  # terms in words, at most; nats that are worth a word
SHOWN_EVENTS = 3  # that carried an item, at most


def explained_table(
  log: InteractionLog,
  table: ExampleTable,
  predictions: Predictions,
  shown: Slates,
  explained: Explanations,
) -> pl.DataFrame:
  """Return the table of the module docstring."""
  item = shown.item[:, : explained.effect.shape[1]]
  example, rank = np.nonzero(item >= 0)
  listed = item[example, rank]
  assert predictions.candidates is not None  # they are of the reasoner and the backbone
  in_world_RxW = (predictions.candidates[example] == listed[:, None, None]).any(-1)
  world = np.where(in_world_RxW.any(1), in_world_RxW.argmax(1), -1)
  seen = holds(log, table.user, log.offsets[table.user + 1], item)[example, rank]
  terms_NxKxE = _relative_terms(predictions)
  place = (predictions.item[example] == listed[:, None]).argmax(1)
  terms = pl.DataFrame(terms_NxKxE[example, place], schema=list(EXPERTS)).to_struct('terms')
  carried = [carried_by(log, table, explained, int(i), int(k)) for i, k in zip(example, rank)]
  done = [_interventions(log, table, predictions, index) for index in range(len(table))]
  largest = [
    _largest_terms(terms_NxKxE[index], found, of_world, done[index])
    for index, found, of_world in zip(example, place, world)
  ]
  why = [
    _explain(of_experts, events, was_seen)
    for of_experts, events, was_seen in zip(largest, carried, seen)
  ]
  event_type = pl.Struct(
    dict(
      item_id=log.items['item_id'].dtype,
      event=pl.String,
      days_ago=pl.Float64,
      role=pl.String,
      nats=pl.Float64,
    )
  )
  return pl.DataFrame(
    dict(
      user_id=log.users.gather(table.user[example]),
      rank=(rank + 1).astype(np.int32),
      item_id=log.items['item_id'].gather(listed),
      log_prob=shown.log_prob[example, rank],
      rank_score=shown.rank_score[example, rank],
      opens=shown.opens[example, rank],
      world=world.astype(np.int32),
      terms=terms,
      seen=seen,
      carried_by=pl.Series(carried, dtype=pl.List(event_type)),
      why=pl.Series(why, dtype=pl.String),
    )
  )


def _relative_terms(predictions: Predictions) -> np.ndarray:
  """Return the terms fp32 [N, K, E] less their means over each list; 0 in an empty slot."""
  is_item = (predictions.item >= 0)[..., None]
  count = np.maximum(is_item.sum(1, keepdims=True), 1)
  assert predictions.terms is not None
  mean = np.where(is_item, predictions.terms, 0).sum(1, keepdims=True) / count
  return np.where(is_item, predictions.terms - mean, 0).astype(np.float32)


def _largest_terms(terms_KxE: np.ndarray, place: int, world: int, done: list[str]) -> str:
  """Return the largest terms of the item at a place of a user's list, in words.

  Experts that say the same of the whole list tell nothing of it. done: what is done in each world.
  """
  of_candidates = f'world {world} ({done[world] if world else "factual"})'
  tells = (np.ptp(terms_KxE, axis=0) >= SMALLEST) & (terms_KxE[place] >= SMALLEST)
  tells[EXPERTS.index('candidates')] &= world >= 0
  tells = np.flatnonzero(tells)
  largest = tells[np.argsort(-terms_KxE[place, tells], kind='stable')][:SHOWN_TERMS]
  return ', '.join(
    f'{of_candidates if EXPERTS[expert] == "candidates" else EXPERTS[expert]} '
    + f'{terms_KxE[place, expert]:+.1f}'
    for expert in largest
  )


def carried_by(
  log: InteractionLog, table: ExampleTable, explained: Explanations, example: int, place: int
) -> list[dict[str, Any]]:
  """Return the events without which an item would lose most, with their roles towards it."""
  effect, role = explained.effect[example, place], explained.role[example, place]
  order = np.argsort(-effect, kind='stable')[:SHOWN_EVENTS]
  first_row = table.end[example] - len(effect)
  return [
    dict(
      item_id=log.items['item_id'][int(log.item[first_row + slot])],
      event=EVENT_NAMES[log.event[first_row + slot]],
      days_ago=round(int(table.timestamp[example] - log.timestamp[first_row + slot]) / DAY, 1),
      role=ROLE_NAMES[role[slot]] if role[slot] >= 0 else 'UNKNOWN',
      nats=round(float(effect[slot]), 3),
    )
    for slot in order
    if effect[slot] >= SMALLEST
  ]


def _interventions(
  log: InteractionLog, table: ExampleTable, predictions: Predictions, example: int
) -> list[str]:
  """Return what is done in each of a user's worlds, in words."""
  forced_role, removed = predictions.forced_role, predictions.removed
  forced_intent = predictions.forced_intent
  assert forced_role is not None and removed is not None and forced_intent is not None
  done = []
  for world in range(removed.shape[1]):
    changed = np.flatnonzero(removed[example, world] | (forced_role[example, world] >= 0))
    if not len(changed):
      code = forced_intent[example, world]
      done.append(f'intent set to coarse code {code}' if code >= 0 else 'no intervention')
      continue
    place = changed[0]
    row = table.end[example] - removed.shape[2] + place
    event = f'{EVENT_NAMES[log.event[row]]} of {log.items["item_id"][int(log.item[row])]}'
    is_removed = removed[example, world, place]
    role = ROLE_NAMES[forced_role[example, world, place]]
    done.append(f'without the {event}' if is_removed else f'the {event} as {role}')
  return done


def _explain(terms: str, carried: list[dict[str, Any]], seen: bool) -> str:
  """Return what the columns terms (in words), seen and carried_by of a row say, in words."""
  parts = [*([terms] if terms else []), 'seen before' if seen else 'new to the user']
  if carried:
    events = (
      f'{e["event"]} of {e["item_id"]} {e["days_ago"]:.0f} d ago as {e["role"]} {e["nats"]:+.1f}'
      for e in carried
    )
    parts.append(f'carried by {", ".join(events)}')
  return '; '.join(parts)
