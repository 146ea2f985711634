"""The Conversion Trajectory Reasoner: a causal language model over the one vocabulary.

This file is the network alone: token embedding, the shared transformer stack, the structural
equations that its intents and paths (`intent.py`) and its roles (`role_equation.py`) start from,
and a readout. What it reads and writes, the FR-CoT layout, is `reasoning/frcot.py`. The readout is
tied to the embedding, because copying an item of the prompt is the first thing to learn (some
pretrained families have a table of its own), and it is always restricted to the block of the
vocabulary that a position holds.

Shapes: N sequences, T tokens, W chains that share what came first, D width, V block width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from rolegen_jax.config import ReasonerConfig
from rolegen_jax.models.attention import KeyValues, Mask, Visible
from rolegen_jax.models.evidence import Evidence
from rolegen_jax.models.intent import Intent
from rolegen_jax.models.layers import gather_replicated, param
from rolegen_jax.models.lora import adapt
from rolegen_jax.models.role_equation import RoleEquation
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.vocab import Vocabulary


class Reasoner(nnx.Module):
  """The reasoner's network; methods mirror those of `Transformer`, on tokens."""

  def __init__(self, config: ReasonerConfig, vocab: Vocabulary, *, rngs: nnx.Rngs):
    width = config.transformer.width
    self.config, self.vocab = config, vocab
    self.tokens = param(rngs, (vocab.size, width), ('vocab', 'embed'), fan_in=width)
    adapters = functools.partial(adapt, config=config.lora) if config.train == 'lora' else None
    self.transformer = Transformer(config.transformer, adapters, rngs=rngs)
    sizes = vocab.codes, vocab.levels, config.kinds, config.attributes
    self.intent = Intent(*sizes, rngs=rngs)
    self.roles = RoleEquation(vocab.codes, config.kinds, rngs=rngs)
    if not config.transformer.tied:
      self.readout = param(rngs, (vocab.size, width), ('vocab', 'embed'), fan_in=width)
    if config.train != 'all':  # the tables are frozen: rows of our own tokens learn increments
      self.tokens_delta = self._increments()
      if not config.transformer.tied:
        self.readout_delta = self._increments()

  def _increments(self) -> nnx.Param:
    zeros = jnp.zeros((self.vocab.own, self.config.transformer.width), jnp.float32)
    return nnx.Param(zeros, axes=(None, 'embed'))

  def role_logits(
    self, evidence: Evidence, intent_N: jax.Array, last: int, worlds: int = 1
  ) -> jax.Array:
    """Return what roles of the M = `last` last events towards intents start from, fp32 [N, M, R].

    worlds: how many neighboring rows are of the same events.
    """
    effects = self.intent.learned_effects(evidence, last, worlds)
    return self.roles(evidence, intent_N, last, effects)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Return embeddings [..., D] of tokens of any shape."""
    c = self.config.transformer
    rows = jnp.take(gather_replicated(self.tokens, c.dtype), tokens, axis=0)
    if hasattr(self, 'tokens_delta'):
      increments = gather_replicated(self.tokens_delta, c.dtype)
      rows += jnp.take(increments, tokens, axis=0, mode='fill', fill_value=0)
    return rows if c.embedding_scale == 1.0 else rows * jnp.asarray(c.embedding_scale, rows.dtype)

  def hidden(self, tokens_NxT: jax.Array, positions_T: np.ndarray, mask: Mask) -> jax.Array:
    """Return hidden states [N, T, D] of whole sequences, whose positions are the same in all."""
    return self.transformer(self.embed(tokens_NxT), positions_T, mask)

  def prefill(
    self,
    tokens_NxT: jax.Array,
    positions_T: np.ndarray,
    mask: Mask,
    before: KeyValues | None = None,
  ) -> tuple[jax.Array, KeyValues]:
    """Return hidden states [N, T, D] and cache of a prompt, or of its rest after cache `before`."""
    return self.transformer.prefill(self.embed(tokens_NxT), positions_T, mask, before)

  def step(
    self,
    token_NxW: jax.Array,
    position: ArrayLike,
    shared: KeyValues,
    cache: KeyValues,
    slot: ArrayLike,
    visible: Visible,
  ) -> tuple[jax.Array, KeyValues]:
    """Read one more token of W chains: hidden states [N, W, D], and cache with `slot` written."""
    return self.transformer.step(self.embed(token_NxW), position, shared, cache, slot, visible)

  def logits(self, hidden: jax.Array, start: ArrayLike, size: int) -> jax.Array:
    """Return fp32 logits [..., size] of tokens start .. start + size - 1; `start` may be traced."""
    c = self.config.transformer
    rows = self._readout_rows(start, size, hidden.dtype)
    logits = jnp.einsum('...d,vd->...v', hidden, rows, preferred_element_type=jnp.float32)
    if not c.logit_softcap:
      return logits
    return c.logit_softcap * jnp.tanh(logits / c.logit_softcap)

  def code_logits(self, hidden: jax.Array, start: ArrayLike, size: int) -> jax.Array:
    """Return `logits` as they count beside the structural equations, where codes are chosen."""
    weight = jax.lax.stop_gradient(self.intent.language[...])
    return weight * self.logits(hidden, start, size)

  def _readout_rows(self, start: ArrayLike, size: int, dtype: DTypeLike) -> jax.Array:
    """Return rows start .. start + size - 1 of the readout, [size, D]."""
    table = 'tokens' if self.config.transformer.tied else 'readout'
    rows = jax.lax.dynamic_slice_in_dim(gather_replicated(getattr(self, table), dtype), start, size)
    if hasattr(self, f'{table}_delta'):
      increments = gather_replicated(getattr(self, f'{table}_delta'), dtype)
      # Padded, so that a slice beyond our own tokens is zeros.
      padded = jnp.pad(increments, ((0, size), (0, 0)))
      rows += jax.lax.dynamic_slice_in_dim(padded, start, size)
    return rows
