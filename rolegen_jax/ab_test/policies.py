"""Policies of an A/B test in the simulated shop: what is shown to the cohort's visitors of a day.

A ranker lists what users may buy, a policy shows the first of each list, as it is or as a slate.
They observe every event of the arm's users as it happens, and nothing else. State is updated event
by event and models answer in batches of one fixed shape, so a day costs what happens on it and
compiles nothing.

Shapes: N users of the cohort, V visitors among them, E events, K items shown, k items of a list, n
events of a history, I items.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from rolegen_jax.config import EVENT_NAMES, Config
from rolegen_jax.data.batches import Examples, Trajectories, append, histories
from rolegen_jax.data.log import InteractionLog, ranges
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.evaluation import baselines
from rolegen_jax.evaluation.baselines import BaselineInputs, purchase_counts
from rolegen_jax.evaluation.sasrec import Fit
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel
from rolegen_jax.features.trending import Trending
from rolegen_jax.reasoning.batched import Batched
from rolegen_jax.reasoning.looks import Looked
from rolegen_jax.serving.history_filter import held_items, without
from rolegen_jax.serving.slate import Opened, slates
from rolegen_jax.simulator.base import World

_NO_ROWS = np.zeros(0, np.int64)
_LEAST = 1e-12  # probability of what was never counted


class Events(NamedTuple):
  """Events of one day [E], sorted by user and time."""

  row: np.ndarray  # index of the user in the cohort
  item: np.ndarray
  event: np.ndarray  # index in EVENT_NAMES
  timestamp: np.ndarray  # seconds UTC


class Lists(NamedTuple):
  """Ranked lists, best first."""

  item: np.ndarray  # int [V, k]; -1 = no more
  # fp [V, k], log p of the item; in `Recency`, which knows no probability, only its order counts.
  log_prob: np.ndarray


class Ranker(Protocol):
  """Plays one run of days after the other: `begin`, then `rank` and `observe` in turn."""

  def begin(self) -> None:
    """Return to the end of the log."""

  def rank(self, rows: np.ndarray, now: int) -> Lists:
    """Return lists of backbone.beam items, or all there are, for these rows of the cohort.

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
  shift: InterestShift
  excitation: Excitation
  kernel: Kernel  # of item transitions
  bars_history: bool  # whether nothing that a user touched, in the log or since, is shown
  users: np.ndarray  # int32 [N], user indices of the log
  slate: int  # K
  trending: Trending | None  # None: nothing is known of that

  @functools.cached_property
  def baselines(self) -> BaselineInputs:
    """What the baselines of the report read."""
    return BaselineInputs(
      self.log,
      self.occasions,
      self.shift,
      self.config,
      self.kernel,
      self.bars_history,
      self.trending,
    )

  @property
  def listed(self) -> int:
    """How many items every ranker lists, k: those that a slate is chosen from."""
    return min(self.config.backbone.beam, len(self.log.items))

  def trending_scores(self, now: int) -> np.ndarray:
    """Return the shares of what is trending, fp [I]; zeros where nothing is known of that."""
    if self.trending is None:
      return np.zeros(len(self.log.items))
    return self.trending.of_rows(np.array([now]), len(self.log.items)).toarray()[0]

  def past(self) -> Events:
    """Return all events of the cohort in the log."""
    log = self.log
    first = log.offsets[self.users]
    source, row = ranges(first, log.offsets[self.users + 1] - first)
    return Events(row, log.item[source], log.event[source], log.timestamp[source])


class Policy:
  """Shows the first items of a ranker's lists, as they are or, with a weight, as `slates`."""

  def __init__(
    self,
    setting: Setting,
    ranker: Ranker,
    exploration_weight: float = 0.0,
    opened: Callable[[np.ndarray, int, np.ndarray], Opened] | None = None,
  ):
    """opened: what lists [V, K] of rows open, now; None = what is counted for everybody."""
    self._setting, self._ranker, self._weight = setting, ranker, exploration_weight
    self._opened = opened or (lambda _, __, item: Opened.at_large(setting.excitation.opens, item))

  def begin(self) -> None:
    """Return to the end of the log."""
    self._ranker.begin()
    if self._setting.bars_history:
      log, users = self._setting.log, self._setting.users
      self._held_NxI = held_items(log, users, log.offsets[users + 1]).toarray()

  def recommend(self, rows: np.ndarray, now: int) -> np.ndarray:
    """Return items int [V, K], best first, -1 past the end; arguments as in `Ranker.rank`."""
    item, log_prob = self._ranker.rank(rows, now)
    if self._setting.bars_history:
      item, log_prob = without(item, log_prob, self._held_NxI[rows[:, None], np.maximum(item, 0)])
    if self._weight:
      item = slates(item, log_prob, self._opened(rows, now, item), self._weight).item
    shown, slots = item[:, : self._setting.slate], self._setting.slate
    return np.pad(shown, ((0, 0), (0, slots - shown.shape[1])), constant_values=-1)

  def observe(self, events: Events) -> None:
    """Take note of what the users of the arm did."""
    self._ranker.observe(events)
    if self._setting.bars_history:
      self._held_NxI[events.row, events.item] = True


