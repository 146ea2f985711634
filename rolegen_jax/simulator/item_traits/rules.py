"""Constants of the item-trait simulator; docs/simulator.md explains each.

The rules were fixed before any model was trained on the world and are not tuned to any comparison
of recommenders. Those of the held-back world were fixed before any recommenders were compared in
either world by `simulate_ab`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rolegen_jax.simulator.rules import HELD_BACK, CommonRules


@dataclasses.dataclass(frozen=True)
class Rules(CommonRules):
  """Chosen constants.

  Intensities are in units of a user's total base preference, which sums to 1 over categories.
  """

  # Traits of users.
  # Dirichlet concentration per category: small = few favorite categories.
  base_concentration: float = 0.15
  # Share of base preference spread evenly, so that no intensity is zero.
  base_floor: float = 0.15
  style_weight: float = 0.8  # standard deviation of a user's utility for a style

  # Traits of items.
  trigger_share: float = 0.14  # items that open interest in one other category
  distractor_share: float = 0.08  # items that lower interest in one other department

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

  # Mechanisms of an event that is not a purchase; the rest are intent views.
  p_explore: float = 0.08
  p_trigger: float = 0.10
  p_distract: float = 0.12
  p_complement: float = 0.08
  # Odds that a fav or cart falls on a repeated contact rather than a first one.

  # Response to recommendations.
  # Choice weight of a shown and viewed item: it is at hand, no search needed.


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


def rules_of(preset: str) -> Rules:
  """Return the rules of `preset`."""
  return Rules(**HELD_BACK_STRENGTHS) if preset == HELD_BACK else Rules()
