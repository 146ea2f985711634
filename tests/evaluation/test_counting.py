"""Counting alone: the score against a direct computation, its grid, and wide catalogues."""

import dataclasses
import functools
import time
import tracemalloc

import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES, Config
from rolegen_jax.data.batches import histories
from rolegen_jax.data.occasions import TEST
from rolegen_jax.evaluation import baselines, ranking
from rolegen_jax.features.excitation import strongest_codes
from rolegen_jax.models import intent
from rolegen_jax.models.evidence import PURCHASE
from tests.evaluation import tiny_log

ITEMS, CODES = 9, 3
TAU, WEIGHT, POWER = 5 * 86_400.0, 0.3, 2.0


def random_log(users: int = 30, items: int = ITEMS, seed: int = 0):
  """Views, carts and purchases of 20 events a user, and a purchase late in the log."""
  rng = np.random.default_rng(seed)
  rows = [
    (u, int(rng.integers(items)), str(rng.choice(['view', 'cart', 'purchase'])), float(day))
    for u in range(users)
    for day in np.sort(rng.choice(80, 20, replace=False))
  ]
  return tiny_log.make(rows + [(u, u % items, 'purchase', 81 + u / 2) for u in range(users)], items)


@pytest.fixture(scope='module')
def known():
  log, occasions = random_log()
  return tiny_log.inputs(log, occasions, coarse=np.arange(ITEMS) % CODES)


def direct_score(known, row: int) -> np.ndarray:
  """The score of every item for one occasion, event by event, as the docstrings state it."""
  log, occasions, shift = known.log, known.occasions, known.shift
  code, weight, moved = strongest_codes(*shift.total, shift.coarse, CODES)
  table, kernel = known.transitions.toarray(), known.kernel
  turned_to, excited, damped = np.zeros(ITEMS), np.full(CODES, intent.BASE / CODES), np.zeros(CODES)
  end = occasions.context_end[row]
  first = max(log.offsets[occasions.user[row]], end - baselines.TRANSITION_CONTEXT)
  for event in range(first, end):
    item, name = log.item[event], EVENT_NAMES[log.event[event]]
    fade = np.exp(-(occasions.timestamp[row] - log.timestamp[event]) / TAU)
    turned_to += kernel.step ** (end - 1 - event) * table[item]
    gain = fade * np.exp(intent.EVENT_GAIN[name])
    for k, w, s in zip(code[item], weight[item], moved[item]):
      excited[k] += gain * (w + intent.OPENS * max(s, 0))
      damped[k] += fade * -intent.DRAWS * min(s, 0)
    if name == 'purchase':
      damped[shift.coarse[item]] += fade * intent.SATISFIES
  train = np.flatnonzero(np.arange(len(log.item)) < occasions.train_end(log)[log.user])
  times = log.count[train] * np.where(log.event[train] == PURCHASE, 5.0, 1.0)
  events = np.bincount(log.item[train], times, ITEMS)
  share = (excited * np.exp(-damped)) ** POWER
  share /= share.sum()
  of_code = np.array(
    [
      share[shift.coarse[j]] * events[j] / events[shift.coarse == shift.coarse[j]].sum()
      for j in range(ITEMS)
    ]
  )
  return (WEIGHT * turned_to / turned_to.sum() + of_code) / (WEIGHT + 1)


def scores(known, rows: np.ndarray) -> np.ndarray:
  occasions = known.occasions
  window = histories(
    known.log, occasions.user[rows], occasions.context_end[rows], baselines.TRANSITION_CONTEXT
  )
  return known.counting.scores(window, occasions.timestamp[rows], TAU, WEIGHT, POWER)


def score_of(known):
  settings = dict(tau=TAU, transitions=WEIGHT, power=POWER)
  return functools.partial(baselines.counting_scores, known, **settings)


def test_the_score_is_the_stated_one_and_sums_to_one(known):
  rows = baselines.evaluation_rows(known.log, known.occasions, TEST)
  got = scores(known, rows)
  np.testing.assert_allclose(got, [direct_score(known, row) for row in rows], rtol=1e-6)
  np.testing.assert_allclose(got.sum(1), 1)


def test_lists_are_the_highest_scores_and_settings_are_chosen(known):
  rows = baselines.evaluation_rows(known.log, known.occasions, TEST)
  lists = ranking.lists(rows, score_of(known), known.popular, ITEMS)
  ranked = np.take_along_axis(scores(known, rows), lists, axis=1)
  assert (np.diff(ranked, axis=1) <= 0).all() and (np.sort(lists, 1) == np.arange(ITEMS)).all()
  chosen = baselines.BASELINES['counting'](known, rows, 5).settings
  assert chosen['tau'] in baselines.TAUS and chosen['power'] in (1.0, 2.0)
  assert chosen['transitions'] in baselines.TRANSITION_WEIGHTS


def test_a_code_without_training_events_and_an_old_history_make_no_holes():
  """Ten years later nothing is left of an event: codes by their base rate, no division by zero."""
  log, occasions = random_log()
  coarse = np.append(np.zeros(ITEMS - 1, int), 3)  # codes 1 and 2 have no item
  known = tiny_log.inputs(log, occasions, coarse=coarse)
  rows = baselines.evaluation_rows(log, occasions, TEST)
  late = dataclasses.replace(
    known,
    occasions=dataclasses.replace(occasions, timestamp=occasions.timestamp + 10 * 365 * 86_400),
  )
  for case in (known, late):
    got = scores(case, rows)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got.sum(1), 1)


def test_a_wide_catalogue_needs_no_table_of_items_by_items():
  """100,000 items: a table of fp32 would be 40 GB."""
  log, occasions = random_log(users=40, items=100_000)
  config = dataclasses.replace(
    Config(), reasoner=dataclasses.replace(Config().reasoner, coarse_codes=4)
  )
  coarse = np.arange(100_000) % 256
  known = tiny_log.inputs(log, occasions, config, coarse, bars_history=True)
  rows = baselines.evaluation_rows(log, occasions, TEST)[:20]
  started = time.monotonic()
  tracemalloc.start()
  lists = ranking.lists(rows, score_of(known), known.popular, 50)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert lists.shape == (len(rows), 50) and (lists >= 0).all()
  assert peak < 2e9 and time.monotonic() - started < 60