class Fixed:
  """The same list for everyone, by a score of every item [I]; ties by popularity."""

  def __init__(self, setting: Setting, score_I: np.ndarray):
    popular = setting.baselines.popular
    order = popular[np.argsort(-score_I[popular], kind='stable')]
    # The whole catalogue, so that a user's history leaves enough of it.
    self._lists = Lists(order[None], score_I[order][None])

  def begin(self) -> None:
    pass

  def rank(self, rows: np.ndarray, now: int) -> Lists:
    return Lists(*(np.repeat(x, len(rows), axis=0) for x in self._lists))

  def observe(self, events: Events) -> None:
    pass


def log_popularity(setting: Setting) -> np.ndarray:
  """Return the log of every item's share of the training purchases, one added to each, fp [I]."""
  known = setting.baselines
  count_I = 1.0 + purchase_counts(known.log, known.train_end)
  return np.log(count_I / count_I.sum())


def best(score_VxI: np.ndarray, popular: np.ndarray, k: int) -> Lists:
  """Return the k items of the highest scores; ties by popularity."""
  score_VxI = score_VxI[:, popular]
  order = np.argsort(-score_VxI, axis=1, kind='stable')[:, :k]
  return Lists(popular[order], np.take_along_axis(score_VxI, order, axis=1))


class Recency:
  """The baseline `recency` of the report, its sums kept up to date.

  Sums are as of each user's last event in the log; `rank` divides by the decay of the latest one.
  """

  def __init__(self, setting: Setting):
    log, self._setting = setting.log, setting
    chosen = chosen_settings(setting, baselines.recency)
    self._tau = chosen['tau']
    weights = baselines.BEHAVIOR[chosen['behavior']]
    self._weight = np.array([weights.get(name, 0) for name in EVENT_NAMES], np.float64)
    self._trending = chosen['trending']
    self._score = np.zeros((len(setting.users), len(log.items)))
    first = log.offsets[setting.users]
    source, _ = ranges(first, log.offsets[setting.users + 1] - first)
    self._zero = log.timestamp[log.offsets[setting.users + 1] - 1].astype(np.float64)
    self._latest = self._zero
    self._add(setting.past(), log.count[source] if chosen['repeats'] else 1)
    self._at_end = self._score, self._latest

  def begin(self) -> None:
    score, latest = self._at_end
    self._score, self._latest = score.copy(), latest.copy()

  def rank(self, rows: np.ndarray, now: int) -> Lists:
    decay = np.exp((self._latest[rows] - self._zero[rows]) / self._tau)
    trending = self._trending * self._setting.trending_scores(now)
    score = self._score[rows] / decay[:, None] + trending
    return best(score, self._setting.baselines.popular, self._setting.listed)

  def observe(self, events: Events) -> None:
    self._add(events, 1)

  def _add(self, events: Events, count: np.ndarray | int) -> None:
    decay = np.exp((events.timestamp - self._zero[events.row]) / self._tau)
    weight = self._weight[events.event] * count * decay
    np.add.at(self._score, (events.row, events.item), weight)
    np.maximum.at(self._latest, events.row, events.timestamp)


def chosen_settings(setting: Setting, baseline: Callable[..., baselines.Ranking]) -> dict[str, Any]:
  """Return the settings that the report's baseline has chosen on validation occasions."""
  return baseline(setting.baselines, _NO_ROWS, max(setting.config.evaluation.ks)).settings


class _Windows:
  """A ranker that reads the latest events of a user: it keeps them, and asks in fixed batches."""

  def __init__(self, setting: Setting, size: int, width: int):
    self.setting, self._size = setting, size
    log, users = setting.log, setting.users
    self._at_end = histories(log, users, log.offsets[users + 1], width)

  def begin(self) -> None:
    self._history = self._at_end

  def rank(self, rows: np.ndarray, now: int) -> Lists:
    ranked = []
    for start in range(0, len(rows), self._size):
      part = rows[start : start + self._size]
      padded = np.pad(part, (0, self._size - len(part)), mode='edge')
      ranked.append(self._rank(padded, now))
    return Lists(*(np.concatenate(parts)[: len(rows)] for parts in zip(*ranked)))

  def observe(self, events: Events) -> None:
    self._history = append(self._history, *events)

  def _window(self, rows: np.ndarray) -> Trajectories:
    return Trajectories(*(field[rows] for field in self._history))

  def _rank(self, rows: np.ndarray, now: int) -> Lists:
    """Return lists [size, k]."""
    raise NotImplementedError


