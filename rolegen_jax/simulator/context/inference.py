"""What can be known of the context simulator's shoppers from a log, by Bayes' rule.

A shopper is a persona, a favorite category and a taste, drawn evenly. `Reader` follows histories
event by event and keeps the posterior over all of them; what it predicts is what the best
recommender of all could. It knows the rules of the simulator, the traits of items and how often
each shopper buys at most, nothing else that a log does not tell.

N rows, P personas, F favorite categories, T tastes, C categories, M items of one, S signals, I
items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from rolegen_jax.simulator.behavior import PURCHASE, code_shares
from rolegen_jax.simulator.context import drawing
from rolegen_jax.simulator.context.world import ContextWorld, State, category_shares
from rolegen_jax.simulator.histories import positions, rows_of_users
from rolegen_jax.simulator.rules import STYLES, purchase_hazard

ROWS = 128  # rows whose posteriors are worked on at once


def best_lists(
  world: ContextWorld, log: pl.DataFrame, users: np.ndarray, timestamps: np.ndarray, k: int
) -> dict[str, np.ndarray]:
  """Return the k items likeliest to be bought at each of O moments, most likely first, [O, k].

  log: events of the simulated log. users, timestamps: [O]; what happened before counts. `bayes`
  goes by what the history tells, `truth` knows the shopper's hidden traits.
  """
  lists = {name: np.zeros((len(users), k), np.int32) for name in ('bayes', 'truth')}
  for part, reader, rows in follow(world, log, users, timestamps):
    now = timestamps[part]
    p = {'bayes': reader.p_conversion(rows, now)}
    p['truth'] = world.log_p_conversion(reader.state.rows(rows), now)
    for name, score in p.items():
      lists[name][part] = np.argsort(-score, axis=1, kind='stable')[:, :k]
  return lists


def follow(
  world: ContextWorld, log: pl.DataFrame, users: np.ndarray, timestamps: np.ndarray
) -> Iterator[tuple[np.ndarray, Reader, np.ndarray]]:
  """Read the histories of O moments, and stop at each of them.

  Yields (which moments [A], a reader that has read what came before them, its rows [A]), until all
  have had their turn. log: events of the simulated log. users, timestamps: [O].
  """
  known = np.unique(users)
  rows, items, codes, times = rows_of_users(log, known)
  row = np.searchsorted(known, users)
  order = np.lexsort((times, rows))
  rows, items, codes, times = (column[order] for column in (rows, items, codes, times))
  first = np.searchsorted(rows, np.arange(len(known) + 1))
  seen = np.array([np.sum(times[first[r] : first[r + 1]] < t) for r, t in zip(row, timestamps)])
  reader, last = Reader(world, known), np.zeros(len(known), int)
  np.maximum.at(last, row, seen)
  steps = list(positions(rows, times))
  for position in range(len(steps) + 1):
    for part in _parts(np.flatnonzero(seen == position)):
      yield part, reader, row[part]
    if position < len(steps):
      step = steps[position]
      for part in _parts(step[last[rows[step]] > position]):
        reader.read(rows[part], items[part], codes[part], times[part])


def _parts(index: np.ndarray) -> list[np.ndarray]:
  return np.array_split(index, -(-len(index) // ROWS)) if len(index) else []


class Reader:
  """The posterior over the hidden traits of N users, and the state of their histories."""

  def __init__(self, world: ContextWorld, users: np.ndarray) -> None:
    self.world, self.state = world, world.empty(users)
    personas, favorites, _ = world.traits.base_PxFxC.shape
    self._log = np.zeros((len(users), personas, favorites, len(STYLES)))

  def posterior(self, rows: np.ndarray) -> np.ndarray:
    """Return p(persona, favorite, taste | history) of `rows`, [A, P, F, T]."""
    log = self._log[rows]
    p = np.exp(log - log.max((1, 2, 3), keepdims=True))
    return p / p.sum((1, 2, 3), keepdims=True)

  def p_conversion(self, rows: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Return p(item | a purchase happens, history) of `rows`, [A, I]."""
    world, state = self.world, self.state.rows(rows)
    contacts = world.contacts(state, timestamps)
    posterior, share = self.buyers(rows, timestamps)
    share_AxCxT = np.einsum('apft,apfc->act', posterior, share)
    tastes = np.broadcast_to(np.arange(len(STYLES)), (len(rows), len(STYLES)))
    within = world.choice_shares_everywhere(contacts, tastes)  # [A, C, T, M]
    return world.by_item(np.einsum('act,actm->acm', share_AxCxT, within))

  def buyers(self, rows: np.ndarray, timestamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return p(hidden traits | a purchase happens, history), and what follows from each.

    A purchase tells by itself of whom one may rather be: of those whose hazard is higher. Returns
    ([A, P, F, T], p(category | a purchase happens, traits) [A, P, F, C]).
    """
    world, state = self.world, self.state.rows(rows)
    steady, opened = self._needs(state, timestamps, world.contacts(state, timestamps))
    needs = steady + opened[:, :, None]
    # The ceiling of the hazard is the shopper's own: it cancels, even where it is 0.
    hazard = purchase_hazard(world.rules, np.ones(()), needs.sum(-1))
    posterior = self.posterior(rows) * hazard[..., None]
    return posterior / posterior.sum((1, 2, 3), keepdims=True), category_shares(world, needs)

  def read(
    self, rows: np.ndarray, items: np.ndarray, codes: np.ndarray, timestamps: np.ndarray
  ) -> None:
    """Learn from one event of each of `rows` [A]; a row may occur once only."""
    self._log[rows] += np.log(self._likelihood(rows, items, codes, timestamps))
    self.world.add(self.state, rows, items, codes, timestamps)

  def _needs(
    self, state: State, timestamps: np.ndarray, contacts: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Return (steady needs [A, P, F, C], opened needs [A, P, C]) of everybody one may be."""
    world, n = self.world, len(state.users)
    base = np.broadcast_to(world.traits.base_PxFxC, (n, *world.traits.base_PxFxC.shape))
    steady = world.steady_needs(state, timestamps, contacts, base)
    opened = [
      world.opened(state, timestamps, np.tile(target_S, (n, 1)))
      for target_S in world.traits.target_SxP.T
    ]
    return steady, world.open_need * np.stack(opened, axis=1)

  def _likelihood(
    self, rows: np.ndarray, items: np.ndarray, codes: np.ndarray, timestamps: np.ndarray
  ) -> np.ndarray:
    """Return p(event | everybody one may be, history), [A, P, F, T]."""
    world, state, n = self.world, self.state.rows(rows), np.arange(len(rows))
    category, slot = world.traits.category_I[items], world.slot_I[items]
    contacts = world.contacts(state, timestamps)
    steady, opened = self._needs(state, timestamps, contacts)
    needs = steady + opened[:, :, None]
    hazard = world.hazard_of(state.users, needs)[..., None]
    tastes = np.broadcast_to(np.arange(len(STYLES)), (len(rows), len(STYLES)))

    mine = contacts[n, category]
    within = world.choice_shares(mine, category, tastes)[n, :, slot]  # [A, T]
    share = category_shares(world, needs)[n, :, :, category]
    bought = hazard * share[..., None] * within[:, None, None]

    fresh = world.choice_shares(np.zeros_like(mine), category, tastes)[n, :, slot][:, None, None]
    first, again = code_shares(world, codes)
    back = drawing.p_revisit(world, mine.sum(1))
    revisited = back * mine[n, slot] / np.maximum(mine.sum(1), 1)
    is_first, is_again = (1 - back) * first, revisited * again
    explored = world.traits.base_PxFxC[:, :, category].transpose(2, 0, 1)[..., None] * fresh
    browsing = drawing.browsing_weights(world, steady, opened[:, :, None])
    browsing = (browsing / browsing.sum(-1, keepdims=True))[n, :, :, category][..., None]
    shape = (-1, 1, 1, 1)
    browsed = browsing * (is_first.reshape(shape) * fresh + is_again.reshape(shape))
    rules, shown = world.rules, self._p_shown(needs, items)[..., None]
    passive = rules.p_explore * explored + rules.p_shown * shown
    contact = first.reshape(shape) * passive + (1 - rules.p_explore - rules.p_shown) * browsed
    buys = (codes == PURCHASE).reshape(shape)
    return np.where(buys, bought, (1 - hazard) * contact)

  def _p_shown(self, needs: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the chance that the platform shows `items` [A] and nothing else, [A, P, F]."""
    world = self.world
    exposure = np.stack(
      [drawing.exposure(world, needs[:, p], np.full(len(needs), p)) for p in range(needs.shape[1])],
      axis=1,
    )
    weight_I, column_I = np.exp(world.traits.popularity_I), drawing.exposure_column(world)
    mass = np.bincount(column_I, weight_I, exposure.shape[-1])
    total = exposure @ mass
    n = np.arange(len(items))
    return weight_I[items][:, None, None] * exposure[n, :, :, column_I[items]] / total
