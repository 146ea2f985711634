"""Lists without what the history holds: by brute force, and for every system alike."""

import numpy as np
import pytest

from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import baselines
from rolegen_jax.pipeline.evaluation import ALL_BASELINES
from rolegen_jax.serving import history_filter
from rolegen_jax.serving.history_filter import held_items, without, without_history
from tests.evaluation import tiny_log
from tests.evaluation.test_counting import ITEMS, random_log
from tests.evaluation.test_sasrec import config

FEW_STEPS = config(steps=2)


@pytest.fixture(scope='module')
def shop():
  """(log, occasions, test rows); nobody's context holds the whole catalogue."""
  rng = np.random.default_rng(0)
  rows = [(u, (u + int(rng.integers(5))) % ITEMS, 'view', d) for u in range(40) for d in range(11)]
  rows += [(u, (3 * u + d) % ITEMS, 'purchase', 20 + u + d) for u in range(40) for d in range(2)]
  log, occasions = tiny_log.make(rows, ITEMS)
  return log, occasions, baselines.evaluation_rows(log, occasions, TEST)


def contexts(log, occasions, rows) -> list[set[int]]:
  """The items of every strict context, event by event."""
  return [
    {
      int(item)
      for item, user, time in zip(log.item, log.user, log.timestamp)
      if user == occasions.user[row] and time < occasions.timestamp[row]
    }
    for row in rows
  ]


def test_histories_are_whole_strict_contexts(shop):
  log, occasions, rows = shop
  held = held_items(log, occasions.user[rows], occasions.context_end[rows])
  want = contexts(log, occasions, rows)
  assert [set(np.flatnonzero(row)) for row in held.toarray()] == want and any(want)


def test_what_is_left_moves_up_in_order_and_ends_in_empty_slots():
  item = np.array([[4, 7, 2, 9], [1, -1, -1, -1], [5, 6, 7, 8]])
  score = -np.arange(12, dtype=np.float32).reshape(3, 4)
  drop = np.array([[True, False, True, False], [True] * 4, [False] * 4])
  items, scores = without(item, score, drop)
  assert items.tolist() == [[7, 9, -1, -1], [-1] * 4, [5, 6, 7, 8]]
  inf = float('inf')
  assert scores.tolist() == [[-1, -3, -inf, -inf], [-inf] * 4, [-8, -9, -10, -11]]
  assert scores.dtype == np.float32


def test_lists_of_models_are_filtered_by_their_contexts(shop, monkeypatch):
  monkeypatch.setattr(history_filter, '_CHUNK', 3)  # the last chunk is shorter
  log, occasions, rows = shop
  rng = np.random.default_rng(1)
  item = np.stack([rng.permutation(ITEMS)[:6] for _ in rows])
  user, end = occasions.user[rows], occasions.context_end[rows]
  got, _ = without_history(item, np.zeros(item.shape), log, user, end)
  want = [
    [i for i in row if i not in held] for row, held in zip(item, contexts(log, occasions, rows))
  ]
  assert [[i for i in row if i >= 0] for row in got.tolist()] == want
  assert any(len(row) < 6 for row in want)


def lists_of(name: str, known, rows, k: int) -> np.ndarray:
  return ALL_BASELINES[name](known, rows, k).items


@pytest.mark.parametrize('name', ALL_BASELINES)
def test_baselines_bar_the_history_and_keep_their_lists_full(shop, name):
  log, occasions, rows = shop
  k = 3
  plain, filtered = (
    lists_of(name, tiny_log.inputs(log, occasions, FEW_STEPS, bars_history=bars), rows, k)
    for bars in (False, True)
  )
  held = contexts(log, occasions, rows)
  assert all(ITEMS - len(items) >= k for items in held)
  assert not any(set(row) & items for row, items in zip(filtered, held))
  assert (filtered >= 0).all() and all(len(set(row)) == k for row in filtered.tolist())
  if name in ('popularity', 'recency'):
    assert any(set(row) & items for row, items in zip(plain, held))


@pytest.mark.parametrize('name', ALL_BASELINES)
def test_a_catalogue_smaller_than_the_list_ends_in_empty_slots(name):
  """Lists of 20 of nine items, some of them barred: no crash, each item once, then -1."""
  log, occasions = random_log(users=20)
  rows = baselines.evaluation_rows(log, occasions, TEST)
  for bars in (False, True):
    items = lists_of(name, tiny_log.inputs(log, occasions, FEW_STEPS, bars_history=bars), rows, 20)
    held = contexts(log, occasions, rows)
    assert items.shape == (len(rows), 20)
    for row, barred in zip(items.tolist(), held):
      listed = [i for i in row if i >= 0]
      assert row == listed + [-1] * (20 - len(listed)) and len(set(listed)) == len(listed)
      assert set(listed) == set(range(ITEMS)) - (barred if bars else set())
