"""Conditionings of the tiny backbone, in numpy, with every part given."""

import numpy as np

from rolegen_jax.models.memory import Candidates, Conditioning, RetrievedShares
from rolegen_jax.models.numerics import NEG_INF
from tests import tiny

ROLES = 4  # events that get a role

NEUTRAL = Conditioning(
  roles=np.full((tiny.USERS, ROLES), -1, np.int32),
  candidates=Candidates(
    item=np.full((tiny.USERS, 3), -1, np.int32),
    world=np.zeros((tiny.USERS, 3), np.int32),
    log_prob=np.zeros((tiny.USERS, 3), np.float32),
  ),
  retrieved=RetrievedShares(
    item=np.full((tiny.USERS, tiny.RETRIEVED), -1, np.int32),
    share=np.zeros((tiny.USERS, tiny.RETRIEVED), np.float32),
  ),
  intent=np.full((tiny.USERS, tiny.CODES), NEG_INF, np.float32),
)


def random(seed: int = 0, items: int = tiny.ITEMS) -> Conditioning:
  """Parts that all say something."""
  rng = np.random.default_rng(seed)
  shape = NEUTRAL.candidates.item.shape
  candidates = Candidates(
    item=rng.integers(0, items, shape).astype(np.int32),
    world=rng.integers(0, tiny.WORLDS, shape).astype(np.int32),
    log_prob=-rng.exponential(size=shape).astype(np.float32),
  )
  return Conditioning(
    roles=rng.integers(0, 8, NEUTRAL.roles.shape).astype(np.int32),
    candidates=candidates,
    retrieved=retrieved(items, seed),
    intent=intent(rng),
  )


def retrieved(items: int = tiny.ITEMS, seed: int = 0) -> RetrievedShares:
  return RetrievedShares(*tiny.retrieved(items, seed))


def intent(rng: np.random.Generator) -> np.ndarray:
  """Log-probabilities of coarse codes for every user."""
  return np.log(rng.dirichlet(np.ones(tiny.CODES), tiny.USERS)).astype(np.float32)
