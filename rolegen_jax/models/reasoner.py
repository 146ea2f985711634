"""The Conversion Trajectory Reasoner: a causal language model over the one vocabulary.

What it reads and writes (the FR-CoT layout) is `reasoning/frcot.py`; this file is the network alone: the structural equations
of intent (`intent.py`), which its intents and paths start from, token embedding, the shared transformer stack, and a readout tied to
the embedding (copying an item of the prompt is the first thing to learn; some pretrained families have a table of its own) that is
always restricted to the block of the vocabulary that a position may hold.

Shapes: N sequences, T tokens, W chains that share what came first, D width, V block width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import ReasonerConfig
from rolegen_jax.models.intent import Intent
from rolegen_jax.models.lora import adapt
from rolegen_jax.models.transformer import Transformer, gather_replicated, param
from rolegen_jax.vocab import Vocabulary


class Reasoner(nnx.Module):
  def __init__(self, config: ReasonerConfig, vocab: Vocabulary, *, rngs: nnx.Rngs):
    width = config.transformer.width
    self.config, self.vocab = config, vocab
    self.tokens = param(rngs, (vocab.size, width), ('vocab', 'embed'), fan_in=width)
    adapters = (functools.partial(adapt, config=config.lora),) if config.train == 'lora' else ()
    self.transformer = Transformer(config.transformer, *adapters, rngs=rngs)
    self.intent = Intent(vocab.codes, vocab.levels)
    if not config.transformer.tied:
      self.readout = param(rngs, (vocab.size, width), ('vocab', 'embed'), fan_in=width)
    if config.train != 'all':
      for table in ('tokens',) if config.transformer.tied else ('tokens', 'readout'):
        setattr(
          self,
          f'{table}_delta',
          nnx.Param(jnp.zeros((vocab.own, width), jnp.float32), axes=(None, 'embed')),
        )

  def embed(self, tokens):
    c = self.config.transformer
    rows = jnp.take(gather_replicated(self.tokens, c.dtype), tokens, axis=0)
    if hasattr(self, 'tokens_delta'):
      rows += jnp.take(
        gather_replicated(self.tokens_delta, c.dtype), tokens, axis=0, mode='fill', fill_value=0
      )
    return rows if c.embedding_scale == 1.0 else rows * jnp.asarray(c.embedding_scale, rows.dtype)

  def hidden(self, tokens_NxT, positions_T, mask) -> jax.Array:
    """Hidden states [N, T, D] of whole sequences; positions are the same in all of them."""
    return self.transformer(self.embed(tokens_NxT), positions_T, mask)

  def prefill(self, tokens_NxT, positions_T, mask, before=None):
    """(hidden [N, T, D], cache) of a prompt, or of more of it after the cache `before`."""
    return self.transformer.prefill(self.embed(tokens_NxT), positions_T, mask, before)

  def step(self, token_NxW, position, shared, cache, slot, sees):
    """One more token of W chains that share what came first: (hidden [N, W, D], cache with `slot` written)."""
    return self.transformer.step(self.embed(token_NxW), position, shared, cache, slot, sees)

  def logits(self, hidden, start, size: int) -> jax.Array:
    """fp32 logits [..., size] of tokens start .. start + size - 1; `start` may be traced."""
    c = self.config.transformer
    table = 'tokens' if c.tied else 'readout'
    rows = jax.lax.dynamic_slice_in_dim(
      gather_replicated(getattr(self, table), hidden.dtype), start, size
    )
    if hasattr(self, f'{table}_delta'):
      delta = jnp.pad(
        gather_replicated(getattr(self, f'{table}_delta'), hidden.dtype), ((0, size), (0, 0))
      )  # a slice beyond our tokens is all padding
      rows += jax.lax.dynamic_slice_in_dim(delta, start, size)
    found = jnp.einsum('...d,vd->...v', hidden, rows, preferred_element_type=jnp.float32)
    return c.logit_softcap * jnp.tanh(found / c.logit_softcap) if c.logit_softcap else found
