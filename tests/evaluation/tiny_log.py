"""A log small enough to check by hand: item i is 'item i', day d is (d + 1) * 86400 s."""

import polars as pl

from rolegen_jax.config import DataConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions

DAY = 86_400


def make(rows, items: int, **data):
  """(log, occasions) of rows (user, item, event, day)."""
  columns = zip(*[(u, i, e, int((d + 1) * DAY)) for u, i, e, d in rows])
  events = pl.DataFrame(dict(zip(('user_id', 'item_id', 'event', 'timestamp'), columns)))
  log = InteractionLog.build(*validate(events, pl.DataFrame({'item_id': range(items)})))
  return log, find_occasions(log, DataConfig(**data))
