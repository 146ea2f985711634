"""Policies of an A/B test in the simulated world: what is shown to those of a cohort who come today.

A policy is told of every event of its arm's users as it happens, and of nothing else. State is brought up to date event by event and
models answer in batches of one fixed shape, so a day costs what happened on it and compiles nothing.

Shapes: N users of the cohort, V of them who come, E events, K items shown, n events of a history, I items.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from rolegen_jax.config import EVENT_NAMES, Config
from rolegen_jax.data.batches import Examples, append, histories
from rolegen_jax.evaluation import baselines
from rolegen_jax.evaluation.metrics import ranges
from rolegen_jax.evaluation.sasrec import Fit
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.reasoning.predict import Online
from rolegen_jax.serving.slate import slates
from rolegen_jax.simulator.world import World


class Happened(NamedTuple):
  """Events of one day [E], sorted by user and time."""

  row: np.ndarray  # place of the user in the cohort
  item: np.ndarray
  event: np.ndarray  # index in EVENT_NAMES
  timestamp: np.ndarray  # seconds UTC


class Policy(Protocol):
  """Plays one run of days after the other: `begin`, then `recommend` and `observe` by turns."""

  def begin(self, seed: int) -> None:
    """Back to the end of the log. `seed` is for policies that draw."""

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    """Items [V, K], best first, for these rows of the cohort at `now`, seconds UTC; later than all that was observed."""

  def observe(self, events: Happened) -> None:
    """What the users of the arm did."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all policies start from: the log to its end, and whom of it they are for."""

  config: Config
  log: object
  occasions: object
  users: np.ndarray  # int32 [N], user indices of the log
  slate: int  # K

  def past(self) -> Happened:
    """All events of the cohort in the log."""
    first = self.log.offsets[self.users]
    source, row = ranges(first, self.log.offsets[self.users + 1] - first)
    return Happened(row, *(a[source] for a in (self.log.item, self.log.event, self.log.timestamp)))


class Popularity:
  """The same slate for everyone, by purchases in training."""

  def __init__(self, setting: Setting):
    self._slate = baselines.popular_items(setting.log, setting.occasions)[: setting.slate]

  def begin(self, seed: int) -> None:
    pass

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    return np.tile(self._slate, (len(rows), 1))

  def observe(self, events: Happened) -> None:
    pass


class Recency:
  """The baseline `recency` as it stands in the report, its sums kept up to date: decay is common to all, so they need no clock."""

  def __init__(self, setting: Setting):
    log, self._slate = setting.log, setting.slate
    nobody = np.zeros(0, np.int64)
    picked = baselines.recency(
      log, setting.occasions, nobody, setting.config, setting.slate
    ).settings
    self._popular = baselines.popular_items(log, setting.occasions)
    self._tau, self._zero = picked['tau'], int(log.timestamp.max())
    self._weight = np.array(
      [baselines.BEHAVIOUR[picked['behaviour']].get(name, 0) for name in EVENT_NAMES], np.float64
    )
    self._score = np.zeros((len(setting.users), len(log.items)))
    first = log.offsets[setting.users]
    source, _ = ranges(first, log.offsets[setting.users + 1] - first)
    self._add(setting.past(), log.count[source] if picked['repeats'] else 1)
    self._at_end = self._score

  def begin(self, seed: int) -> None:
    self._score = self._at_end.copy()

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    best = np.argsort(-self._score[rows][:, self._popular], axis=1, kind='stable')[:, : self._slate]
    return self._popular[best]

  def observe(self, events: Happened) -> None:
    self._add(events, 1)

  def _add(self, events: Happened, count) -> None:
    weight = (
      self._weight[events.event] * count * np.exp((events.timestamp - self._zero) / self._tau)
    )
    np.add.at(self._score, (events.row, events.item), weight)


class _Windows:
  """A model that reads the latest events of a user: keeps them, and asks for a fixed number of users at a time."""

  def __init__(self, setting: Setting, size: int):
    self.setting, self._size = setting, size
    log, users = setting.log, setting.users
    self._at_end = histories(log, users, log.offsets[users + 1], setting.config.backbone.context)

  def begin(self, seed: int) -> None:
    self._seed, self._history = seed, self._at_end

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    found = []
    for start in range(0, len(rows), self._size):
      part = rows[start : start + self._size]
      padded = np.pad(part, (0, self._size - len(part)), mode='edge')
      found.append(self._ask(padded, now, start // self._size))
    return np.concatenate([np.asarray(items) for items in found])[: len(rows), : self.setting.slate]

  def observe(self, events: Happened) -> None:
    self._history = append(self._history, *events)

  def _window(self, rows: np.ndarray):
    return type(self._history)(*(a[rows] for a in self._history))


class Sasrec(_Windows):
  def __init__(self, setting: Setting, fit: Fit):
    super().__init__(setting, setting.config.evaluation.batch)
    self._fit = fit

  def _ask(self, rows, now: int, number: int):
    window = self._window(rows)
    return self._fit.top(window.item, window.segment)


class Generative(_Windows):
  """RoleGen, or its backbone alone: `online` decides. `instrumental` as `slates` has it."""

  def __init__(
    self, setting: Setting, online: Online, excitation: Excitation, exploration_weight: float = 0.0
  ):
    super().__init__(setting, online.size)
    self._online, self._excitation, self._exploration_weight = (
      online,
      excitation,
      exploration_weight,
    )

  def _ask(self, rows, now: int, number: int):
    window, reasoner = self._window(rows), self.setting.config.reasoner
    unknown = lambda *shape: np.full((len(rows), *shape), -1, np.int32)
    excites = self._excitation.of(self.setting.users[rows], window.item)
    time = np.full(len(rows), now, np.int32)
    examples = Examples(
      window, time, excites, unknown(), unknown(reasoner.role_events), unknown(reasoner.candidates)
    )
    ranked = self._online(examples, (self._seed, now, number))
    item, score = np.asarray(ranked.item), np.asarray(ranked.score)
    return np.take_along_axis(
      item, slates(item, score, self._excitation.opens, self._exploration_weight), axis=1
    )


class Oracle:
  """Knows the world: shows what would most probably be bought if there were a purchase. No model, the ceiling of a short sight."""

  def __init__(self, setting: Setting, world: World):
    self._world, self._slate = world, setting.slate
    self._users = setting.log.users.gather(setting.users).to_numpy()
    self._at_end = world.state_of_rows(self._users, *setting.past())

  def begin(self, seed: int) -> None:
    self._state = self._at_end

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    score = self._world.log_p_conversion(self._state.rows(rows), np.full(len(rows), now))
    return np.argsort(-score, axis=1, kind='stable')[:, : self._slate]

  def observe(self, events: Happened) -> None:
    more = self._world.state_of_rows(self._users, *events)
    sums = {
      name: getattr(self._state, name) + getattr(more, name)
      for name in ('excitation', 'inhibition', 'consideration')
    }
    self._state = dataclasses.replace(self._state, **sums)
