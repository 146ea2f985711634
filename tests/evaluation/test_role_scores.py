import numpy as np
import pytest

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.evaluation import role_scores as lib

TRIGGER, ANCHOR, EXPLORE, CONVERT = map(
  ROLE_NAMES.index, ('TRIGGER', 'ANCHOR', 'EXPLORE', 'CONVERT')
)
VIEW, PURCHASE = 1, lib.PURCHASE


def test_scores_by_hand():
  chances = np.zeros((1, 4, 8))
  chances[0, :, TRIGGER], chances[0, :, ANCHOR] = [0.8, 0.6, 0.2, 0.5], [0.2, 0.4, 0.8, 0.5]
  got = lib.scores(chances, np.array([[TRIGGER, ANCHOR, ANCHOR, -1]]))
  assert got['log_loss'] == pytest.approx(-np.log([0.8, 0.4, 0.8]).mean(), abs=0.02)
  assert got['f1'] == {'TRIGGER': pytest.approx(2 / 3), 'ANCHOR': pytest.approx(2 / 3)}
  assert got['macro_f1'] == pytest.approx(2 / 3)
  assert got['shares']['TRIGGER'] == pytest.approx(1.6 / 3, abs=0.01)
  assert sum(b['events'] for b in got['reliability']) == 3 * 8
  sure = [b for b in got['reliability'] if b['chance'] > 0.7]
  assert [(b['share'], b['events']) for b in sure] == [(1.0, 2)]


def test_shares_of_labels_fit_the_events():
  labels = np.array([[TRIGGER, EXPLORE, EXPLORE, CONVERT, -1]])
  got = lib.marginal(labels, np.array([[VIEW, PURCHASE]]))
  assert got[0, 0, TRIGGER] == pytest.approx(1 / 3) and got[0, 0, EXPLORE] == pytest.approx(2 / 3)
  assert got[0, 1, CONVERT] == 1 and got.sum() == pytest.approx(2)


def history() -> Trajectories:
  """Codes 0, 1, 0 after padding; items 0, 1, 0."""
  item = np.array([[-1, 0, 1, 0]])
  time = np.array([[0, 0, 86_400, 2 * 86_400]])
  event = np.full_like(item, VIEW)
  return Trajectories(item, event, np.ones_like(item), time, (item >= 0).astype(int))


def test_features_by_hand():
  codes, now = np.array([0, 1]), np.array([3 * 86_400])
  x = lib.features(history(), now, codes, 2, None)[0]
  np.testing.assert_allclose(x[:, 7:10], np.exp(-np.array([[2], [1]]) / np.array(lib.AGE_DAYS)))
  np.testing.assert_allclose(x[:, 10:14], np.log1p([[1, 0, 1, 0], [2, 1, 2, 1]]))
  np.testing.assert_array_equal(x[:, 14], [0, 1])
  told = lib.features(history(), now, codes, 2, np.array([1]))[0]
  np.testing.assert_allclose(told[:, 15:], x * np.array([[1], [0]]))


def test_logistic_regression_learns_a_rule_and_leaves_out_what_is_unknown():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(300, 4, 3))
  labels = np.where(x[..., 0] > 0, TRIGGER, EXPLORE)
  labels[::3] = -1
  event = np.full((300, 4), VIEW)
  event[:, 0] = PURCHASE
  p = lib.logistic(x, np.where(event == PURCHASE, CONVERT, labels), x, event)
  np.testing.assert_allclose(p.sum(-1), 1)
  assert (p[:, 0, CONVERT] == 1).all() and (p[:, 1:, CONVERT] == 0).all()
  right = p[:, 1:].argmax(-1) == np.where(x[:, 1:, 0] > 0, TRIGGER, EXPLORE)
  assert right.mean() > 0.97


@pytest.mark.filterwarnings('error')
def test_a_log_of_purchases_alone_leaves_nothing_to_fit():
  x, event = np.ones((2, 3, 4)), np.full((2, 3), PURCHASE)
  assert (lib.logistic(x, np.full_like(event, CONVERT), x, event)[..., CONVERT] == 1).all()
