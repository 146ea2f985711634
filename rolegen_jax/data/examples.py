"""Occasions as training and inference cases: a table of what is known of each, and its fixed-shape rows.

Shapes: N cases, M role events, P path items.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.batches import Examples, histories
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, Occasions
from rolegen_jax.features.excitation import Excitation

PURCHASE = EVENT_NAMES.index('purchase')
AHEAD = 64  # events after the conversion that a path is taken from


@dataclasses.dataclass(frozen=True)
class ExampleTable:
  """N cases over one log. Row i's context is log[offsets[user[i]]:end[i]]."""

  log: InteractionLog
  user: np.ndarray  # int32 [N]
  end: np.ndarray  # int64 [N]
  timestamp: np.ndarray  # int64 [N]
  target: np.ndarray  # int32 [N], -1 = unknown
  roles: np.ndarray  # int32 [N, M], -1 = unknown
  path: np.ndarray  # int32 [N, P], -1 = nothing more
  excitation: Excitation

  def __len__(self) -> int:
    return len(self.user)

  def evenly(self, most: int) -> ExampleTable:
    """At most `most` of the cases, evenly spaced over users and times; 0 = all."""
    if not 0 < most < len(self):
      return self
    return self.picked(np.linspace(0, len(self) - 1, most).astype(np.int64))

  def picked(self, chosen: np.ndarray) -> ExampleTable:
    """The cases of these numbers."""
    return dataclasses.replace(
      self,
      **{
        name: getattr(self, name)[chosen]
        for name in ('user', 'end', 'timestamp', 'target', 'roles', 'path')
      },
    )

  def rows(self, index: np.ndarray, width: int) -> Examples:
    """The cases of the given numbers, histories of `width` events."""
    history = histories(self.log, self.user[index], self.end[index], width)
    excites = self.excitation.of(self.user[index], history.item)
    return Examples(
      history,
      self.timestamp[index].astype(np.int32),
      excites,
      self.target[index],
      self.roles[index],
      self.path[index],
    )


def training_examples(
  log: InteractionLog,
  occasions: Occasions,
  role_events: int,
  candidates: int,
  excitation: Excitation,
) -> ExampleTable:
  """One case per (training occasion with a context, bought item), roles unknown."""
  first, last = occasions.target_offsets[:-1], occasions.target_offsets[1:]
  usable = (occasions.split == TRAIN) & (occasions.context_end > log.offsets[occasions.user])
  occasion = np.repeat(np.arange(len(first)), (last - first) * usable)
  pair = (
    np.concatenate([np.arange(f, l) for f, l in zip(first[usable], last[usable])])
    if usable.any()
    else np.zeros(0, np.int64)
  )
  user, end, target = (
    occasions.user[occasion],
    occasions.context_end[occasion],
    occasions.target[pair],
  )
  path = _paths(log, occasions.train_end(log)[user], end, target, candidates)
  roles = np.full((len(user), role_events), -1, np.int32)
  return ExampleTable(
    log, user, end, occasions.timestamp[occasion], target, roles, path, excitation
  )


def inference_examples(
  log: InteractionLog,
  user,
  end,
  timestamp,
  role_events: int,
  candidates: int,
  excitation: Excitation,
) -> ExampleTable:
  """Examples of users [N] with context up to log row `end` [N] at `timestamp` [N], with everything about their outcome left unknown."""
  unknown = lambda *shape: np.full((len(user), *shape), -1, np.int32)
  return ExampleTable(
    log, user, end, timestamp, unknown(), unknown(role_events), unknown(candidates), excitation
  )


def _paths(
  log: InteractionLog, train_end: np.ndarray, start: np.ndarray, target: np.ndarray, size: int
) -> np.ndarray:
  """int32 [N, size]: the target, then items bought, then items touched in the next AHEAD training events; distinct."""
  path = np.full((len(target), size), -1, np.int32)
  for i, (begin, end) in enumerate(zip(start, np.minimum(train_end, start + AHEAD))):
    ahead, bought = log.item[begin:end], log.event[begin:end] == PURCHASE
    order = np.concatenate([target[i : i + 1], ahead[bought], ahead[~bought]])
    _, place = np.unique(order, return_index=True)
    items = order[np.sort(place)][:size]
    path[i, : len(items)] = items
  return path
