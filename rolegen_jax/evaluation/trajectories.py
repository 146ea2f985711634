"""Trajectories of single users for the report: events with roles, worlds with their candidates.

Shapes: N test examples, M role events, W worlds, P candidates.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np

from rolegen_jax.config import COHORTS, EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.evaluation.metrics import Pairs
from rolegen_jax.reasoning.predict import Predictions

SHOWN = 4  # trajectories drawn
MIN_EVENTS = 8  # of a trajectory that is drawn
TOP = 10  # a target within is a hit
# Examples -> (a sentence for each event with a role, sentences of intents) of each.
Tell = Callable[[list[int]], list[tuple[list[str], list[str]]]]


class Trajectories:
  """Draws trajectories from the predictions on test occasions `rows`."""

  def __init__(
    self,
    log: InteractionLog,
    occasions: Occasions,
    rows: np.ndarray,
    table: ExampleTable,
    predictions: Predictions,
  ):
    self._log, self._occasions, self._rows = log, occasions, rows
    self._table, self._ranked = table, predictions.item
    self._roles = _reasoned(predictions.roles)
    self._candidates = _reasoned(predictions.candidates)
    self._forced_role = _reasoned(predictions.forced_role)
    self._removed = _reasoned(predictions.removed)
    self._forced_intent = _reasoned(predictions.forced_intent)
    pairs = Pairs.of(occasions, rows)
    # Reversed, so that the first target of an occasion stays.
    self._target = {int(o): int(i) for o, i in zip(pairs.occasion[::-1], pairs.item[::-1])}
    self._titles = log.items['title'] if 'title' in log.items.columns else None

  def draw(self, tell: Tell | None = None) -> list[dict]:
    """Return a few trajectories of dormant users, hits and misses in turn, as the report has them.

    `tell` says each in words.
    """
    chosen = self._choose()
    drawn = [self._trajectory(example) for example in chosen]
    if tell and chosen:
      for trajectory, (why, intents) in zip(drawn, tell(chosen)):
        sentences = _sentence_per_event(trajectory['events'], why)
        trajectory['sentences'] = dict(events=sentences, intents=intents)
    return drawn

  def _choose(self) -> list[int]:
    dormant = [i for i in range(len(self._rows)) if self._is_dormant(i)]
    hits = [i for i in dormant if self._rank(i)]
    misses = [i for i in dormant if not self._rank(i)]
    some_hits, some_misses = (x[:: max(len(x) // 3, 1)] for x in (hits, misses))
    return [i for pair in zip(some_hits, some_misses) for i in pair][:SHOWN]

  def _is_dormant(self, example: int) -> bool:
    n_events = self._table.end[example] - self._log.offsets[self._table.user[example]]
    return self._cohort(example) in ('D1', 'D2') and n_events >= MIN_EVENTS

  def _cohort(self, example: int) -> str:
    return COHORTS[self._occasions.cohort[self._rows[example]]]

  def _rank(self, example: int) -> int:
    """Return the rank of the target, from 1; 0 when it is not within the top."""
    places = np.flatnonzero(self._ranked[example][:TOP] == self._target[example])
    return int(places[0]) + 1 if len(places) else 0

  def _trajectory(self, example: int) -> dict[str, Any]:
    return dict(
      user=str(self._log.users[int(self._table.user[example])]),
      cohort=self._cohort(example),
      target=self._label(self._target[example]),
      rank=self._rank(example),
      k=TOP,
      events=self._events(example),
      worlds=self._worlds(example),
    )

  def _events(self, example: int) -> list[dict]:
    log, roles = self._log, self._roles[example]
    events = []
    for slot in range(self._first_slot(example), len(roles)):
      row = int(self._table.end[example]) - len(roles) + slot
      role = int(roles[slot])
      events.append(
        dict(
          when=_day(log.timestamp[row]),
          item=self._label(log.item[row]),
          event=EVENT_NAMES[log.event[row]],
          role=ROLE_NAMES[role] if role >= 0 else '',
        )
      )
    return events

  def _first_slot(self, example: int) -> int:
    """Return the first of the M role slots that holds an event."""
    n_events = self._table.end[example] - self._log.offsets[self._table.user[example]]
    return max(self._roles.shape[1] - int(n_events), 0)

  def _worlds(self, example: int) -> list[dict]:
    worlds = []
    for world, candidates in enumerate(self._candidates[example]):
      forced, removed = self._forced_role[example, world], self._removed[example, world]
      intent = int(self._forced_intent[example, world])
      changed = np.flatnonzero((forced >= 0) | removed)
      slot = int(changed[0]) if len(changed) else -1
      worlds.append(
        dict(
          name='factual' if world == 0 else f'world {world}',
          event=slot - self._first_slot(example) if slot >= 0 else -1,
          change=_change(slot, forced, removed, intent),
          candidates=[self._label(item) for item in candidates],
        )
      )
    return worlds

  def _label(self, item: int) -> str:
    if item < 0:
      return '–'
    title = self._titles[int(item)] if self._titles is not None else None
    return title or f'item {self._log.items["item_id"][int(item)]}'


def _reasoned(values: np.ndarray | None) -> np.ndarray:
  assert values is not None, 'predictions of a backbone alone have no trajectories'
  return values


def _change(slot: int, forced: np.ndarray, removed: np.ndarray, intent: int) -> str:
  """Return what is done in a world, '' in the factual one."""
  if slot < 0:
    return f'do(intent {intent})' if intent >= 0 else ''
  return 'removed' if removed[slot] else f'do({ROLE_NAMES[forced[slot]]})'


def _sentence_per_event(events: list[dict], why: list[str]) -> list[str]:
  """Return the sentence of each event; '' where it has no role."""
  remaining = iter(why)
  return [next(remaining, '') if event['role'] else '' for event in events]


def _day(timestamp: int) -> str:
  return datetime.datetime.fromtimestamp(int(timestamp), datetime.timezone.utc).strftime('%d %b')
