"""The next event of shoppers of the item-trait simulator.

A users that act; all other shapes as in `world`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rolegen_jax.simulator.behavior import (
  PURCHASE,
  U_BOUGHT,
  U_BUYS,
  U_CATEGORY,
  U_ITEM,
  U_KIND,
  U_MECHANISM,
  U_REVISIT,
  choose,
  contact_codes,
  draw_purchases,
)

if TYPE_CHECKING:
  from rolegen_jax.simulator.item_traits.world import State, TraitWorld


class Tables:
  """Item lists that drawing needs.

  items_CxN: items by category, padded with -1. trigger_1xI, distract_DxI: weights of triggers, and
  of the distractors against each of D departments.
  """

  def __init__(self, world: TraitWorld) -> None:
    traits = world.traits
    members = [np.flatnonzero(traits.category_I == c) for c in range(world.config.categories)]
    self.items_CxN = np.full((len(members), max(map(len, members))), -1)
    for c, items in enumerate(members):
      self.items_CxN[c, : len(items)] = items
    weight_I = np.exp(traits.popularity_I)
    departments = np.arange(traits.department_C[-1] + 1)
    self.trigger_1xI = (weight_I * (traits.trigger_I >= 0))[None]
    self.distract_DxI = weight_I * (traits.distracts_I == departments[:, None])


def draw_events(
  world: TraitWorld,
  tables: Tables,
  state: State,
  rows: np.ndarray,
  times: np.ndarray,
  u_AxQ: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Draw the next event of each of `rows` [A] of `state` at `times` [A]: (items, event codes).

  u_AxQ: uniforms [A, NOISE].
  """
  rules, traits = world.rules, world.traits
  users, now = state.users[rows], world.decay(times)
  raised = traits.base_UxC[users] + now[:, None] * state.excitation[rows]
  lam = raised * np.exp(-now[:, None] * state.inhibition[rows])
  total = lam.sum(1)
  buys = u_AxQ[:, U_BUYS] < traits.rate_U[users] * total / (total + rules.hazard_half)

  chances = [rules.p_explore, rules.p_trigger, rules.p_distract, rules.p_complement]
  mechanism = np.searchsorted(np.cumsum(chances), u_AxQ[:, U_MECHANISM], 'right')
  explores, triggers, distracts, complements, intends = (mechanism == k for k in range(5))
  category_weight = np.where(explores[:, None], traits.base_UxC[users], lam**rules.focus)
  category = choose(category_weight, u_AxQ[:, U_CATEGORY])
  department = traits.department_C[category]
  triggers &= tables.trigger_1xI.any()
  distracts &= tables.distract_DxI.any(1)[department]
  # An event "in the complement of the active intent" is in a category whose contacts kick that
  # intent.
  complemented_by = np.argsort(traits.complement_C)
  category = np.where(complements, complemented_by[category], category)

  items, revisits = _draw_contacts(world, tables, state, rows, times, category, intends, u_AxQ)
  if triggers.any():
    weight = np.broadcast_to(tables.trigger_1xI, (triggers.sum(), world.config.items))
    items[triggers] = choose(weight, u_AxQ[triggers, U_ITEM])
  if distracts.any():
    weight = tables.distract_DxI[department[distracts]]
    items[distracts] = choose(weight, u_AxQ[distracts, U_ITEM])
  codes = contact_codes(world, revisits, u_AxQ[:, U_KIND])
  if buys.any():
    bought = draw_purchases(world, state, rows[buys], times[buys], u_AxQ[buys, U_BOUGHT])
    items[buys] = bought
    codes[buys] = PURCHASE
  return items, codes


def _draw_contacts(
  world: TraitWorld,
  tables: Tables,
  state: State,
  rows: np.ndarray,
  times: np.ndarray,
  category: np.ndarray,
  intends: np.ndarray,
  u_AxQ: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Draw (items [A] in `category`, whether they are revisits of a considered item [A])."""
  users, now = state.users[rows], world.decay(times)
  options = tables.items_CxN[category]
  is_item = options >= 0
  weight = np.where(is_item, world.attraction(users[:, None], options), 0)
  considered = now[:, None] * state.consideration[rows[:, None], options]
  contacts = np.where(is_item, considered, 0)
  mass = contacts.sum(1)
  p_revisit = world.fitted.revisit * mass / (mass + 0.5)
  revisits = intends & (u_AxQ[:, U_REVISIT] < p_revisit)
  chosen = choose(np.where(revisits[:, None], contacts, weight), u_AxQ[:, U_ITEM])
  return options[np.arange(len(rows)), chosen], revisits
