import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.vocab import CONTROL, ROUND, Vocabulary

VOCAB = Vocabulary(levels=3, codes=16, text_pieces=10)


def test_blocks_follow_each_other_without_gap_or_overlap():
  end = 0
  for start, size in VOCAB.blocks.values():
    assert start == end
    end += size
  assert end <= VOCAB.size < end + 2 * ROUND and VOCAB.size % ROUND == 0


@pytest.mark.parametrize('levels, codes', [(2, 2), (6, 3), (3, 5), (8, 7), (3, 256)])
def test_a_window_as_wide_as_the_widest_choice_fits_behind_every_code_block(levels, codes):
  """A rollout reads max(codes, roles) rows from the start of any block.

  A slice over the end would be moved silently.
  """
  vocab = Vocabulary(levels=levels, codes=codes)
  assert all(
    start + max(codes, len(ROLE_NAMES)) <= vocab.size
    for start, _ in vocab.blocks.values()
    if start < vocab.blocks['text'][0]
  )


def test_tokens_lie_in_their_blocks_for_scalars_and_arrays():

  def inside(token, block):
    return VOCAB.blocks[block][0] <= token < sum(VOCAB.blocks[block])

  assert (
    inside(VOCAB.role(7), 'role')
    and inside(VOCAB.event(5), 'event')
    and inside(VOCAB.gap(63), 'gap')
  )
  assert (
    inside(VOCAB.count(7), 'count')
    and inside(VOCAB.world(15), 'world')
    and all(inside(VOCAB.control(c), 'control') for c in CONTROL)
  )
  codes = np.array([[0, 15, 3], [15, 0, 15]], np.int32)
  for tokens in (VOCAB.sid(codes), np.asarray(VOCAB.sid(jnp.asarray(codes)))):
    assert all(inside(token, f'sid{level}') for row in tokens for level, token in enumerate(row))
  np.testing.assert_array_equal(VOCAB.sid(codes[:, :2]), VOCAB.sid(codes)[:, :2])


@pytest.mark.parametrize(
  'change', [dict(levels=4), dict(codes=17), dict(text_pieces=11), dict(roles=ROLE_NAMES[::-1])]
)
def test_the_digest_changes_with_anything_that_moves_a_token(change):
  assert dataclasses.replace(VOCAB, **change).digest != VOCAB.digest
  assert Vocabulary(levels=3, codes=16, text_pieces=10).digest == VOCAB.digest
