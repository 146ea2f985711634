"""The Conversion Trajectory Reasoner: a causal language model over the one vocabulary.

What it reads and writes (the FR-CoT layout) is `reasoning/frcot.py`; this file is the network alone: the structural equation
of intent (`intent.py`), which its intent tokens start from, token embedding, the shared transformer stack, and a readout tied to
the embedding (copying an item of the prompt is the first thing to learn) that is always restricted to the block of the
vocabulary that a position may hold.

Shapes: N sequences, T tokens, S cache slots, D width, V block width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import ReasonerConfig
from rolegen_jax.models.intent import Intent
from rolegen_jax.models.transformer import Transformer, param, whole
from rolegen_jax.vocab import Vocabulary


class Reasoner(nnx.Module):

  def __init__(self, config: ReasonerConfig, vocab: Vocabulary, *, rngs: nnx.Rngs):
    width = config.transformer.width
    self.config, self.vocab = config, vocab
    self.tokens = param(rngs, (vocab.size, width), ('vocab', 'embed'), fan_in=width)
    self.transformer = Transformer(config.transformer, rngs=rngs)
    self.intent = Intent(vocab.codes)

  def embed(self, tokens):
    return jnp.take(whole(self.tokens, self.config.transformer.dtype), tokens, axis=0)

  def hidden(self, tokens_NxT, valid_NxT) -> jax.Array:
    """Hidden states [N, T, D] of a whole sequence; tokens that are not valid are seen by nobody."""
    positions, mask = _causal(valid_NxT)
    return self.transformer(self.embed(tokens_NxT), positions, mask)

  def prefill(self, tokens_NxT, valid_NxT, room: int):
    """(hidden [N, D] of the last token, cache with `room` more slots) of a prompt."""
    positions, mask = _causal(valid_NxT)
    hidden, cache = self.transformer.prefill(self.embed(tokens_NxT), positions, mask)
    pad = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
    return hidden[:, -1], tuple(jnp.pad(c, pad) for c in cache)

  def step(self, token_N, slot, cache, visible_NxS):
    """One more token at cache slot (and position) `slot`: (hidden [N, D], cache)."""
    position = jnp.full(token_N.shape, slot, jnp.int32)
    return self.transformer.step(self.embed(token_N), position, cache, slot, visible_NxS)

  def logits(self, hidden, start, size: int) -> jax.Array:
    """fp32 logits [..., size] of tokens start .. start + size - 1; `start` may be traced."""
    rows = jax.lax.dynamic_slice_in_dim(whole(self.tokens, hidden.dtype), start, size)
    return jnp.einsum('...d,vd->...v', hidden, rows, preferred_element_type=jnp.float32)


def _causal(valid_NxT):
  n, t = valid_NxT.shape
  return jnp.broadcast_to(jnp.arange(t), (n, t)), jnp.tril(jnp.ones((t, t), bool)) & valid_NxT[:, None]
