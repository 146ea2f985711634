"""Single occasions of a simulated log."""

import numpy as np
import polars as pl


def occasion(log, number):
  """Return (user, time, bought item, earlier events of the user) of one planted occasion."""
  occasions = log.planted.select('user_id', 'occasion_timestamp').unique()
  user, time = occasions.sort('user_id', 'occasion_timestamp').row(number)
  mine = log.events.filter(pl.col('user_id') == user)
  bought = mine.filter(pl.col('timestamp') == time)['item_id'].item()
  return user, time, bought, mine.filter(pl.col('timestamp') < time)


def log_p(log, user, time, history):
  """Return log p(item | the user buys at `time`, history), [I]."""
  return log.world.log_p_conversion(log.world.state(history, np.array([user])), np.array([time]))[0]
