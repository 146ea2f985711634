"""What an event is to an intent: the structural equation of functional roles.

A role is one towards an intent k, a coarse code:

  logits of role_i = W x_i(k) + V (u[own_code_i] * v[k])

x_i(k) says how event i stands to k: whether its item is in k; how long ago the user met k, and this
item, within the same intent (a purchase in k ends one); how contact with the item moves interest in
k (`features/excitation.py`); the event's type and age; and, where kinds of users are known
(`kinds.py`), what removing the event costs k. u and v tell which coarse codes complement
each other. The role tokens of a chain start from these logits, as its codes start from the
equations of intent. So do(intent = k) re-derives all roles under k, and a removed event is nothing
to those after it.

Shapes: N sequences, n events, M role events, K coarse codes, F features, R roles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.models.evidence import FADES, PURCHASE, Evidence, faded
from rolegen_jax.models.layers import param

PAIR_WIDTH = 16
SINCE_DAYS = (2.0, 7.0, 30.0)  # scales of the time since the user met the intent, or the item
# Shares of interest at which the features of weight and shift bend.
BENDS = (0.03, 0.1)
NEVER_S = 10 * 365 * 86_400
EFFECT_BENDS = (0.1, 0.5)  # nats at which effects of removal bend
LEARNED = 4 * len(EFFECT_BENDS)
FEATURES = 2 + 2 * len(SINCE_DAYS) + 2 * len(BENDS) + 2 * len(EVENT_NAMES) + FADES


class RoleEquation(nnx.Module):
  """The parameters of the equation of roles, for `codes` coarse codes.

  `learned` is there where `kinds`, the number of kinds of users, is positive.
  """

  def __init__(self, codes: int, kinds: int = 0, *, rngs: nnx.Rngs):
    roles = len(ROLE_NAMES)
    if kinds:
      self.learned = nnx.Param(jnp.zeros((LEARNED, roles), jnp.float32), axes=(None, None))
    self.weight = nnx.Param(jnp.zeros((FEATURES, roles), jnp.float32), axes=(None, None))
    self.own = param(rngs, (codes, PAIR_WIDTH), (None, None), fan_in=1)
    self.towards = param(rngs, (codes, PAIR_WIDTH), (None, None), fan_in=1)
    self.pair = nnx.Param(jnp.zeros((PAIR_WIDTH, roles), jnp.float32), axes=(None, None))

  def __call__(
    self,
    evidence: Evidence,
    intent_N: jax.Array,
    last: int,
    effects: tuple[jax.Array, jax.Array] | None = None,
  ) -> jax.Array:
    """Return the logits fp32 [N, M, R] of the roles of the M = `last` last events towards intents.

    intent: int32 [N], coarse codes. effects: of `Intent.learned_effects`, [N, M, K] each. Slots
    without an event get what nobody should read.
    """
    own = jnp.take(self.own[...], evidence.own_code[:, -last:], axis=0)
    towards = jnp.take(self.towards[...], intent_N, axis=0)[:, None]
    x = features(evidence, intent_N, last)
    logits = x @ self.weight[...] + (own * towards) @ self.pair[...]
    if effects is None:
      return logits
    inside = (evidence.own_code[:, -last:] == intent_N[:, None])[..., None]
    of_intent = [jnp.take_along_axis(x, intent_N[:, None, None], axis=2) for x in effects]
    bent = jnp.tanh(jnp.concatenate([x / jnp.array(EFFECT_BENDS) for x in of_intent], axis=-1))
    bent = jnp.concatenate([jnp.where(inside, bent, 0.0), jnp.where(inside, 0.0, bent)], axis=-1)
    return logits + bent @ self.learned[...]


def features(e: Evidence, intent_N: jax.Array, last: int) -> jax.Array:
  """Return how each of the M = `last` last events stands to an intent, fp32 [N, M, F]."""
  n = e.item.shape[1]
  in_code = e.present & (e.own_code == intent_N[:, None])
  bought = in_code & (e.event == PURCHASE)
  number = jnp.cumsum(bought, axis=1) - bought  # of the intent that an event belongs to
  earlier = jnp.arange(n) < jnp.arange(n - last, n)[:, None]
  same_intent = number[:, None] == number[:, -last:, None]
  met = in_code[:, None] & earlier & same_intent  # [N, M, n]
  met_item = met & (e.item[:, None] == e.item[:, -last:, None])
  gap = e.age[:, None] - e.age[:, -last:, None]

  def since(met: jax.Array) -> jax.Array:
    """Return exponentials of the time since the latest of what was met; 0 where nothing was."""
    seconds = jnp.where(met, gap, NEVER_S).min(-1, keepdims=True)
    return jnp.exp(-seconds / (86_400.0 * jnp.array(SINCE_DAYS)))

  def bent(share_Nxn: jax.Array) -> jax.Array:
    return jnp.tanh(share_Nxn[:, -last:, None] / jnp.array(BENDS))

  leads = e.code == intent_N[:, None, None]
  weight, shift = (jnp.sum(x * leads, axis=-1) for x in (e.weight, e.shift))
  inside = in_code[:, -last:, None].astype(jnp.float32)
  event = jax.nn.one_hot(e.event[:, -last:], len(EVENT_NAMES))
  parts = [
    jnp.ones_like(inside),
    inside,
    inside * since(met),
    inside * since(met_item),
    (1 - inside) * bent(weight),
    (1 - inside) * bent(shift),
    event,
    inside * event,
    faded(e)[:, -last:],
  ]
  return jnp.concatenate(parts, axis=-1)
