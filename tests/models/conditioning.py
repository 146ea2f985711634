"""What a reasoner may say to the tiny backbone, in numpy, with every part given."""

import numpy as np

from rolegen_jax.models.memory import Candidates, Conditioning, RetrievedShares
from rolegen_jax.models.numerics import NEG_INF
from tests import tiny

NEUTRAL = Conditioning(
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
  shares = RetrievedShares(*tiny.retrieved(items, seed))
  intent = np.log(rng.dirichlet(np.ones(tiny.CODES), tiny.USERS)).astype(np.float32)
  return Conditioning(candidates, shares, intent)
