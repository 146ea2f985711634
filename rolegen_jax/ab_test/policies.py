"""Policies of an A/B test in the simulated shop: what is shown to the cohort's visitors of a day.

A policy observes every event of its arm's users as it happens, and nothing else. Its state is
updated event by event and models answer in batches of one fixed shape, so a day costs what happens
on it and compiles nothing.

Shapes: N users of the cohort, V visitors among them, E events, K items shown, n events of a
history, I items.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from rolegen_jax.config import EVENT_NAMES, Config
from rolegen_jax.data.batches import Examples, Trajectories, append, histories
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.evaluation import baselines
from rolegen_jax.evaluation.metrics import ranges
from rolegen_jax.evaluation.sasrec import Fit
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.reasoning.predict import Online
from rolegen_jax.serving.slate import slates
from rolegen_jax.simulator.world import World


class Events(NamedTuple):
  """Events of one day [E], sorted by user and time."""

  row: np.ndarray  # index of the user in the cohort
  item: np.ndarray
  event: np.ndarray  # index in EVENT_NAMES
  timestamp: np.ndarray  # seconds UTC


class Policy(Protocol):
  """Plays one run of days after the other: `begin`, then `recommend` and `observe` in turn."""

  def begin(self, seed: int) -> None:
    """Return to the end of the log. `seed` is for policies that draw."""

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    """Return items [V, K], best first, for these rows of the cohort.

    `now` is in seconds UTC, later than all that was observed.
    """
    ...

  def observe(self, events: Events) -> None:
    """Take note of what the users of the arm did."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all policies start from: the log to its end, and the users they are for."""

  config: Config
  log: InteractionLog
  occasions: Occasions
  users: np.ndarray  # int32 [N], user indices of the log
  slate: int  # K

  def past(self) -> Events:
    """Return all events of the cohort in the log."""
    log = self.log
    first = log.offsets[self.users]
    source, row = ranges(first, log.offsets[self.users + 1] - first)
    return Events(row, log.item[source], log.event[source], log.timestamp[source])


class Popularity:
  """The same slate for everyone, by purchases in training."""

  def __init__(self, setting: Setting):
    self._slate = baselines.popular_items(setting.log, setting.occasions)[: setting.slate]

  def begin(self, seed: int) -> None:
    pass

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    return np.tile(self._slate, (len(rows), 1))

  def observe(self, events: Events) -> None:
    pass


class Recency:
  """The baseline `recency` of the report, its sums kept up to date.

  Decay is common to all of them, so they need no clock.
  """

  def __init__(self, setting: Setting):
    log, self._slate = setting.log, setting.slate
    no_rows = np.zeros(0, np.int64)
    ranking = baselines.recency(log, setting.occasions, no_rows, setting.config, setting.slate)
    chosen = ranking.settings  # on validation occasions
    self._popular = baselines.popular_items(log, setting.occasions)
    self._tau, self._zero = chosen['tau'], int(log.timestamp.max())
    weights = baselines.BEHAVIOR[chosen['behavior']]
    self._weight = np.array([weights.get(name, 0) for name in EVENT_NAMES], np.float64)
    self._score = np.zeros((len(setting.users), len(log.items)))
    first = log.offsets[setting.users]
    source, _ = ranges(first, log.offsets[setting.users + 1] - first)
    self._add(setting.past(), log.count[source] if chosen['repeats'] else 1)
    self._at_end = self._score

  def begin(self, seed: int) -> None:
    self._score = self._at_end.copy()

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    best = np.argsort(-self._score[rows][:, self._popular], axis=1, kind='stable')[:, : self._slate]
    return self._popular[best]

  def observe(self, events: Events) -> None:
    self._add(events, 1)

  def _add(self, events: Events, count: np.ndarray | int) -> None:
    decay = np.exp((events.timestamp - self._zero) / self._tau)
    weight = self._weight[events.event] * count * decay
    np.add.at(self._score, (events.row, events.item), weight)


class _Windows:
  """A model that reads the latest events of a user: it keeps them, and asks in fixed batches."""

  def __init__(self, setting: Setting, size: int):
    self.setting, self._size = setting, size
    log, users = setting.log, setting.users
    self._at_end = histories(log, users, log.offsets[users + 1], setting.config.backbone.context)

  def begin(self, seed: int) -> None:
    self._seed, self._history = seed, self._at_end

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    ranked = []
    for start in range(0, len(rows), self._size):
      part = rows[start : start + self._size]
      padded = np.pad(part, (0, self._size - len(part)), mode='edge')
      ranked.append(np.asarray(self._rank(padded, now, start // self._size)))
    return np.concatenate(ranked)[: len(rows), : self.setting.slate]

  def observe(self, events: Events) -> None:
    self._history = append(self._history, *events)

  def _window(self, rows: np.ndarray) -> Trajectories:
    return Trajectories(*(field[rows] for field in self._history))

  def _rank(self, rows: np.ndarray, now: int, number: int) -> ArrayLike:
    """Return items [size, k], best first; `number` counts the batches of a day."""
    raise NotImplementedError


class Sasrec(_Windows):
  """The baseline SASRec of the report."""

  def __init__(self, setting: Setting, fit: Fit):
    super().__init__(setting, setting.config.evaluation.batch)
    self._fit = fit

  def _rank(self, rows: np.ndarray, now: int, number: int) -> ArrayLike:
    window = self._window(rows)
    return self._fit.top(window.item, window.segment)


class Generative(_Windows):
  """RoleGen, or its backbone alone, as `online` decides; `exploration_weight` as in `slates`."""

  def __init__(
    self, setting: Setting, online: Online, excitation: Excitation, exploration_weight: float = 0.0
  ):
    super().__init__(setting, online.size)
    self._online, self._excitation = online, excitation
    self._exploration_weight = exploration_weight

  def _rank(self, rows: np.ndarray, now: int, number: int) -> ArrayLike:
    window, reasoner = self._window(rows), self.setting.config.reasoner

    def unknown(*shape: int) -> np.ndarray:
      return np.full((len(rows), *shape), -1, np.int32)

    excites = self._excitation.of(self.setting.users[rows], window.item)
    time = np.full(len(rows), now, np.int32)
    examples = Examples(
      window, time, excites, unknown(), unknown(reasoner.role_events), unknown(reasoner.candidates)
    )
    ranking = self._online(examples)
    item, score = np.asarray(ranking.item), np.asarray(ranking.score)
    order = slates(item, score, self._excitation.opens, self._exploration_weight)
    return np.take_along_axis(item, order, axis=1)


class Oracle:
  """Knows the simulator: shows what would most probably be bought if there were a purchase.

  It is no model, but the ceiling of a short-sighted one.
  """

  def __init__(self, setting: Setting, world: World):
    self._world, self._slate = world, setting.slate
    self._users = setting.log.users.gather(setting.users).to_numpy()
    self._at_end = world.state_of_rows(self._users, *setting.past())

  def begin(self, seed: int) -> None:
    self._state = self._at_end

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    score = self._world.log_p_conversion(self._state.rows(rows), np.full(len(rows), now))
    return np.argsort(-score, axis=1, kind='stable')[:, : self._slate]

  def observe(self, events: Events) -> None:
    added = self._world.state_of_rows(self._users, *events)
    sums = {
      name: getattr(self._state, name) + getattr(added, name)
      for name in ('excitation', 'inhibition', 'consideration')
    }
    self._state = dataclasses.replace(self._state, **sums)