class Counting(_Windows):
  """The baseline `counting` of the report."""

  def __init__(self, setting: Setting):
    super().__init__(setting, setting.config.evaluation.batch, baselines.TRANSITION_CONTEXT)
    chosen = chosen_settings(setting, baselines.counting)
    self._chosen = {name: chosen[name] for name in ('tau', 'transitions', 'power')}
    self._trending = chosen['trending']

  def _rank(self, rows: np.ndarray, now: int) -> Lists:
    inputs = self.setting.baselines
    score = inputs.counting.scores(self._window(rows), np.full(len(rows), now), **self._chosen)
    score += self._trending * self.setting.trending_scores(now)
    return best(np.log(np.maximum(score, _LEAST)), inputs.popular, self.setting.listed)


class Sasrec(_Windows):
  """The baseline SASRec of the report."""

  def __init__(self, setting: Setting, fit: Fit):
    config = setting.config
    super().__init__(setting, config.evaluation.batch, config.evaluation.sasrec.context)
    self._fit = fit

  def _rank(self, rows: np.ndarray, now: int) -> Lists:
    window = self._window(rows)
    return Lists(*self._fit.top(window.item, window.segment))


class Generative(_Windows):
  """RoleGen, or its backbone alone, as `online` decides."""

  def __init__(self, setting: Setting, online: Batched, of_looks: Batched | None = None):
    """online: `predicting`. of_looks: `looking`, where kinds of users are known."""
    super().__init__(setting, online.size, setting.config.backbone.context)
    self._online, self.of_looks = online, of_looks

  def opened(self, rows: np.ndarray, now: int, item_VxK: np.ndarray) -> Opened:
    """Return what looks at listed items would open for the users of these rows."""
    assert self.of_looks is not None
    attribute_IxA, parts = self.setting.excitation.attribute_IxA, []
    for start in range(0, len(rows), self._size):
      index = np.minimum(np.arange(start, start + self._size), len(rows) - 1)
      listed = Looked.of(item_VxK[index], attribute_IxA)
      parts.append(np.asarray(self.of_looks((self.examples(rows[index], now), listed))))
    return Opened.for_users(np.concatenate(parts)[: len(rows)], item_VxK)

  def _rank(self, rows: np.ndarray, now: int) -> Lists:
    item, score, *_ = self._online(self.examples(rows, now), np.bool_(True))
    return Lists(np.asarray(item), np.asarray(score))

  def examples(self, rows: np.ndarray, now: int) -> Examples:
    """Return what is known of these rows at a time."""
    window, reasoner = self._window(rows), self.setting.config.reasoner

    def unknown(*shape: int) -> np.ndarray:
      return np.full((len(rows), *shape), -1, np.int32)

    excites = self.setting.excitation.of(self.setting.users[rows], window.item)
    time = np.full(len(rows), now, np.int32)
    return Examples(
      window, time, excites, unknown(), unknown(reasoner.role_events), unknown(reasoner.candidates)
    )


class Oracle:
  """Knows the simulator: shows what would most probably be bought if there were a purchase.

  It is no model, but the ceiling of a short-sighted one.
  """

  def __init__(self, setting: Setting, world: World):
    self._world, self._setting = world, setting
    self._users = setting.log.users.gather(setting.users).to_numpy()
    self._at_end = world.state_of_rows(self._users, *setting.past())

  def begin(self) -> None:
    self._state = self._at_end

  def rank(self, rows: np.ndarray, now: int) -> Lists:
    score = self._world.log_p_conversion(self._state.rows(rows), np.full(len(rows), now))
    order = np.argsort(-score, axis=1, kind='stable')[:, : self._setting.listed]
    return Lists(order, np.take_along_axis(score, order, axis=1))

  def observe(self, events: Events) -> None:
    self._state = self._world.extended(self._state, *events)


class LookingAhead(Oracle):
  """Knows the simulator, and what a look at an item does to the chance that a purchase follows.

  Of the oracle's lists it shows first what most raises that chance: a strong reference for
  instrumental value, one event ahead. What lowers it comes last, by the oracle's order.
  """

  def rank(self, rows: np.ndarray, now: int) -> Lists:
    lists = super().rank(rows, now)
    world, state, every = self._world, self._state.rows(rows), np.arange(len(rows))
    time = np.full(len(rows), now)
    looks = [world.look_chances(state, every, item, time) for item in lists.item.T]
    effects = world.effects_of_looks(state, lists.item, time)
    worth = np.stack(looks, axis=1) * np.maximum(effects, 0)
    order = np.argsort(-worth, axis=1, kind='stable')
    return Lists(*(np.take_along_axis(x, order, axis=1) for x in lists))
