"""Whom a history of the context simulator may be of, and what that shopper may buy.

A moments at once, D draws of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from rolegen_jax.simulator.behavior import choose
from rolegen_jax.simulator.context.inference import Reader, follow
from rolegen_jax.simulator.context.world import ContextWorld
from rolegen_jax.simulator.histories import Moments


def draw_purchases(
  world: ContextWorld, moments: Moments, draws: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, ContextWorld, np.ndarray, np.ndarray]]:
  """Draw what is bought at moments [O], and who buys, by what the histories tell.

  Yields, for some moments at a time, (which [A], a world in which each draw is a shopper,
  those shoppers [A * D], what they buy [A * D]), the draws of a moment side by side.
  """
  for part, reader, rows in follow(world, moments.log, moments.users, moments.timestamps):
    told = None if moments.categories is None else moments.categories[part]
    drawn, bought = _draw(world, reader, rows, moments.timestamps[part], told, draws, rng)
    yield part, drawn, np.arange(len(bought)), bought


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
