"""The reasoner as a language model of packed rows: scoring tokens, and writing sentences.

A token is predicted among those of its own block of the vocabulary (event types, gaps, codes of a
level), as everywhere else; a text token, and a control token between texts, among all tokens of
both kinds. No logits are kept for the backward pass.

Shapes: B rows, T tokens, D width, V vocabulary; N prompts of R tokens, P planned tokens, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import ALIGN_TASKS, WORD_TASKS, TextConfig
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
  """Score every token given those before it in its own segment.

  A vocabulary of words is read out only where a word or a control token is to be predicted.
  """
  width, vocab = packed.token.shape[1], reasoner.vocab
  hidden = reasoner.hidden(packed.token, np.arange(width), causal(packed.segment))
  target, task = (jnp.roll(x, -1, axis=1) for x in (packed.token, packed.task))
  same_segment = packed.segment == jnp.roll(packed.segment, -1, axis=1)
  has_next = same_segment & (jnp.arange(width) < width - 1)
  task = jnp.where(has_next, task, 0)
  first, stop = (jnp.asarray(x)[target] for x in blocks(vocab))
  is_own = first > 0  # words and control tokens are predicted among all tokens

  def scores(rows: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return (hidden, target, first, stop) -> (nll, right), by the first rows of the readout."""

    @jax.checkpoint
    def score(
      hidden: jax.Array, target: jax.Array, first: jax.Array, stop: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      token = jnp.arange(rows)
      in_block = (token >= first[..., None]) & (token < stop[..., None])
      logits = jnp.where(in_block, reasoner.logits(hidden, 0, rows), NEG_INF)
      own = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
      return jax.nn.logsumexp(logits, axis=-1) - own, own >= logits.max(axis=-1)

    return score

  said = hidden, target, first, stop
  of_words = _in_chunks(scores(vocab.size), said, (task > 0) & ~is_own)
  of_own = _in_chunks(scores(vocab.own), said, (task > 0) & is_own)
  nll, right = (jnp.where(is_own, own, words) for own, words in zip(of_own, of_words))
  return TokenScores(*(jnp.roll(x, 1, axis=1) for x in (nll, right, task)))


def _in_chunks(
  score: Callable[..., tuple[jax.Array, ...]],
  inputs_BxT: tuple[jax.Array, ...],
  wanted_BxT: jax.Array,
) -> tuple[jax.Array, ...]:
  """Return `score` of the inputs where it is wanted, [B, T] each; elsewhere it is meaningless.

  What is wanted of a row comes first, a chunk at a time, so that chunks in which no row wants
  anything cost nothing.
  """
  b, t = wanted_BxT.shape
  order = jnp.argsort(~wanted_BxT, axis=1, stable=True)
  most = wanted_BxT.sum(axis=1).max()

  def chunks(x: jax.Array) -> jax.Array:
    """Cut rows [B, T, ...] in that order into chunks of positions, [chunks, B, CHUNK, ...]."""
    index = order.reshape(b, t, *(1,) * (x.ndim - 2))
    ordered = jnp.take_along_axis(x, index, axis=1)
    padded = jnp.pad(ordered, ((0, 0), (0, -t % CHUNK)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(b, -1, CHUNK, *x.shape[2:]), 1, 0)

  def at(chunk: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
    number, inputs = chunk
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, *inputs))
    return jax.lax.cond(number * CHUNK < most, score, lambda *_: nothing, *inputs)

  chunked = tuple(map(chunks, inputs_BxT))
  found = jax.lax.map(at, (jnp.arange(len(chunked[0])), chunked))
  back = jnp.argsort(order, axis=1)
  rows = (jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, :t] for x in found)
  return tuple(jnp.take_along_axis(x, back, axis=1) for x in rows)


def words_loss(
  reasoner: Reasoner, words: Packed | None, config: TextConfig | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the loss of packed rows, and of each task `TASK_nll`, in nats; 0 where there are none.

  It is the mean over the tokens of alignment and, with `config`, its weight of chains with
  sentences times the mean over their tokens.
  """
  if words is None:
    return jnp.zeros(()), {}
  scores = read(reasoner, words)
  loss, metrics = mean_nll(scores, ALIGN_TASKS)
  metrics |= dict(tokens=jnp.sum(words.segment > 0), tokens_filled=jnp.mean(words.segment > 0))
  if config and config.rationales:
    chains_loss, of_chains = mean_nll(scores, ('rationale',))
    loss, metrics = loss + config.rationales * chains_loss, metrics | of_chains
  return loss, metrics


def mean_nll(scores: TokenScores, tasks: tuple[str, ...]) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the mean over all tokens of some WORD_TASKS, and `TASK_nll` over those of each; nats."""

  def mean(numbers: list[int]) -> jax.Array:
    is_counted = jnp.isin(scores.task, jnp.array(numbers))
    return jnp.sum(scores.nll * is_counted) / jnp.maximum(is_counted.sum(), 1)

  numbers = {name: 1 + WORD_TASKS.index(name) for name in tasks}
  by_task = {f'{name}_nll': mean([number]) for name, number in numbers.items()}
  return mean(list(numbers.values())), by_task


def mean_states(reasoner: Reasoner, packed: Packed, segments: int) -> jax.Array:
  """Return the mean of the last states of each segment of rows, fp32 [B, segments, D].

  It is 0 where a row has no such segment.
  """
  hidden = reasoner.hidden(packed.token, np.arange(packed.token.shape[1]), causal(packed.segment))
  number = 1 + jnp.arange(segments)[:, None]
  is_of_BxNxT = (packed.segment[:, None] == number).astype(jnp.float32)
  total = jnp.einsum('bnt,btd->bnd', is_of_BxNxT, hidden.astype(jnp.float32))
  return total / jnp.maximum(is_of_BxNxT.sum(-1, keepdims=True), 1.0)


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
