"""A tiny RoleGen for the tests: eight codes a level, width 32, 60 items. Random parameters are drawn on the host: nothing compiles."""

import functools

import jax
import numpy as np

from rolegen_jax import overrides
from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, Config
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.models import functional
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import Trie, build_trie

CODES, LEVELS, ITEMS = 8, 3, 60
USERS, WORLDS, WIDTH = 8, 4, 16
DAY, NOW = 86_400, 1_400_000_000
PURCHASE, CONVERT = EVENT_NAMES.index('purchase'), ROLE_NAMES.index('CONVERT')
SIZES = ('layers=2', 'width=32', 'heads=4', 'kv_heads=2', 'head_dim=8', 'mlp=48')


def config(*assignments: str) -> Config:
  sizes = [
    f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in SIZES
  ]
  rest = [
    f'semantic_ids.codes={CODES}',
    f'backbone.context={WIDTH}',
    'reasoner.events=6',
    'reasoner.role_events=4',
    f'loop.worlds={WORLDS}',
  ]
  return overrides.apply(Config(), sizes + rest + list(assignments))


@functools.cache
def rolegen(*assignments: str) -> RoleGen:
  return RoleGen(config(*assignments))


def random_params(make, seed: int = 0):
  """Parameters of the module that `make(rngs)` builds, all of them away from their initial zeros and ones."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    mean = 1.0 if 'scale' in jax.tree_util.keystr(path) else 0.0
    return (mean + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, functional.abstract(make)[1])


@functools.cache
def params(name: str, seed: int = 0):
  return random_params(rolegen().model_fns[name], seed)


def codes(items: int = ITEMS, seed: int = 0) -> np.ndarray:
  """Distinct random IDs, int32 [items, LEVELS]."""
  ids = np.random.default_rng(seed).choice(CODES**LEVELS, items, replace=False)
  return (ids[:, None] // CODES ** np.arange(LEVELS)[::-1] % CODES).astype(np.int32)


def trie(items: int = ITEMS, seed: int = 0, allowed: np.ndarray | None = None) -> Trie:
  return build_trie(codes(items, seed), CODES, capacity=64, allowed=allowed)


def histories(rng: np.random.Generator, users: int = USERS, items: int = ITEMS) -> Trajectories:
  """Right-aligned histories of 5 to 16 events on few days, so that many timestamps tie; a third of the events are purchases."""
  real = np.arange(WIDTH) >= WIDTH - rng.integers(5, WIDTH + 1, (users, 1))
  time = NOW - DAY * (1 + np.cumsum(rng.integers(0, 3, (users, WIDTH)), axis=1)[:, ::-1])
  keep = lambda a, fill: np.where(real, a, fill).astype(np.int32)
  return Trajectories(
    keep(rng.integers(0, items, real.shape), -1),
    keep(rng.choice([1, 3, PURCHASE], real.shape), 0),
    keep(rng.integers(1, 4, real.shape), 0),
    keep(time, 0),
    real.astype(np.int32),
  )


NO_RETRIEVED = np.full((USERS, 4), -1, np.int32), np.zeros((USERS, 4), np.float32)


def retrieved(items: int = ITEMS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Four items that each user's history calls for, and their shares."""
  rng = np.random.default_rng(seed)
  item = np.stack([rng.choice(items, 4, replace=False) for _ in range(USERS)]).astype(np.int32)
  return item, rng.dirichlet(np.ones(4), USERS).astype(np.float32)


def examples(seed: int = 0, users: int = USERS, items: int = ITEMS) -> Examples:
  """Occasions at NOW, with roles that fit the events and paths that begin with the target."""
  rng = np.random.default_rng(seed)
  c, history = config().reasoner, histories(rng, users, items)
  last = (slice(None), slice(-c.role_events, None))
  roles = np.where(
    history.event[last] == PURCHASE, CONVERT, rng.integers(0, CONVERT, history.event[last].shape)
  )
  target = rng.integers(0, items, users).astype(np.int32)
  path = np.concatenate(
    [target[:, None], rng.integers(-1, items, (users, c.candidates - 1))], axis=1
  )
  known = (history.item >= 0)[..., None]
  share = lambda low, high: (rng.uniform(low, high, (users, WIDTH, 3)) * known).astype(np.float32)
  code, follower = (
    rng.integers(0, high, (users, WIDTH, 3)).astype(np.int32) for high in (CODES, items)
  )
  excites = Excites(code, share(0, 1), share(-0.2, 0.2), follower, share(0, 0.2))
  return Examples(
    history,
    np.full(users, NOW, np.int32),
    excites,
    target,
    np.where(history.segment[last] > 0, roles, -1).astype(np.int32),
    path.astype(np.int32),
  )
