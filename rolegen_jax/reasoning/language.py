"""The reasoner as a language model of packed rows: scoring tokens, and writing sentences.

A token is predicted among those of its own block of the vocabulary (event types, gaps, codes of a
level), as everywhere else; a text token, and a control token between texts, among all tokens of
both kinds. No logits are kept for the backward pass.

Shapes: B rows, T tokens, D width, V vocabulary; N prompts of R tokens, P planned tokens, S steps.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.models.attention import KeyValues, Visible, causal
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.text.packing import Packed
from rolegen_jax.vocab import Vocabulary

CHUNK = 32  # positions whose logits are held at once


class TokenScores(NamedTuple):
  """How the T tokens of each row are predicted from those before them.

  Where `task` is 0 the rest is meaningless.
  """

  nll: jax.Array  # fp32 [B, T], nats
  right: jax.Array  # bool [B, T], the token is the likeliest of its block
  task: jax.Array  # int32 [B, T], as in `Packed`


def blocks(vocab: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
  """Return (first, stop), int32 [V] each: the tokens among which each token is predicted."""
  first = np.zeros(vocab.size, np.int32)
  stop = np.full(vocab.size, sum(vocab.blocks['text']), np.int32)
  for name, (start, size) in vocab.blocks.items():
    if name not in ('control', 'text'):
      first[start : start + size], stop[start : start + size] = start, start + size
  return first, stop


def read(reasoner: Reasoner, packed: Packed) -> TokenScores:
  """Score every token given those before it in its own segment."""
  width, (first, stop) = packed.token.shape[1], blocks(reasoner.vocab)
  hidden = reasoner.hidden(packed.token, np.arange(width), causal(packed.segment))
  target = jnp.roll(packed.token, -1, axis=1)
  all_tokens = jnp.arange(reasoner.vocab.size)

  @jax.checkpoint
  def score(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    hidden, target = chunk
    from_first = all_tokens >= jnp.asarray(first)[target][..., None]
    in_block = from_first & (all_tokens < jnp.asarray(stop)[target][..., None])
    logits = jnp.where(in_block, reasoner.logits(hidden, 0, reasoner.vocab.size), NEG_INF)
    own = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own, own >= logits.max(axis=-1)

  def chunks(x: jax.Array) -> jax.Array:
    """Cut rows [B, T, ...] into chunks of positions, [chunks, B, CHUNK, ...]."""
    padded = jnp.pad(x, ((0, 0), (0, -width % CHUNK)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(len(x), -1, CHUNK, *x.shape[2:]), 1, 0)

  def shift(chunked: jax.Array) -> jax.Array:
    """Put chunks together, and what position j says of its next token at position j + 1."""
    rows = jnp.moveaxis(chunked, 0, 1).reshape(len(packed.token), -1)[:, :width]
    return jnp.roll(rows, 1, axis=1)

  nll, right = map(shift, jax.lax.map(score, (chunks(hidden), chunks(target))))
  same_segment = packed.segment == jnp.roll(packed.segment, 1, axis=1)
  has_previous = same_segment & (jnp.arange(width) > 0)
  return TokenScores(nll, right, jnp.where(has_previous, packed.task, 0))


def mean_nll(scores: TokenScores, tasks: tuple[str, ...]) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the mean over all tokens to predict, and `TASK_nll` over those of each task; nats."""

  def mean(is_counted: jax.Array) -> jax.Array:
    return jnp.sum(scores.nll * is_counted) / jnp.maximum(is_counted.sum(), 1)

  by_task = {
    f'{name}_nll': mean(scores.task == number) for number, name in enumerate(tasks, start=1)
  }
  return mean(scores.task > 0), by_task


class _Writing(NamedTuple):
  """The state of writing."""

  hidden: jax.Array  # [N, 1, D], from which the next token is written
  cache: KeyValues  # of what is written, [layers, N, 1, S, K, X]
  place: jax.Array  # int32 [N], of the plan
  left: jax.Array  # int32 [N], tokens that the open sentence may still have; 0 = none is open


def write(
  reasoner: Reasoner,
  prompt_NxR: jax.Array,
  valid_NxR: jax.Array,
  plan_NxP: jax.Array,
  sentence: int,
  most: int,
) -> jax.Array:
  """Write a plan with sentences in it, greedily, int32 [N, S]; PAD after the end.

  What is written is the plan (roles, codes, control tokens; PAD = over) and after each BOS of it a
  sentence: the likeliest text tokens up to an END. Each token costs one position against the cache.

  Args:
    reasoner: with bound parameters.
    prompt_NxR: tokens of the prompts, right-aligned.
    valid_NxR: which of them are no padding.
    plan_NxP: planned tokens.
    sentence: tokens of a sentence at most, its END included.
    most: number of BOS in a plan at most.
  """
  v, (n, r) = reasoner.vocab, prompt_NxR.shape
  pad, begin, end = (v.control(name) for name in ('PAD', 'BOS', 'END'))
  first, size = v.blocks['text']
  all_tokens = jnp.arange(v.size)
  may_follow = ((all_tokens >= first) & (all_tokens < first + size)) | (all_tokens == end)
  steps = plan_NxP.shape[1] + most * sentence
  plan = jnp.concatenate([plan_NxP, jnp.full((n, 1), pad)], axis=1)
  last_place = plan.shape[1] - 1
  hidden, prompt_cache = reasoner.prefill(
    prompt_NxR, np.arange(r), causal(valid_NxR.astype(jnp.int32))
  )

  def step(state: _Writing, number: jax.Array) -> tuple[_Writing, jax.Array]:
    hidden, cache, place, left = state
    logits = jnp.where(may_follow, reasoner.logits(hidden[:, 0], 0, v.size), NEG_INF)
    best = jnp.argmax(logits, axis=-1)
    planned = jnp.take_along_axis(plan, place[:, None], axis=1)[:, 0]
    token = jnp.where(left > 1, best, jnp.where(left == 1, end, planned))
    is_planned = left == 0
    place = jnp.where(is_planned, jnp.minimum(place + 1, last_place), place)
    if_planned = jnp.where(planned == begin, sentence, 0)
    left = jnp.where(is_planned, if_planned, jnp.where(token == end, 0, left - 1))
    own_visible = jnp.broadcast_to(jnp.arange(steps) <= number, (n, 1, steps))
    visible = Visible(valid_NxR.astype(bool), own_visible)
    hidden, cache = reasoner.step(token[:, None], r + number, prompt_cache, cache, number, visible)
    return _Writing(hidden, cache, place, left), token

  def empty(cached: jax.Array) -> jax.Array:
    return jnp.zeros((*cached.shape[:2], 1, steps, *cached.shape[3:]), cached.dtype)

  zeros = jnp.zeros(n, jnp.int32)
  start = _Writing(hidden[:, -1:], jax.tree.map(empty, prompt_cache), zeros, zeros)
  return jax.lax.scan(step, start, jnp.arange(steps))[1].T
