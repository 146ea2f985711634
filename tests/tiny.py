"""A tiny RoleGen for the tests: eight codes a level, width 32, 60 items.

Random parameters are drawn on the host, so nothing compiles.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rolegen_jax import overrides
from rolegen_jax.config import EVENT_NAMES, INTERVENTIONS, ROLE_NAMES, Config
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.features.trending import NO_MORE, Trending
from rolegen_jax.models import functional
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import Trie, build_trie

CODES, LEVELS, ITEMS, CAPACITY = 8, 3, 60, 64
USERS, WORLDS, WIDTH = 8, 4, 16
RETRIEVED = 4  # items that a history retrieves
DAY, NOW = 86_400, 1_400_000_000
PURCHASE, CONVERT = EVENT_NAMES.index('purchase'), ROLE_NAMES.index('CONVERT')
SIZES = ('layers=2', 'width=32', 'heads=4', 'kv_heads=2', 'head_dim=8', 'mlp=48')


def config(*assignments: str) -> Config:
  """The tiny config, with `assignments` of the form section.field=value."""
  models = ('backbone.temporal', 'reasoner.transformer')
  sizes = [f'{model}.{size}' for model in models for size in SIZES]
  others = [
    f'semantic_ids.codes={CODES}',
    f'backbone.context={WIDTH}',
    'reasoner.events=6',
    'reasoner.role_events=4',
    f'loop.worlds={WORLDS}',
    f'loop.interventions={INTERVENTIONS}',
  ]
  return overrides.apply(Config(), [*sizes, *others, *assignments])


@functools.cache
def rolegen(*assignments: str) -> RoleGen:
  """Both models of the tiny config."""
  return RoleGen(config(*assignments), CAPACITY)


def random_params(model_fn: functional.ModelFn, seed: int = 0) -> dict[str, Any]:
  """Parameters of a model, all of them away from their initial zeros and ones."""
  rng = np.random.default_rng(seed)

  def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name = jax.tree_util.keystr(path)
    mean = 1.0 if 'scale' in name or 'language' in name else 0.0
    return (mean + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, functional.abstract(model_fn)[1])


@functools.cache
def params(name: str, seed: int = 0) -> dict[str, Any]:
  """Random parameters of the backbone or the reasoner."""
  return random_params(rolegen().model_fns[name], seed)


def codes(items: int = ITEMS, seed: int = 0) -> np.ndarray:
  """Distinct random semantic IDs, int32 [items, LEVELS]."""
  ids = np.random.default_rng(seed).choice(CODES**LEVELS, items, replace=False)
  return (ids[:, None] // CODES ** np.arange(LEVELS)[::-1] % CODES).astype(np.int32)


def trie(items: int = ITEMS, seed: int = 0, allowed: np.ndarray | None = None) -> Trie:
  """The catalogue of `codes`, or of its `allowed` items."""
  trie = build_trie(codes(items, seed), CODES, capacity=CAPACITY, allowed=allowed)
  return dataclasses.replace(trie, trending=trending(items))


def histories(rng: np.random.Generator, users: int = USERS, items: int = ITEMS) -> Trajectories:
  """Right-aligned histories of 5 to 16 events on few days, so that many timestamps tie.

  A third of the events are purchases.
  """
  real = np.arange(WIDTH) >= WIDTH - rng.integers(5, WIDTH + 1, (users, 1))
  days_ago = 1 + np.cumsum(rng.integers(0, 3, (users, WIDTH)), axis=1)[:, ::-1]

  def padded(field: np.ndarray, padding: int) -> np.ndarray:
    return np.where(real, field, padding).astype(np.int32)

  return Trajectories(
    item=padded(rng.integers(0, items, real.shape), -1),
    event=padded(rng.choice([1, 3, PURCHASE], real.shape), 0),
    count=padded(rng.integers(1, 4, real.shape), 0),
    timestamp=padded(NOW - DAY * days_ago, 0),
    segment=real.astype(np.int32),
  )


def retrieved(items: int = ITEMS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """The items that each user's history retrieves, and their shares, [USERS, RETRIEVED] each."""
  rng = np.random.default_rng(seed)
  item = np.stack([rng.choice(items, RETRIEVED, replace=False) for _ in range(USERS)])
  share = rng.dirichlet(np.ones(RETRIEVED), USERS)
  return item.astype(np.int32), share.astype(np.float32)


def examples(seed: int = 0, users: int = USERS, items: int = ITEMS) -> Examples:
  """Occasions at NOW, with roles that fit the events and paths that begin with the target."""
  rng = np.random.default_rng(seed)
  c, history = config().reasoner, histories(rng, users, items)
  last = (slice(None), slice(-c.role_events, None))
  is_purchase = history.event[last] == PURCHASE
  roles = np.where(is_purchase, CONVERT, rng.integers(0, CONVERT, is_purchase.shape))
  target = rng.integers(0, items, users).astype(np.int32)
  others = rng.integers(-1, items, (users, c.candidates - 1))
  path = np.concatenate([target[:, None], others], axis=1)
  is_event = (history.item >= 0)[..., None]

  def share(low: float, high: float) -> np.ndarray:
    return (rng.uniform(low, high, (users, WIDTH, 3)) * is_event).astype(np.float32)

  def number(high: int) -> np.ndarray:
    return rng.integers(0, high, (users, WIDTH, 3)).astype(np.int32)

  code, next_item = number(CODES), number(items)
  return Examples(
    history=history,
    timestamp=np.full(users, NOW, np.int32),
    excites=Excites(code, share(0, 1), share(-0.2, 0.2), next_item, share(0, 0.2)),
    target=target,
    roles=np.where(history.segment[last] > 0, roles, -1).astype(np.int32),
    path=path.astype(np.int32),
  )


def trending(items: int = ITEMS, width: int = 6) -> Trending:
  """What is trending on the day of NOW and the two days before it."""
  rng, days, listed = np.random.default_rng(5), 3, min(width, items)
  item = np.full((days, width), NO_MORE, np.int32)
  item[:, :listed] = [np.sort(rng.choice(items, listed, replace=False)) for _ in range(days)]
  share = np.where(item < NO_MORE, rng.dirichlet(np.ones(2 * width), days)[:, :width], 0)
  day = np.arange(NOW // DAY - days + 1, NOW // DAY + 1, dtype=np.int32)
  return Trending(day, item, share.astype(np.float32))
