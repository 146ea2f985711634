"""Reading prompts before a completion is sampled: once per user, and once more where worlds differ.

The factual prompt is computed once per user. A world that removes an event adds what follows the
removal (`worlds.py`); all other worlds use the factual prompt as it is.

Shapes: B users, W worlds, R prompt length, of which P positions come before the last M events,
D width, K key/value heads, X head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.models.attention import KeyValues, SegmentMask, Visible, causal, per_chain
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.reasoning.frcot import Prompt
from rolegen_jax.reasoning.worlds import Tree
from rolegen_jax.sharding import constrain_rows


class Prefilled(NamedTuple):
  """A prompt as W chains of each user have read it, ready to be continued."""

  hidden: jax.Array  # [B, W, D], of the last token
  shared: KeyValues  # of the first P positions, [layers, B, P, K, X]
  own: KeyValues  # of the others, for each chain, [layers, B, W, R - P, K, X]
  visible: Visible  # bool [B, P] and [B, W, R - P]


def prefill(reasoner: Reasoner, tree: Tree, prompt: Prompt) -> Prefilled:
  """Read the factual prompts, as one chain each."""
  p = tree.shared
  tokens, valid = constrain_rows((prompt.tokens, prompt.valid))
  positions = np.arange(tree.layout.prompt_length)
  hidden, (k, v) = reasoner.prefill(tokens, positions, causal(valid.astype(jnp.int32)))
  return Prefilled(
    hidden=hidden[:, -1:],
    shared=(k[:, :, :p], v[:, :, :p]),
    own=(k[:, :, None, p:], v[:, :, None, p:]),
    visible=Visible(valid[:, :p], valid[:, None, p:]),
  )


def prefill_worlds(
  reasoner: Reasoner,
  tree: Tree,
  factual: Prefilled,
  prompt: Prompt,
  prompts: Prompt,
  removes_BxW: jax.Array,
) -> Prefilled:
  """Return the prompts of all worlds: the factual one, read again after P where one differs.

  A world that may remove an event and does not takes the factual prompt too, so that it repeats the
  factual world bit for bit.

  Args:
    reasoner: with bound parameters.
    tree: how the worlds of a user share a row.
    factual: the factual prompts, read.
    prompt: the factual prompts, [B, ...].
    prompts: the prompts of all worlds, [B * W, ...].
    removes_BxW: the worlds that remove an event.
  """
  forks, p, r = len(tree.removing), tree.shared, tree.layout.prompt_length
  if not forks:
    return Prefilled(
      hidden=_repeat(factual.hidden, 1, tree.chains),
      shared=factual.shared,
      own=jax.tree.map(lambda x: _repeat(x, 2, tree.chains), factual.own),
      visible=factual.visible._replace(own=_repeat(factual.visible.own, 1, tree.chains)),
    )
  valid = prompts.valid.reshape(-1, tree.chains, r)[:, -forks:]  # those that may remove come last
  tokens, segment = constrain_rows(
    (per_chain(prompt.tokens[:, p:], forks), valid.reshape(-1, r).astype(jnp.int32))
  )
  per_fork = jax.vmap(lambda x: per_chain(x, forks))  # over layers
  before = per_fork(factual.shared[0]), per_fork(factual.shared[1])
  mask = SegmentMask(np.tri(r, dtype=bool)[p:], segment[:, p:], segment)
  hidden, cache = reasoner.prefill(tokens, np.arange(p, r), mask, before)

  def join(factual: jax.Array, forked: jax.Array, axis: int) -> jax.Array:
    """Join worlds along `axis`: the factual chain for some, that of their fork for others."""
    forked = forked.reshape(*factual.shape[:axis], forks, *factual.shape[axis + 1 :])
    new_axes = (*range(axis - 1), *range(axis + 1, factual.ndim))
    removes = jnp.expand_dims(removes_BxW[:, -forks:], new_axes)
    unforked = _repeat(factual, axis, tree.chains - forks)
    return jnp.concatenate([unforked, jnp.where(removes, forked, factual)], axis=axis)

  return Prefilled(
    hidden=join(factual.hidden, hidden[:, -1], 1),
    shared=factual.shared,
    own=(join(factual.own[0], cache[0], 2), join(factual.own[1], cache[1], 2)),
    visible=factual.visible._replace(own=join(factual.visible.own, valid[:, :, p:], 1)),
  )


def _repeat(x: jax.Array, axis: int, n: int) -> jax.Array:
  """Broadcast an axis of length 1 to n."""
  return jnp.broadcast_to(x, (*x.shape[:axis], n, *x.shape[axis + 1 :]))
