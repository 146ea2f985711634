"""Planted roles of the item-trait simulator.

O occasions, M events before each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.simulator.planted import ANCHOR, COMPARE, Pairs

if TYPE_CHECKING:
  from rolegen_jax.simulator.item_traits.world import TraitWorld

PURCHASE = EVENT_NAMES.index('purchase')


def roles_and_effects(world: TraitWorld, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
  """Return role and true removal effect of each pair, [O, M]; NaN where there is no event."""
  effect = world.removal_effects(
    world.state_of_rows(pairs.users, *pairs.past),
    timestamps=pairs.times,
    bought=pairs.bought,
    items=pairs.items,
    codes=pairs.codes,
    times=pairs.event_times,
  )
  items = np.maximum(pairs.items, 0)
  role = relative_roles(world, items, pairs.codes, pairs.contacts, pairs.bought[:, None])
  return role, effect


def relative_roles(
  world: TraitWorld, items: np.ndarray, codes: np.ndarray, contacts: np.ndarray, bought: np.ndarray
) -> np.ndarray:
  """Return the roles of events relative to the purchase of `bought`.

  The first rule that holds wins, in the order of docs/simulator.md. All arrays broadcast;
  contacts: what `planted.contact_roles` returned for the events.
  """
  traits = world.traits
  # An item cannot be an alternative to itself: meeting the bought item for the first time is its
  # entry, an ANCHOR.
  contacts = np.where((contacts == COMPARE) & (items == bought), ANCHOR, contacts)
  category, target = traits.category_I[items], traits.category_I[bought]
  rules = {
    'CONVERT': codes == PURCHASE,
    'TRIGGER': traits.trigger_I[items] == target,
    'DISTRACT': traits.distracts_I[items] == traits.department_C[target],
    'contact': category == target,
    'COMPLEMENT': traits.complement_C[category] == target,
  }
  values = [contacts if name == 'contact' else ROLE_NAMES.index(name) for name in rules]
  return np.select(list(rules.values()), values, ROLE_NAMES.index('EXPLORE'))
