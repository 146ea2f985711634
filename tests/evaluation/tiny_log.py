"""A log small enough to check by hand: item i is 'item i', day d is (d + 1) * 86400 s."""

import numpy as np
import polars as pl

from rolegen_jax.config import Config, DataConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions, find_occasions
from rolegen_jax.evaluation.baselines import BaselineInputs
from rolegen_jax.evaluation.choices import Choices
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel

DAY = 86_400


def make(rows, items: int, **data):
  """(log, occasions) of rows (user, item, event, day)."""
  columns = zip(*[(u, i, e, int((d + 1) * DAY)) for u, i, e, d in rows])
  events = pl.DataFrame(dict(zip(('user_id', 'item_id', 'event', 'timestamp'), columns)))
  log = InteractionLog.build(*validate(events, pl.DataFrame({'item_id': range(items)})))
  return log, find_occasions(log, DataConfig(**data))


def inputs(
  log: InteractionLog,
  occasions: Occasions,
  config: Config = Config(),
  coarse: np.ndarray | None = None,
  kernel: Kernel = Kernel(),
  bars_history: bool = False,
  half_life: float = 0.0,
) -> BaselineInputs:
  """What the baselines read; coarse codes [I] are item % 2 unless given, and nothing trends."""
  coarse = np.arange(len(log.items)) % 2 if coarse is None else coarse
  shift = InterestShift.of(log, occasions.train_end(log), coarse, int(coarse.max()) + 1)
  choices = Choices(kernel, kernel, bars_history, {}, trending=half_life)
  trends = choices.trending_in(log, config.backbone.trending)
  return BaselineInputs(log, occasions, shift, config, kernel, bars_history, trends)
