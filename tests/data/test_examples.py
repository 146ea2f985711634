"""Training examples: one per target with a context, and paths of later training items."""

import numpy as np
import pytest

from rolegen_jax.config import DataConfig, ReasonerConfig
from rolegen_jax.data.examples import training_examples
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, find_occasions
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel, Transitions
from tests.data import random_logs


@pytest.fixture(scope='module')
def table():
  log = InteractionLog.build(*random_logs.random_tables(0))
  occasions = find_occasions(log, DataConfig())
  one_code = np.zeros(len(log.items), np.int32)
  end = occasions.train_end(log)
  shift = InterestShift.of(log, end, one_code, 2)
  excitation = Excitation.of_counts(
    shift, Transitions.of(log, end, Kernel()), ReasonerConfig(coarse_codes=1)
  )
  return log, occasions, training_examples(log, occasions, 4, 3, excitation)


def test_every_training_target_with_a_context_is_an_example(table):
  log, occasions, examples = table
  usable = (occasions.split == TRAIN) & (occasions.context_end > log.offsets[occasions.user])
  assert len(examples) == np.diff(occasions.target_offsets)[usable].sum() > 20
  np.testing.assert_array_equal(examples.path[:, 0], examples.target)
  assert (log.timestamp[examples.end - 1] < examples.timestamp).all()  # the context ends before


def test_paths_hold_distinct_later_training_items(table):
  log, occasions, examples = table
  ends = occasions.train_end(log)
  for i in range(len(examples)):
    path = examples.path[i][examples.path[i] >= 0]
    later_items = log.item[examples.end[i] : ends[examples.user[i]]]
    assert len(set(path)) == len(path) and set(path) <= set(later_items)


def test_evenly_keeps_full_rows_with_the_first_and_the_last(table):
  *_, examples = table
  few = examples.evenly(7)
  assert len(few) == 7
  assert examples.evenly(0) is examples and examples.evenly(len(examples)) is examples
  all_rows = set(zip(examples.user, examples.timestamp, examples.target))
  assert set(zip(few.user, few.timestamp, few.target)) <= all_rows
  assert few.target[0] == examples.target[0] and few.target[-1] == examples.target[-1]
  assert few.rows(np.arange(7), 8).history.item.shape == (7, 8)
