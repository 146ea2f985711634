"""Small random logs with many ties, for tests against plain-Python references."""

import numpy as np
import polars as pl

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.events import validate

DAY = 86_400


def random_tables(
  seed: int,
  rows: int = 1500,
  users: int = 25,
  items: int = 12,
  days: int = 90,
  text_ids: bool = False,
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Return validated (events, items) at day resolution.

  The last four users never buy; a few rows repeat.
  """
  rng = np.random.default_rng(seed)
  user = rng.integers(0, users, rows)
  event = rng.choice(EVENT_NAMES, rows, p=[0.1, 0.75, 0.03, 0.03, 0.02, 0.07])
  event = np.where((user >= users - 4) & (event == 'purchase'), 'view', event)
  events = pl.DataFrame(
    {
      'user_id': user * 10,
      'item_id': rng.integers(0, items, rows) * 7,
      'event': event,
      'timestamp': (rng.integers(1, days, rows) + 15_000) * DAY,
    }
  )
  catalogue = pl.DataFrame({'item_id': rng.permutation(items + 1) * 7}).with_columns(
    title=pl.col('item_id').cast(pl.String)
  )
  if text_ids:
    text_item = pl.col('item_id').cast(pl.String)
    events, catalogue = events.with_columns(text_item), catalogue.with_columns(text_item)
    events = events.with_columns('u' + pl.col('user_id').cast(pl.String))
  return validate(events, catalogue)
