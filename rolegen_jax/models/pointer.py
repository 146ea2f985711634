"""The backbone's pointer: which slots of memory a query copies from, and how its sources are mixed.

An item's probability is a mixture of a generated semantic ID and of copying (pointer-generator:
See et al., arXiv 1704.04368). The pointer weighs the visible slots that hold an item by content,
age, event type and, where the reasoner gave an intent, by the appeal of the slot's coarse code. Its
gates say how much is copied and how much of the first code follows the intent. Items that the
reasoner retrieves have a share of the whole: to copy is then to do either.

Shapes: B rows, Q queries, S memory slots, D width, K coarse codes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.models.layers import gather_fsdp, param
from rolegen_jax.models.memory import Memory, View
from rolegen_jax.models.numerics import NEG_INF, is_possible

# Where the pointer starts: the recency rule count * weight(event) * exp(-age / 7 days), a strong
# baseline on every log we know. By age feature, and by event type; the last weight is that of
# candidates, few of which are right until the loop has learned.
RECENCY_RULE = (0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
EVENT_WEIGHTS = (0.5, 1.0, 2.0, 3.0, 1.0, 5.0, 0.02)
# Where the intent's part starts, chosen by validation on the simulated log and alibaba2014: the
# gate at sigmoid(1.5), and a fifth of a nat for each nat of appeal.
INTENT_GATE, INTENT_APPEAL = 1.5, 0.2


class IntentMix(NamedTuple):
  """The first code as a mixture, m * intent + (1 - m) * own; fp32."""

  log_intent: jax.Array  # [B, Q, K], log (m * intent)
  log_own: jax.Array  # [B, Q], log (1 - m)


class Pointing(NamedTuple):
  """How a query's probability is split between slots and generation; log-probabilities, fp32."""

  log_pointer: jax.Array  # [B, Q, S], of each slot, given that the item is copied
  log_copy: jax.Array  # [B, Q]
  log_generate: jax.Array  # [B, Q], log (1 - exp log_copy)


def gate_param(width: int, bias: float = 0.0) -> nnx.Param:
  """Return the weights of a gate, zeros, and its bias as their last entry."""
  return nnx.Param(jnp.zeros((width + 1,)).at[-1].set(bias), axes=(None,))


def gate_logit(gate: nnx.Param, x: jax.Array) -> jax.Array:
  """Return the logit of a gate for states [..., D], fp32 [...]."""
  return x.astype(jnp.float32) @ gate[...][:-1] + gate[...][-1]


def log_split(logit: jax.Array, can_open: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return log p and log (1 - p) of a gate; p is 0 where it cannot open."""
  log_open = jnp.where(can_open, jax.nn.log_sigmoid(logit), NEG_INF)
  return log_open, jnp.where(can_open, jax.nn.log_sigmoid(-logit), 0.0)


class Pointer(nnx.Module):
  """A distribution over slots of memory, with the gates of copying and of the intent."""

  def __init__(self, width: int, enabled: bool, *, rngs: nnx.Rngs):
    self.enabled = enabled  # False: everything is generated
    # Content counts for little at first.
    self.slot_query = param(rngs, (width, width), ('embed', None), scale=0.1)
    self.slot_key = param(rngs, (width, width), ('embed', None))
    self.slot_age = nnx.Param(jnp.array(RECENCY_RULE), axes=(None,))
    self.slot_event = nnx.Param(jnp.log(jnp.array(EVENT_WEIGHTS)), axes=(None,))
    self.gate = gate_param(width)
    self.intent_gate = gate_param(width, INTENT_GATE)
    self.intent_appeal = nnx.Param(jnp.array([INTENT_APPEAL]), axes=(None,))

  def __call__(self, x_BxQxD: jax.Array, memory: Memory, view: View) -> Pointing:
    """Point at the visible slots that hold an item."""
    logits = self._slot_logits(x_BxQxD, memory, view)
    copyable = view.visible & (memory.item >= 0)[:, None]
    log_pointer = jax.nn.log_softmax(jnp.where(copyable, logits, NEG_INF), axis=-1)
    log_pointer = jnp.where(copyable, log_pointer, NEG_INF)
    can_copy = copyable.any(axis=-1) if self.enabled else jnp.zeros(copyable.shape[:-1], bool)
    return Pointing(log_pointer, *log_split(gate_logit(self.gate, x_BxQxD), can_copy))

  def _slot_logits(self, x: jax.Array, memory: Memory, view: View) -> jax.Array:
    """fp32 [B, Q, S]."""
    f32 = jnp.float32
    q = x @ gather_fsdp(self.slot_query, x.dtype)
    k = memory.hidden @ gather_fsdp(self.slot_key, x.dtype)
    content = jnp.einsum('bqd,bsd->bqs', q, k, preferred_element_type=f32) / x.shape[-1] ** 0.5
    by_age = view.age.astype(f32) @ self.slot_age[...]
    by_event = (view.event.astype(f32) @ self.slot_event[...])[:, None]
    logits = content + by_age + by_event
    if memory.appeal is not None:
      logits = logits + self.intent_appeal[...] * memory.appeal[:, None]
    return logits

  def mix_intent(self, x_BxQxD: jax.Array, intent_BxK: jax.Array) -> IntentMix:
    """Weigh the intent in the first code; rows without an intent get none of it."""
    has_intent = is_possible(intent_BxK.max(axis=-1, keepdims=True))
    log_mix, log_own = log_split(gate_logit(self.intent_gate, x_BxQxD), has_intent)
    return IntentMix(log_mix[..., None] + intent_BxK[:, None], log_own)


def share_retrieved(pointing: Pointing, logit_BxQ: jax.Array, share_BxS: jax.Array) -> Pointing:
  """Give retrieved items a share of the whole, sigmoid(logit), split by their own shares.

  Rows without retrieved items stay as they are.
  """
  is_retrieved = share_BxS > 0
  has_retrieved = is_retrieved.any(axis=-1, keepdims=True)
  log_retrieved, log_rest = log_split(logit_BxQ, has_retrieved)
  log_share = jnp.where(is_retrieved, jnp.log(jnp.maximum(share_BxS, 1e-30)), NEG_INF)[:, None]
  # One name for log_rest + pointing.log_copy would add its gradients up in another order.
  log_copy = jnp.logaddexp(log_rest + pointing.log_copy, log_retrieved)
  log_pointer = jnp.logaddexp(
    (log_rest + pointing.log_copy)[..., None] + pointing.log_pointer,
    log_retrieved[..., None] + log_share,
  )
  log_pointer = jnp.maximum(log_pointer - log_copy[..., None], NEG_INF)
  return Pointing(log_pointer, log_copy, log_rest + pointing.log_generate)
