"""How intent evolves: the structural equation from a trajectory to the neighbourhoods that the user is drawn to.

Every event excites the neighbourhoods that contact with its item leads to (`data/excitation.py`), fading with age:

  lambda_k = base_k + sum_i gain(role_i) gain(event_i) fade(age_i) weight_ik        log p(k) = log_softmax(focus * log lambda_k)

fade is a mixture of exponentials. Roles enter as interventions: do(remove event i) takes its term out, do(role_i = r) scales it by
that role's gain, and an event left alone has gain 1. So what an intervention does to intent follows from the equation, and is not
left to what a language model makes of a changed token.

Shapes: N sequences, n events, R neighbourhoods per event, K neighbourhoods.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES

FADE_DAYS = (0.5, 2.0, 7.0, 30.0)
# Where training starts, as logs; the first by event code. A purchase ends a need, so it excites less than a view.
EVENT_GAIN = dict(impression=-1.0, view=0.0, fav=0.5, cart=0.7, remove=-0.5, purchase=-1.0)
ROLE_GAIN = dict(TRIGGER=0.7, ANCHOR=0.7, COMPARE=0.0, REINFORCE=0.0, COMPLEMENT=0.0, EXPLORE=-0.7, DISTRACT=-2.0, CONVERT=0.0)
BASE = 0.3  # excitation of a user without any event, over all neighbourhoods
FOCUS = 1.3


class Evidence(NamedTuple):
  """Events as causes of intent."""

  code: jax.Array  # int32 [N, n, R]
  weight: jax.Array  # fp32 [N, n, R]
  age: jax.Array  # int32 [N, n], seconds before the occasion
  event: jax.Array  # int32 [N, n]
  present: jax.Array  # bool [N, n]; padding and removed events are not
  role: jax.Array  # int32 [N, n], do(role); -1 = left alone


class Intent(nnx.Module):

  def __init__(self, codes: int):
    vector = lambda values: nnx.Param(jnp.asarray(values, jnp.float32), axes=(None,))
    self.base = vector(jnp.zeros(codes))
    self.fade = vector([0.0] * len(FADE_DAYS))
    self.event_gain = vector([EVENT_GAIN[name] for name in EVENT_NAMES])
    self.role_gain = vector([ROLE_GAIN[name] for name in ROLE_NAMES])
    self.focus = vector([FOCUS])

  def __call__(self, e: Evidence, only_roles: bool = False) -> jax.Array:
    """log p(neighbourhood) fp32 [N, K]. `only_roles` (static): gradients reach the gains of roles alone."""
    hold = jax.lax.stop_gradient if only_roles else lambda x: x
    base, fade, event_gain, focus = (hold(p[...]) for p in (self.base, self.fade, self.event_gain, self.focus))
    days = e.age[..., None].astype(jnp.float32) / (86_400.0 * jnp.array(FADE_DAYS))
    strength = jnp.exp(-days) @ jax.nn.softmax(fade) * jnp.exp(jnp.take(event_gain, e.event))
    gain = jnp.where(e.role >= 0, jnp.exp(jnp.take(self.role_gain[...], jnp.maximum(e.role, 0))), 1.0)
    terms = jnp.where(e.present, strength * gain, 0.0)[..., None] * e.weight
    n = terms.shape[0]
    start = BASE / base.shape[0] * jnp.exp(base)
    add = jax.vmap(lambda code, term: start.at[code].add(term))
    excited = add(e.code.reshape(n, -1), terms.reshape(n, -1))
    return jax.nn.log_softmax(focus * jnp.log(excited), axis=-1)
