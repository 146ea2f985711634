import numpy as np
import pytest

from rolegen_jax.config import DataConfig, ReasonerConfig
from rolegen_jax.data.aftermath import Aftermath
from rolegen_jax.data.cases import training_cases
from rolegen_jax.data.excitation import Excitation
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import TRAIN, find_occasions
from rolegen_jax.data.successors import followed
from tests.data import random_logs


@pytest.fixture(scope='module')
def table():
  log = InteractionLog.build(*random_logs.random_tables(0))
  occasions = find_occasions(log, DataConfig())
  none = np.zeros(len(log.items), np.int32)
  end = occasions.train_end(log)
  excitation = Excitation.of_counts(Aftermath.of(log, end, none, 2), followed(log, end), ReasonerConfig(neighbourhoods=1))
  return log, occasions, training_cases(log, occasions, 4, 3, excitation)


def test_every_training_target_with_a_context_is_a_case(table):
  log, occasions, cases = table
  usable = (occasions.split == TRAIN) & (occasions.context_end > log.offsets[occasions.user])
  assert len(cases) == np.diff(occasions.target_offsets)[usable].sum() > 20
  np.testing.assert_array_equal(cases.path[:, 0], cases.target)
  assert (log.timestamp[cases.end - 1] < cases.timestamp).all()  # the context ends before


def test_paths_hold_distinct_later_training_items(table):
  log, occasions, cases = table
  ends = occasions.train_end(log)
  for i in range(len(cases)):
    path = cases.path[i][cases.path[i] >= 0]
    assert len(set(path)) == len(path) and set(path) <= set(log.item[cases.end[i]:ends[cases.user[i]]])


def test_evenly_keeps_rows_whole_and_first_and_last(table):
  *_, cases = table
  few = cases.evenly(7)
  assert len(few) == 7 and cases.evenly(0) is cases and cases.evenly(len(cases)) is cases
  whole = {(u, t, y) for u, t, y in zip(cases.user, cases.timestamp, cases.target)}
  assert {(u, t, y) for u, t, y in zip(few.user, few.timestamp, few.target)} <= whole
  assert few.target[0] == cases.target[0] and few.target[-1] == cases.target[-1]
  assert few.rows(np.arange(7), 8).history.item.shape == (7, 8)
