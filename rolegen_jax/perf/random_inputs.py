"""Random examples and catalogues of the right shapes, for timing without a log."""

from __future__ import annotations

import numpy as np

from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.features.attributes import PER_ITEM
from rolegen_jax.features.trending import NO_MORE, Trending

DAYS = 365  # of a log that stands for others


def random_codes(config: Config, items: int) -> np.ndarray:
  """Return distinct codes int32 [items, L]. Raises ConfigError when there are fewer IDs."""
  levels, codes = config.semantic_ids.levels, config.semantic_ids.codes
  n_ids = codes**levels
  if items > n_ids:
    raise ConfigError(f'--items={items}: must be at most semantic_ids.codes ** levels = {n_ids}')
  if n_ids <= 1 << 24:
    ids = np.random.default_rng(0).permutation(n_ids)[:items]
  else:
    ids = np.arange(items) * (n_ids // items)
  return (ids[:, None] // codes ** np.arange(levels)[::-1] % codes).astype(np.int32)


def random_trending(config: Config, items: int) -> Trending | None:
  """Return what is trending on each of the DAYS before the examples, if that expert is on."""
  if 'trending' not in config.backbone.experts:
    return None
  width = config.backbone.trending
  item, share = np.full(width, NO_MORE, np.int32), np.zeros(width, np.float32)
  listed = min(width, items)
  item[:listed], share[:listed] = np.arange(listed) * (items // listed), 1 / listed
  return Trending(
    np.arange(DAYS, dtype=np.int32), np.tile(item, (DAYS, 1)), np.tile(share, (DAYS, 1))
  )


def random_examples(config: Config, users: int, items: int) -> Examples:
  """Return examples of `users` over a catalogue of `items`, every history full."""
  rng, n, reasoner = np.random.default_rng(0), config.backbone.context, config.reasoner

  def draw(high: int, *shape: int) -> np.ndarray:
    return rng.integers(0, high, (users, *shape)).astype(np.int32)

  time_Bxn = np.sort(draw(86_400 * 90, n), axis=1)
  history = Trajectories(
    item=draw(items, n),
    event=1 + draw(5, n),
    count=np.ones((users, n), np.int32),
    timestamp=time_Bxn,
    segment=np.ones((users, n), np.int32),
  )
  weight, shift = rng.random((2, users, n, reasoner.coarse_codes), np.float32)
  next_item = draw(items, n, reasoner.transitions)
  share = 0.1 * rng.random((users, n, reasoner.transitions), np.float32)
  code = draw(config.semantic_ids.codes, n, reasoner.coarse_codes)
  attribute = draw(reasoner.attributes, n, PER_ITEM) if reasoner.kinds else None
  return Examples(
    history=history,
    timestamp=time_Bxn[:, -1] + 86_400,
    excites=Excites(code, weight, 0.1 * shift - 0.05, next_item, share, attribute),
    target=draw(items),
    roles=draw(7, reasoner.role_events),
    path=draw(items, reasoner.candidates),
  )
