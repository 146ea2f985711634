"""What can be known of roles in the context simulator before the purchase, by Bayes' rule.

A role is towards a purchase by a shopper. From the history alone neither is known, so the best that
can be said is a distribution: over whom the shopper may be, and what that shopper would buy. It is
estimated by drawing both and working out the roles of each draw, which is exact but for the number
of draws.

O moments, A of them at once, D draws of each, M events before a moment, R roles.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.simulator.behavior import choose
from rolegen_jax.simulator.context.inference import Reader, follow
from rolegen_jax.simulator.context.roles import roles_and_effects
from rolegen_jax.simulator.context.world import ContextWorld
from rolegen_jax.simulator.histories import rows_of_users
from rolegen_jax.simulator.planted import Pairs, contact_roles, ranges


def role_posteriors(
  world: ContextWorld,
  log: pl.DataFrame,
  users: np.ndarray,
  timestamps: np.ndarray,
  last: int,
  categories: np.ndarray | None = None,
  draws: int = 64,
  seed: int = 0,
) -> np.ndarray:
  """Return p(role of each of the M = `last` events | what came before), fp64 [O, M, R].

  Rows without an event are 0. log: events of the simulated log. users, timestamps: [O], of
  purchases. categories: [O], what is bought, where that is told; None = from the history alone.
  """
  rng, log = np.random.default_rng(seed), log.sort('user_id', 'timestamp')
  everybody = np.arange(world.config.users)
  events = rows_of_users(log, everybody)
  order = np.lexsort((events[3], events[0]))
  user, item, code, time = (column[order] for column in events)
  contacts = contact_roles(world, user, item, code, time)
  first = np.searchsorted(user, users)
  end = np.array([f + np.sum(time[f:s] < t) for f, s, t in zip(
    first, np.searchsorted(user, users, 'right'), timestamps)])  # fmt: skip
  recent = end[:, None] - np.arange(last, 0, -1)
  is_event = recent >= first[:, None]
  recent = np.where(is_event, recent, 0)
  result = np.zeros((len(users), last, len(ROLE_NAMES)))
  for part, reader, rows in follow(world, log, users, timestamps):
    told = None if categories is None else categories[part]
    drawn, bought = _draw(world, reader, rows, timestamps[part], told, draws, rng)
    many = np.repeat(part, draws)
    past, owner = ranges(first[many], end[many] - first[many])
    pairs = Pairs(
      users=np.arange(len(many)),
      times=timestamps[many],
      bought=bought,
      items=np.where(is_event[many], item[recent[many]], -1),
      codes=code[recent[many]],
      event_times=time[recent[many]],
      contacts=contacts[recent[many]],
      past=(owner, item[past], code[past], time[past]),
    )
    role, _ = roles_and_effects(drawn, pairs)
    counted = (role[..., None] == np.arange(len(ROLE_NAMES))).reshape(len(part), draws, last, -1)
    result[part] = counted.mean(1) * is_event[part][..., None]
  return result


def _draw(
  world: ContextWorld,
  reader: Reader,
  rows: np.ndarray,
  timestamps: np.ndarray,
  categories: np.ndarray | None,
  draws: int,
  rng: np.random.Generator,
) -> tuple[ContextWorld, np.ndarray]:
  """Draw whom each of `rows` [A] may be and what is bought: (a world of A * D users, [A * D])."""
  posterior, share = reader.buyers(rows, timestamps)
  if categories is not None:
    told = share[np.arange(len(rows)), :, :, categories]
    posterior = posterior * told[..., None]
  shape, many = posterior.shape[1:], np.repeat(np.arange(len(rows)), draws)
  flat = posterior.reshape(len(rows), -1)
  chosen = choose(flat[many], rng.random(len(many)))
  persona, favorite, taste = np.unravel_index(chosen, shape)
  traits = dataclasses.replace(
    world.traits,
    persona_U=persona,
    favorite_U=favorite,
    taste_U=taste,
    rate_U=world.traits.rate_U[reader.state.users[rows]][many],
  )
  drawn = dataclasses.replace(world, traits=traits)
  if categories is None:
    category = choose(share[many, persona, favorite], rng.random(len(many)))
  else:
    category = categories[many]
  contacts = world.contacts(reader.state.rows(rows), timestamps)
  within = world.choice_shares(contacts[many, category], category, taste)
  return drawn, world.items_CxM[category, choose(within, rng.random(len(many)))]
