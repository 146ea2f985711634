"""Constants that the simulators share: common rules (chosen) and presets (fitted)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Protocol

import numpy as np

from rolegen_jax.config import SimulatorConfig

PRESETS = pathlib.Path(__file__).with_name('presets.json')
STYLES = ('minimal', 'vintage', 'sporty', 'luxury', 'natural', 'playful', 'urban', 'classic')
DEPARTMENTS = {  # the first categories have names; a larger world numbers the rest
  'home': ('sofa', 'lamp', 'rug', 'curtain'),
  'kitchen': ('kettle', 'pan', 'knife', 'blender'),
  'sport': ('tent', 'bicycle', 'racket', 'dumbbell'),
  'fashion': ('dress', 'sneaker', 'coat', 'handbag'),
  'beauty': ('serum', 'lipstick', 'perfume', 'shampoo'),
  'electronics': ('phone', 'headphone', 'camera', 'laptop'),
}
DEPARTMENT_SIZE = 4  # categories per department
DAY = 86_400  # seconds
# Preset of the second item-trait world: the marginals of HELD_BACK_MARGINALS, other strengths.
HELD_BACK = 'held_back'
HELD_BACK_MARGINALS = 'alibaba2014'
# Purposes that have a random generator of their own.
STREAMS = ('items', 'users', 'log', 'text', 'context')


@dataclasses.dataclass(frozen=True)
class CommonRules:
  """Chosen constants that the simulators share."""

  start: int = 1_704_067_200  # first second of the world, 2024-01-01 00:00 UTC
  days: int = 120  # length of the log

  # Traits of users.
  dormant_share: float = 0.4  # users who browse but rarely buy
  dormant_rate: float = 0.4  # purchase rate of dormant browsers against the others
  dormant_events: float = 1.6  # events of dormant browsers against the others

  brands: int = 3  # per style and department, or category

  # Purchase hazard at an event: rate * Lambda / (Lambda + hazard_half), Lambda = summed intensity.
  hazard_half: float = 5.0

  # Odds that a fav or cart falls on a repeated contact rather than a first one.
  repeat_mark_odds: float = 4.0
  intent_gap_days: float = 14.0  # an intent without contact for longer than this is over

  # Response to recommendations.
  view_half: float = 6.0  # relative desire at which an examined item is viewed with probability 1/2
  # Choice weight of a shown and viewed item: it is at hand, no search needed.
  shown_boost: float = 20.0
  max_session: int = 20  # organic events of one visit in `act`


@dataclasses.dataclass(frozen=True)
class Fitted:
  """Parameters fitted to the marginals of one real log by experiments/fit_simulator.py."""

  events_mean: float  # events per user
  events_shape: float  # gamma shape of events per user
  session_events: float  # events per visit
  gap_shape: float  # Weibull shape of the time between visits: below 1 is bursty
  purchase_rate: float  # ceiling of the purchase hazard of a median non-dormant buyer
  purchase_spread: float  # standard deviation of log rate over buyers
  never_share: float  # users who never buy
  tail: float  # exponent of item popularity by rank inside a category
  revisit: float  # ceiling of the chance that an intent view goes back to a considered item
  consideration: float  # exponent of (1 + decayed contacts) in the item's choice weight
  fav_share: float  # of events that are not purchases
  cart_share: float


def load_presets() -> dict[str, Any]:
  """Return what was fitted to each real log.

  {preset: {'target': statistics of the log, KIND: {'fitted': {...}, 'distance': {...}}}}
  """
  return json.loads(PRESETS.read_text(encoding='utf-8'))


def load_fitted(config: SimulatorConfig) -> Fitted:
  """Return the fitted parameters of a simulator."""
  name = HELD_BACK_MARGINALS if config.preset == HELD_BACK else config.preset
  return Fitted(**load_presets()[name][config.kind]['fitted'])


def purchase_hazard(rules: CommonRules, rate: np.ndarray, total: np.ndarray) -> np.ndarray:
  """Return the probability that an event is a purchase, by its ceiling and summed intensity."""
  return rate * total / (total + rules.hazard_half)


def category_names(categories: int) -> list[str]:
  """Return `department.category` codes, [categories]."""
  named = [f'{department}.{name}' for department, names in DEPARTMENTS.items() for name in names]
  numbered = range(len(named), categories)
  more = [f'department{c // DEPARTMENT_SIZE}.category{c}' for c in numbered]
  return (named + more)[:categories]


class Uniforms(Protocol):
  """A source of uniforms on [0, 1), as numpy's Generator is one."""

  def random(self, shape: tuple[int, ...], /) -> np.ndarray:
    """Return uniforms of this shape."""
    ...


def stream(seed: int, name: str) -> np.random.Generator:
  """Return an independent generator per purpose, the same on every platform.

  name: one of STREAMS.
  """
  sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name),))
  return np.random.default_rng(sequence)
