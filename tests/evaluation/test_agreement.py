import numpy as np
import pytest

from rolegen_jax.evaluation.agreement import effect_agreement, rank_agreement, role_agreement


def test_roles_by_hand():
  got = role_agreement(np.array([0, 0, 1, 1, -1]), np.array([0, 1, 1, 1, 0]), ('A', 'B', 'C'))
  assert got['per_role']['A'] == {
    'precision': 1.0,
    'recall': 0.5,
    'f1': pytest.approx(2 / 3),
    'support': 2,
  }
  assert got['per_role']['B']['f1'] == pytest.approx(0.8)
  assert got['macro_f1'] == pytest.approx((2 / 3 + 0.8) / 2), 'C does not occur and does not count'
  assert got['accuracy'] == 0.75 and got['confusion'] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_effects_keep_order_and_shown_points():
  true = np.linspace(-1, 1, 4000)
  got = effect_agreement(true**3, true, most=100)
  assert got['spearman'] == pytest.approx(1) and got['same_sign'] == 1 and len(got['true']) == 100
  with pytest.raises(ValueError, match='two effects'):
    effect_agreement(true[:1], true[:1])


def test_ranks_agree_row_by_row():
  true = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
  estimated = np.array([[10.0, 20.0, 90.0], [3.0, 2.0, 2.5], [1.0, 2.0, 3.0]])
  assert rank_agreement(estimated, true) == pytest.approx((1.0 - 0.5) / 2), 'no ranks in row 3'
  assert np.isnan(rank_agreement(estimated[2:], true[2:]))
