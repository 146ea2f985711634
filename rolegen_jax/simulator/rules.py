"""Constants of the simulated world: the rules (chosen) and the presets (fitted).

docs/simulator.md explains each. The rules were fixed before any model was trained on the
world and are not tuned to any comparison of recommenders. Those of the held-back world were fixed
before any recommenders were compared in either world by `simulate_ab`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Protocol

import numpy as np

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
STREAMS = ('items', 'users', 'log', 'text')  # purposes that have a random generator of their own


@dataclasses.dataclass(frozen=True)
class Rules:
  """Chosen constants.

  Intensities are in units of a user's total base preference, which sums to 1 over categories.
  """

  start: int = 1_704_067_200  # first second of the world, 2024-01-01 00:00 UTC
  days: int = 120  # length of the log
  department_size: int = 4  # categories per department

  # Traits of users.
  # Dirichlet concentration per category: small = few favorite categories.
  base_concentration: float = 0.15
  # Share of base preference spread evenly, so that no intensity is zero.
  base_floor: float = 0.15
  style_weight: float = 0.8  # standard deviation of a user's utility for a style
  dormant_share: float = 0.4  # users who browse but rarely buy
  dormant_rate: float = 0.4  # purchase rate of dormant browsers against the others
  dormant_events: float = 1.6  # events of dormant browsers against the others

  # Traits of items.
  trigger_share: float = 0.14  # items that open interest in one other category
  distractor_share: float = 0.08  # items that lower interest in one other department
  brands: int = 3  # per department and style

  # Kicks: what one event adds to the state of its user.
  decay_days: float = 10.0  # e-folding time of everything in the state
  view_kick: float = 0.6  # intensity added to the item's own category by a contact of strength 1
  trigger_kick: float = 2.4  # intensity added to a trigger's target category
  complement_kick: float = 0.15  # intensity added to the complement of the item's category
  purchase_complement_kick: float = 1.0  # the same, when the event is a purchase
  # Log intensity taken from each category of a distractor's target department.
  distractor_damp: float = 0.8
  purchase_damp: float = 1.2  # log intensity taken from the category bought
  fav_strength: float = 2.0  # strength of a contact: a view is 1
  cart_strength: float = 3.0
  focus: float = 1.6  # exponent of intensity when a category is chosen: above 1, strong intents win

  # Purchase hazard at an event: rate * Lambda / (Lambda + hazard_half), Lambda = summed intensity.
  hazard_half: float = 5.0

  # Mechanisms of an event that is not a purchase; the rest are intent views.
  p_explore: float = 0.08
  p_trigger: float = 0.10
  p_distract: float = 0.12
  p_complement: float = 0.08
  # Odds that a fav or cart falls on a repeated contact rather than a first one.
  repeat_mark_odds: float = 4.0
  intent_gap_days: float = 14.0  # an intent without contact for longer than this is over

  # Response to recommendations.
  view_half: float = 6.0  # relative desire at which an examined item is viewed with probability 1/2
  # Choice weight of a shown and viewed item: it is at hand, no search needed.
  shown_boost: float = 20.0
  max_session: int = 20  # organic events of one visit in `act`


# Preset of the second world: the marginals of HELD_BACK_MARGINALS, HELD_BACK_STRENGTHS in place of
# the default strengths.
HELD_BACK = 'held_back'
HELD_BACK_MARGINALS = 'alibaba2014'
# Drawn, not chosen: the default times exp(x), x uniform in +-log 1.5, drawn once in this order by
# default_rng(2026), to two digits.
HELD_BACK_STRENGTHS: dict[str, Any] = dict(
  view_kick=0.46,
  trigger_kick=2.7,
  complement_kick=0.15,
  purchase_complement_kick=0.9,
  distractor_damp=0.71,
  purchase_damp=1.5,
  decay_days=14.0,
  focus=1.2,
  hazard_half=5.7,
  trigger_share=0.12,
  distractor_share=0.12,
  p_explore=0.11,
  p_trigger=0.11,
  p_distract=0.15,
  p_complement=0.081,
  view_half=7.8,
  shown_boost=19.0,
)


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
  """Return {preset: {'fitted': {...}, 'target': statistics of the real log, 'distance': {...}}}."""
  return json.loads(PRESETS.read_text(encoding='utf-8'))


def load_fitted(preset: str) -> Fitted:
  """Return the fitted parameters of `preset`."""
  name = HELD_BACK_MARGINALS if preset == HELD_BACK else preset
  return Fitted(**load_presets()[name]['fitted'])


def rules_of(preset: str) -> Rules:
  """Return the rules of `preset`."""
  if preset == HELD_BACK:
    return Rules(**HELD_BACK_STRENGTHS)
  return Rules()


def category_names(categories: int, department_size: int) -> list[str]:
  """Return `department.category` codes, [categories]."""
  named = [f'{department}.{name}' for department, names in DEPARTMENTS.items() for name in names]
  numbered = range(len(named), categories)
  more = [f'department{c // department_size}.category{c}' for c in numbered]
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
