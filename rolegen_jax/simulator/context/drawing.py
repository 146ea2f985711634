"""The next event of shoppers of the context simulator.

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
  from rolegen_jax.simulator.context.world import ContextWorld, State


def draw_events(
  world: ContextWorld, state: State, times: np.ndarray, u_AxQ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Draw an event of every row of `state` at `times` [A]: (items, event codes)."""
  rules, traits = world.rules, world.traits
  users, n = state.users, np.arange(len(times))
  contacts = world.contacts(state, times)
  needs = world.needs(state, times, contacts)
  buys = u_AxQ[:, U_BUYS] < world.hazard_of(users, needs.total)
  explores = u_AxQ[:, U_MECHANISM] < rules.p_explore
  shown = ~explores & (u_AxQ[:, U_MECHANISM] < rules.p_explore + rules.p_shown)
  base = traits.base_PxFxC[traits.persona_U[users], traits.favorite_U[users]]
  browses = browsing_weights(world, needs.steady, needs.opened)
  category = choose(np.where(explores[:, None], base, browses), u_AxQ[:, U_CATEGORY])

  options = world.items_CxM[category]
  is_item, mine = options >= 0, contacts[n, category]
  weight = np.exp(world.attraction(traits.taste_U[users][:, None], options)) * is_item
  p_back = p_revisit(world, mine.sum(1))
  revisits = ~explores & ~shown & (u_AxQ[:, U_REVISIT] < p_back)
  chosen = choose(np.where(revisits[:, None], mine, weight), u_AxQ[:, U_ITEM])
  items = options[n, chosen]
  if shown.any():
    weight = shown_weights(world, needs.total[shown], traits.persona_U[users[shown]])
    items[shown] = choose(weight, u_AxQ[shown, U_ITEM])
  codes = contact_codes(world, revisits, u_AxQ[:, U_KIND])
  if buys.any():
    rows = np.flatnonzero(buys)
    items[rows] = draw_purchases(world, state, rows, times[rows], u_AxQ[rows, U_BOUGHT])
    codes[rows] = PURCHASE
  return items, codes


def browsing_weights(world: ContextWorld, steady: np.ndarray, opened: np.ndarray) -> np.ndarray:
  """Return weights of categories that are browsed, [..., C]: what is bought is looked at less."""
  return (steady + world.rules.follow * opened) ** world.rules.focus


def p_revisit(world: ContextWorld, contacts: np.ndarray) -> np.ndarray:
  """Return the chance that browsing goes back to a considered item, by contacts in a category."""
  return world.fitted.revisit * contacts / (contacts + 0.5)


def shown_weights(world: ContextWorld, needs: np.ndarray, personas: np.ndarray) -> np.ndarray:
  """Return how often the platform shows each item, up to a factor, [A, I].

  It shows by popularity, and knows better than the log who needs what: exposure is confounded.
  """
  return (
    np.exp(world.traits.popularity_I) * exposure(world, needs, personas)[:, exposure_column(world)]
  )


def exposure(world: ContextWorld, needs: np.ndarray, personas: np.ndarray) -> np.ndarray:
  """Return the factor of exposure of each signal, of any key, and of the other items.

  needs: [A, ..., C]. personas: [A]. Returns [A, ..., S + 2].
  """
  target = world.traits.target_SxP[:, personas].T
  target = target.reshape(len(needs), *[1] * (needs.ndim - 2), target.shape[1])
  need = np.take_along_axis(needs, np.maximum(target, 0), axis=-1) * (target >= 0)
  ends = np.zeros((*need.shape[:-1], 2)) + (1, 0)
  return np.concatenate([1 + world.rules.confounding * need, ends], axis=-1)


def exposure_column(world: ContextWorld) -> np.ndarray:
  """Return the column of `exposure` of each item, [I]."""
  signal, signals = world.traits.signal_I, len(world.traits.key_S)
  others = np.where(world.traits.key_I >= 0, signals, signals + 1)
  return np.where(signal >= 0, signal, others)
