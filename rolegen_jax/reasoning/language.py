"""The reasoner as a language model of packed rows: how likely tokens are, whether they are what it would have written, and writing.

A token is told among those of its own block of the vocabulary (event types, gaps, codes of a level), as everywhere else; a text token
and the marks between text among all tokens. No logits are kept for the backward pass.

Shapes: B rows, T tokens, D width, V vocabulary; N prompts of R tokens, P planned tokens, S steps.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.models.attention import causal
from rolegen_jax.models.backbone import NEG_INF
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.text.packing import Packed
from rolegen_jax.vocab import Vocabulary

CHUNK = 32  # positions whose logits are held at once


class Told(NamedTuple):
  """Of the T tokens of each row, what the tokens before them told. Where `task` is 0 the rest means nothing."""

  nll: jax.Array  # fp32 [B, T], nats
  right: jax.Array  # bool [B, T]: the best of its block
  task: jax.Array  # int32 [B, T], as in `Packed`


def blocks(vocab: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
  """(first, stop) int32 [V]: the tokens among which each token is told."""
  first, stop = (
    np.zeros(vocab.size, np.int32),
    np.full(vocab.size, sum(vocab.blocks['text']), np.int32),
  )
  for name, (start, size) in vocab.blocks.items():
    if name not in ('control', 'text'):
      first[start : start + size], stop[start : start + size] = start, start + size
  return first, stop


def read(reasoner: Reasoner, packed: Packed) -> Told:
  """Every token from those before it in its own segment."""
  width, (first, stop) = packed.token.shape[1], blocks(reasoner.vocab)
  hidden = reasoner.hidden(packed.token, np.arange(width), causal(packed.segment))
  target = jnp.roll(packed.token, -1, axis=1)
  filled = -width % CHUNK
  chunks = lambda x: jnp.moveaxis(
    jnp.pad(x, ((0, 0), (0, filled)) + ((0, 0),) * (x.ndim - 2)).reshape(
      len(x), -1, CHUNK, *x.shape[2:]
    ),
    1,
    0,
  )
  every = jnp.arange(reasoner.vocab.size)

  @jax.checkpoint
  def tell(chunk):
    hidden, target = chunk
    among = (every >= jnp.asarray(first)[target][..., None]) & (
      every < jnp.asarray(stop)[target][..., None]
    )
    logits = jnp.where(among, reasoner.logits(hidden, 0, reasoner.vocab.size), NEG_INF)
    own = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own, own >= logits.max(axis=-1)

  told = (
    jnp.moveaxis(x, 0, 1).reshape(len(packed.token), -1)[:, :width]
    for x in jax.lax.map(tell, (chunks(hidden), chunks(target)))
  )
  nll, right = (jnp.roll(x, 1, axis=1) for x in told)
  same = packed.segment == jnp.roll(packed.segment, 1, axis=1)
  return Told(nll, right, jnp.where(same & (jnp.arange(width) > 0), packed.task, 0))


def mean_nll(told: Told, tasks: tuple[str, ...]) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean over all tokens that are to be predicted, and `TASK_nll` over those of each task; nats."""
  mean = lambda at: jnp.sum(told.nll * at) / jnp.maximum(at.sum(), 1)
  return mean(told.task > 0), {
    f'{name}_nll': mean(told.task == 1 + number) for number, name in enumerate(tasks)
  }


def write(
  reasoner: Reasoner, prompt_NxR, valid_NxR, plan_NxP, sentence: int, most: int
) -> jax.Array:
  """Greedy text at the planned places, int32 [N, S]; PAD after the end.

  What is written is the plan (roles, codes, marks; PAD = over), and after each BOS of it text, the best pieces one by one, up to an END
  or `sentence` tokens, END included. A plan has no more than `most` BOS. Prompts are right-aligned. Each token costs one position against the cache.
  """
  v, (n, r) = reasoner.vocab, prompt_NxR.shape
  pad, begin, end = (v.control(name) for name in ('PAD', 'BOS', 'END'))
  (first, size), every = v.blocks['text'], jnp.arange(v.size)
  may_follow = ((every >= first) & (every < first + size)) | (every == end)
  steps = plan_NxP.shape[1] + most * sentence
  hidden, cache = reasoner.prefill(prompt_NxR, np.arange(r), causal(valid_NxR.astype(jnp.int32)))
  own = tuple(jnp.zeros((*c.shape[:2], 1, steps, *c.shape[3:]), c.dtype) for c in cache)
  plan = jnp.concatenate([plan_NxP, jnp.full((n, 1), pad)], axis=1)
  over = plan.shape[1] - 1

  def one(carry, step):
    hidden, own, place, left = (
      carry  # left: tokens of the sentence that may still come; 0 = outside one
    )
    best = jnp.argmax(
      jnp.where(may_follow, reasoner.logits(hidden[:, 0], 0, v.size), NEG_INF), axis=-1
    )
    planned = jnp.take_along_axis(plan, place[:, None], axis=1)[:, 0]
    token = jnp.where(left > 1, best, jnp.where(left == 1, end, planned))
    place = jnp.where(left == 0, jnp.minimum(place + 1, over), place)
    left = jnp.where(
      left == 0, jnp.where(planned == begin, sentence, 0), jnp.where(token == end, 0, left - 1)
    )
    sees = valid_NxR.astype(bool), jnp.broadcast_to(jnp.arange(steps) <= step, (n, 1, steps))
    hidden, own = reasoner.step(token[:, None], r + step, cache, own, step, sees)
    return (hidden, own, place, left), token

  start = hidden[:, -1:], own, jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)
  return jax.lax.scan(one, start, jnp.arange(steps))[1].T
