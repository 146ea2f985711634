"""Occasions as training and inference examples: what is known of each, and its fixed-shape rows.

N examples, M role events, P path items, B rows of n events.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.batches import Examples, Excites, histories
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, Occasions

PURCHASE = EVENT_NAMES.index('purchase')
AHEAD = 64  # events after the conversion that a path is taken from

_PER_EXAMPLE = ('user', 'end', 'timestamp', 'target', 'roles', 'path')


class ExcitationLookup(Protocol):
  """Looks up what each event of a history leads to, as `features.excitation.Excitation` does."""

  def of(self, user: np.ndarray, item: np.ndarray) -> Excites:
    """Return what the events of users [B] with items [B, n] lead to; item -1 = padding."""


@dataclasses.dataclass(frozen=True)
class ExampleTable:
  """N examples over one log. Example i's context is log rows offsets[user[i]]:end[i]."""

  log: InteractionLog
  user: np.ndarray  # int32 [N]
  end: np.ndarray  # int64 [N]
  timestamp: np.ndarray  # int64 [N]
  target: np.ndarray  # int32 [N], -1 = unknown
  roles: np.ndarray  # int32 [N, M], -1 = unknown
  path: np.ndarray  # int32 [N, P], -1 = no more
  excitation: ExcitationLookup

  def __len__(self) -> int:
    return len(self.user)

  def evenly(self, most: int) -> ExampleTable:
    """Return at most `most` of the examples, evenly spaced over users and times; 0 = all."""
    if not 0 < most < len(self):
      return self
    return self.picked(evenly(len(self), most))

  def picked(self, chosen: np.ndarray) -> ExampleTable:
    """Return the examples of these numbers."""
    return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in _PER_EXAMPLE})

  def rows(self, index: np.ndarray, width: int) -> Examples:
    """Return the examples of these numbers [B], with histories of `width` events."""
    history = histories(self.log, self.user[index], self.end[index], width)
    return Examples(
      history=history,
      timestamp=self.timestamp[index].astype(np.int32),
      excites=self.excitation.of(self.user[index], history.item),
      target=self.target[index],
      roles=self.roles[index],
      path=self.path[index],
    )


def evenly(count: int, most: int) -> np.ndarray:
  """Return `most` numbers below `count`, evenly spaced, int64."""
  return np.linspace(0, count - 1, most).astype(np.int64)


def training_examples(
  log: InteractionLog,
  occasions: Occasions,
  role_events: int,
  candidates: int,
  excitation: ExcitationLookup,
  most: int = 0,
) -> ExampleTable:
  """Return an example per (training occasion with a context, bought item), roles unknown.

  role_events, candidates: the M and P of its arrays. With `most`, at most so many, evenly spaced
  over users and times.
  """
  first, last = occasions.target_offsets[:-1], occasions.target_offsets[1:]
  has_context = occasions.context_end > log.offsets[occasions.user]
  usable = (occasions.split == TRAIN) & has_context
  occasion = np.repeat(np.arange(len(first)), (last - first) * usable)
  bought = np.flatnonzero(np.repeat(usable, last - first))
  if 0 < most < len(bought):
    chosen = evenly(len(bought), most)
    occasion, bought = occasion[chosen], bought[chosen]
  target = occasions.target[bought]
  user, end = occasions.user[occasion], occasions.context_end[occasion]
  return ExampleTable(
    log=log,
    user=user,
    end=end,
    timestamp=occasions.timestamp[occasion],
    target=target,
    roles=np.full((len(user), role_events), -1, np.int32),
    path=_paths(log, occasions.train_end(log)[user], end, target, candidates),
    excitation=excitation,
  )


def inference_examples(
  log: InteractionLog,
  user: np.ndarray,
  end: np.ndarray,
  timestamp: np.ndarray,
  role_events: int,
  candidates: int,
  excitation: ExcitationLookup,
) -> ExampleTable:
  """Return examples whose outcome is unknown.

  user, end, timestamp: [N]; contexts reach up to log row `end`, occasions are at `timestamp`.
  role_events, candidates: the M and P of its arrays.
  """

  def unknown(*shape: int) -> np.ndarray:
    return np.full((len(user), *shape), -1, np.int32)

  return ExampleTable(
    log=log,
    user=user,
    end=end,
    timestamp=timestamp,
    target=unknown(),
    roles=unknown(role_events),
    path=unknown(candidates),
    excitation=excitation,
  )


def _paths(
  log: InteractionLog, train_end: np.ndarray, start: np.ndarray, target: np.ndarray, size: int
) -> np.ndarray:
  """Return distinct items, int32 [N, size]: the target, then what the user turned to next.

  Of the next AHEAD training events the items bought come first, then all others.
  """
  path = np.full((len(target), size), -1, np.int32)
  for i, (begin, end) in enumerate(zip(start, np.minimum(train_end, start + AHEAD))):
    ahead, is_bought = log.item[begin:end], log.event[begin:end] == PURCHASE
    ordered = np.concatenate([target[i : i + 1], ahead[is_bought], ahead[~is_bought]])
    _, first_position = np.unique(ordered, return_index=True)
    items = ordered[np.sort(first_position)][:size]
    path[i, : len(items)] = items
  return path
