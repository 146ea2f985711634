"""Constants of the context simulator; docs/context_simulator.md explains each.

They were fixed before any model was trained on its logs and are not tuned to any comparison.
"""

from __future__ import annotations

import dataclasses

from rolegen_jax.simulator.rules import CommonRules

GRADES = ('basic', 'standard', 'fine', 'premium')
# Words in titles of items that carry a signal or a key: what the shop's text says they are.
SIGNAL_WORDS = ('starter', 'gift', 'travel', 'repair', 'party', 'organic', 'junior', 'smart')
KEY_WORDS = ('guide', 'sample', 'refill')


@dataclasses.dataclass(frozen=True)
class ContextRules(CommonRules):
  """Chosen constants. Needs are in units of a shopper's base preference, which sums to 1."""

  # Hidden traits of shoppers.
  personas: int = 6  # life phases
  persona_concentration: float = 0.2  # Dirichlet, per category: small = few categories a phase
  persona_share: float = 0.45  # of base preference; the rest is the favorite category's and even
  favorite_share: float = 0.35
  taste: float = 1.2  # utility of the favorite style

  # Traits of items.
  signal_share: float = 0.24  # items that carry a signal
  key_share: float = 0.20  # items that carry a key; none carries both
  deaf_personas: int = 1  # personas to whom a signal means nothing, of each signal
  misfiled_share: float = 0.15  # items whose text names another item's category and word
  price_of_grade: float = 0.25  # log price added by each grade
  price_spread: float = 0.35  # standard deviation of the rest of log price within a category

  # What events do.
  key_days: float = 7.0  # a signal is understood this long after its key, and only after it
  open_days: float = 14.0  # a need that a signal opened lasts this long
  open_need: float = 3.0  # its size; times the strength of the simulator
  consider_days: float = 14.0  # a contact counts this long in a comparison
  compare_from: int = 2  # different items of a category that are compared before they add a need
  compare_need: float = 0.8  # the need added from there on, however many follow
  satisfied_days: float = 30.0  # after a purchase in a category
  satisfied: float = 0.2  # what is left of the need there
  # Contacts with an item beyond these change nothing; the state holds two.
  most_contacts: int = 2
  margin: float = 0.1  # log price by which an item must be cheaper to dominate another
  dominance: float = 1.5  # utility of dominating a considered item; times the strength
  focus: float = 1.6  # exponent of need when a category is chosen

  # Mechanisms of an event that is not a purchase; the rest are browsing.
  p_explore: float = 0.08
  p_shown: float = 0.45  # the platform shows an item with a key or a signal
  # A signal's item is shown 1 + confounding * need times as often to who needs its target already.
  confounding: float = 1.0
  follow: float = 0.15  # share of an opened need that browsing shows
