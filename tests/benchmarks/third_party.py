"""Tiny sequences, IDs and models for the tests of the third-party benchmarks."""

import numpy as np
import polars as pl
import pytest

from experiments.benchmarks import beauty, third_party_models
from rolegen_jax.config import DataConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from tests import tiny

USERS, BEAMS = 40, 12
SMALL = dict(d_model=16, d_ff=32, d_kv=8, num_heads=2)
OVERRIDES = ('warmup.optimizer.warmup_steps=1', 'warmup.optimizer.learning_rate=0.01')


def sequences() -> beauty.Sequences:
  """Return sequences of 4 to 30 purchases; item i is mostly followed by i + 1."""
  rng = np.random.default_rng(0)
  rows = []
  for user in range(USERS):
    item = rng.integers(tiny.ITEMS)
    for rank in range(rng.integers(4, 31)):
      rows.append((user, item, 'purchase', rank + 1))
      item = (item + 1) % tiny.ITEMS if rng.random() < 0.9 else rng.integers(tiny.ITEMS)
  names = ('user_id', 'item_id', 'event', 'timestamp')
  events = pl.DataFrame(dict(zip(names, map(list, zip(*rows)))))
  log = InteractionLog.build(*validate(events, pl.DataFrame({'item_id': range(tiny.ITEMS)})))
  return beauty.Sequences(log, find_occasions(log, DataConfig(split='leave_one_out')))


def codes() -> np.ndarray:
  """Return IDs of three codes of which the last distinguishes, int32 [60, 3]."""
  random = np.random.default_rng(1).integers(0, tiny.CODES, (tiny.ITEMS, 2)).astype(np.int32)
  return beauty.distinct(random, tiny.CODES)


def ours(data: beauty.Sequences, batch: int = 8) -> beauty.Ours:
  return beauty.Ours(data, codes(), tiny.config(*OVERRIDES), batch)


def hugging_face(data: beauty.Sequences, batch: int = 16, cycle: int = 1):
  """Return a T5 of one layer; skip the test where transformers is not installed."""
  pytest.importorskip('transformers')
  layers = dict(num_layers=1, num_decoder_layers=1, codes_per_level=tiny.CODES, learning_rate=0.01)
  return third_party_models.HuggingFace(data, codes(), batch, cycle=cycle, **layers, **SMALL)


def cornac(data: beauty.Sequences, batch: int = 16):
  """Return a TIGER of one layer; skip the test where cornac is not installed."""
  pytest.importorskip('cornac')
  layers = dict(num_enc_layers=1, num_dec_layers=1, codes_per_level=tiny.CODES, learning_rate=0.01)
  return third_party_models.Cornac(data, codes(), batch, **layers, **SMALL)
