"""Planted roles of the context simulator: by the true effect of removing an event.

docs/context_simulator.md has the rules. O occasions, M events before each, V = 1 + M variants of a
history: whole, and without each event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.simulator.planted import Pairs

if TYPE_CHECKING:
  from rolegen_jax.simulator.context.world import ContextWorld

PURCHASE = EVENT_NAMES.index('purchase')
CHUNK = 64  # occasions whose variants are replayed at once
EFFECT = 0.05  # nats from which a removal matters


def roles_and_effects(world: ContextWorld, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
  """Return role and true removal effect of each pair, [O, M]; NaN where there is no event."""
  effect = np.full(pairs.items.shape, np.nan)
  oldest = pairs.times - world.memory_days * 86_400
  occasion, item, code, time = pairs.past
  matters = time >= oldest[occasion]
  past = tuple(column[matters] for column in pairs.past)
  order = np.argsort(np.bincount(past[0], minlength=len(oldest)), kind='stable')
  for chosen in np.array_split(order, max(1, -(-len(order) // CHUNK))):
    effect[chosen] = _removal_effects(world, pairs, chosen, past)
  return relative_roles(world, pairs, effect), effect


def _removal_effects(
  world: ContextWorld, pairs: Pairs, chosen: np.ndarray, past: tuple[np.ndarray, ...]
) -> np.ndarray:
  """Return log p(bought | history) minus the same without each event, [chosen, M]."""
  variants = 1 + pairs.items.shape[1]
  place = np.full(len(pairs.users), -1)
  place[chosen] = np.arange(len(chosen))
  mine = place[past[0]] >= 0
  occasion, item, code, time = (column[mine] for column in past)
  place = place[occasion]
  # An event of the history is left out where its time is that of the variant: times are distinct.
  left_out = np.concatenate([np.full((len(chosen), 1), -1), pairs.event_times[chosen]], axis=1)
  stays = left_out[place] != time[:, None]
  event, variant = np.nonzero(stays)
  users, times, bought = (
    np.repeat(column[chosen], variants) for column in (pairs.users, pairs.times, pairs.bought)
  )
  rows = place[event] * variants + variant
  state = world.state_of_rows(users, rows, item[event], code[event], time[event])
  log_p = world.log_p_of(state, times, bought).reshape(len(chosen), variants)
  return np.where(pairs.items[chosen] >= 0, log_p[:, :1] - log_p[:, 1:], np.nan)


def relative_roles(world: ContextWorld, pairs: Pairs, effect: np.ndarray) -> np.ndarray:
  """Return the roles of the pairs; the first rule that holds wins."""
  traits, bought = world.traits, pairs.bought[:, None]
  items = np.maximum(pairs.items, 0)
  same = traits.category_I[items] == traits.category_I[bought]
  helps, hurts = effect >= EFFECT, effect <= -EFFECT
  rules = {
    'CONVERT': pairs.codes == PURCHASE,
    'DISTRACT': hurts,
    'contact': same,
    'TRIGGER': helps & (traits.signal_I[items] >= 0),
    'COMPLEMENT': helps,
  }
  values = [pairs.contacts if name == 'contact' else ROLE_NAMES.index(name) for name in rules]
  return np.select(list(rules.values()), values, ROLE_NAMES.index('EXPLORE'))
