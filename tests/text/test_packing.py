"""Examples of any length in rows of one length."""

import numpy as np
import pytest

from rolegen_jax.text.packing import in_order, pack, text_example


def test_rows_hold_their_examples_one_after_the_other():
  packed = pack([[text_example([7, 8], [9], 0), text_example([5], [6, 4], 2)], []], 8)
  np.testing.assert_array_equal(packed.token, [[7, 8, 9, 5, 6, 4, 0, 0], [0] * 8])
  np.testing.assert_array_equal(packed.segment, [[1, 1, 1, 2, 2, 2, 0, 0], [0] * 8])
  np.testing.assert_array_equal(packed.task, [[0, 0, 1, 0, 3, 3, 0, 0], [0] * 8])


def test_examples_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='examples of 4 tokens in a row of 3'):
    pack([[text_example([1, 2], [3, 4], 0)]], 3)


def test_in_order_fills_each_row_until_the_next_example_does_not_fit():
  examples = [text_example([1] * n, [2], 0) for n in (3, 3, 1, 6, 2)]
  assert in_order(examples, 8) == [[0, 1], [2], [3], [4]]
  assert in_order(examples, 10) == [[0, 1, 2], [3, 4]]
