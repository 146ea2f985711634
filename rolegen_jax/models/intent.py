"""How intent evolves: the structural equations from a trajectory to the coarse codes that the user is drawn to, and to their items.

Every event excites the coarse codes that contact with its item leads to, and damps those that it draws interest from
(`features/excitation.py`); a purchase satisfies its own coarse code. All fades with age:

  excited_k = base_k + sum_i gain(role_i) gain(event_i) fade(age_i) (weight_ik + opens * max(shift_ik, 0))
  damped_k = sum_i fade'(age_i) (satisfies [event_i = purchase, own_i = k] - draws * min(shift_ik, 0))
  log p(k) = log_softmax(focus * (log excited_k - damped_k))

Within a coarse code, events call for the items that follow theirs (`data/item transitions.py`), and for their own again:

  called_j = sum_i gain(role_i) gain(event_i) fade''(age_i) (share_ij + stays [item_i = j])

Of these the largest are kept, and the next code of an item after `prefix` gets focus_l log(prior_l + sum of called_j over items j below prefix + code), l being its level.

fade, fade' and fade'' are mixtures of exponentials, of time and of events since. Interventions enter here: do(remove event i) takes its terms out, do(role_i = r) scales what
it excites and calls for by that role's gain (an event left alone has gain 1), do(intent = k) lets k and the likeliest coarse code change
places. So what an intervention does follows from the equations, and is not left to what a language model makes of a changed token.

Shapes: N sequences, n events, R coarse codes and S item transitions per event, K coarse codes (codes), L levels, A items called for, P prefixes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES

PURCHASE = EVENT_NAMES.index('purchase')
FADE_DAYS, FADE_EVENTS = (0.5, 2.0, 7.0, 30.0), (1.0, 5.0)
FADES = len(FADE_DAYS) + len(FADE_EVENTS)
# Where training starts, as logs; the first by event code. A purchase ends a need, so it excites less than a view.
EVENT_GAIN = dict(impression=-1.0, view=0.0, fav=0.5, cart=0.7, remove=-0.5, purchase=-1.0)
ROLE_GAIN = dict(
  TRIGGER=0.7,
  ANCHOR=0.7,
  COMPARE=0.0,
  REINFORCE=0.0,
  COMPLEMENT=0.0,
  EXPLORE=-0.7,
  DISTRACT=-2.0,
  CONVERT=0.0,
)
OPENS, DRAWS, SATISFIES = 0.25, 3.0, 1.2  # where training starts: shares are small numbers
BASE = 0.3  # excitation of a user without any event, over all coarse codes
FOCUS = 1.3
COUNTED_FOCUS, COUNTED_PRIOR, SELF_TRANSITION = 0.7, 2e-3, 0.05


class Evidence(NamedTuple):
  """Events as causes of intent."""

  code: jax.Array  # int32 [N, n, R]
  weight: jax.Array  # fp32 [N, n, R]
  shift: jax.Array  # fp32 [N, n, R]
  next_item: jax.Array  # int32 [N, n, S]
  share: jax.Array  # fp32 [N, n, S]
  item: jax.Array  # int32 [N, n]; -1 = padding
  age: jax.Array  # int32 [N, n], seconds before the occasion
  event: jax.Array  # int32 [N, n]
  present: jax.Array  # bool [N, n]; padding and removed events are not
  own: jax.Array  # int32 [N, n], the item's coarse code
  role: jax.Array  # int32 [N, n], do(role); -1 = left alone
  intent: jax.Array  # int32 [N], do(intent); -1 = left alone


class Retrieved(NamedTuple):
  """The items that a history calls for most, the first most of all."""

  item: jax.Array  # int32 [N, A]; -1 = no more
  codes: jax.Array  # int32 [N, A, L]
  weight: jax.Array  # fp32 [N, A]; 0 = no more


class Intent(nnx.Module):
  def __init__(self, codes: int, levels: int):
    vector = lambda values: nnx.Param(jnp.asarray(values, jnp.float32), axes=(None,))
    self.base = vector(jnp.zeros(codes))
    self.fade = vector([0.0] * FADES)
    self.event_gain = vector([EVENT_GAIN[name] for name in EVENT_NAMES])
    self.role_gain = vector([ROLE_GAIN[name] for name in ROLE_NAMES])
    self.focus = vector([FOCUS])
    self.damp_fade = vector([0.0] * FADES)
    self.strength = vector(np.log([OPENS, DRAWS, SATISFIES]))  # logs of opens, draws, satisfies
    self.counted_fade = vector([0.0] * FADES)
    self.counted_focus = vector(
      [COUNTED_FOCUS] * (levels - 1)
    )  # of every level but the first, which is the coarse code
    self.counted_prior = vector(np.log([COUNTED_PRIOR] * (levels - 1)))
    self.self_transition = vector(np.log([SELF_TRANSITION]))

  def __call__(self, e: Evidence, only_roles: bool = False) -> jax.Array:
    """log p(coarse code) fp32 [N, K]. `only_roles` (static): gradients reach the gains of roles alone."""
    hold = jax.lax.stop_gradient if only_roles else lambda x: x
    base, fade, event_gain, focus, damp_fade, strength = (
      hold(p[...])
      for p in (self.base, self.fade, self.event_gain, self.focus, self.damp_fade, self.strength)
    )
    opens, draws, satisfies = jnp.exp(strength)
    excites = self._excites(e, fade, event_gain)
    damps = jnp.where(e.present, _faded(e) @ jax.nn.softmax(damp_fade), 0.0)
    n, flat = e.age.shape[0], lambda x: x.reshape(n, -1)
    add = jax.vmap(lambda to, code, term: to.at[code].add(term))
    start = jnp.broadcast_to(BASE / base.shape[0] * jnp.exp(base), (n, *base.shape))
    excited = add(
      start, flat(e.code), flat(excites[..., None] * (e.weight + opens * jnp.maximum(e.shift, 0.0)))
    )
    damped = add(
      jnp.zeros_like(start),
      flat(e.code),
      flat(damps[..., None] * -draws * jnp.minimum(e.shift, 0.0)),
    )
    damped = add(damped, e.own, jnp.where(e.event == PURCHASE, damps * satisfies, 0.0))
    log_probs = jax.nn.log_softmax(focus * (jnp.log(excited) - damped), axis=-1)
    first = jnp.argmax(log_probs, axis=-1)
    wanted = jnp.where(e.intent >= 0, e.intent, first)
    trade = jax.vmap(lambda x, a, b: x.at[a].set(x[b]).at[b].set(x[a]))
    return trade(log_probs, first, wanted)

  def _excites(self, e: Evidence, fade, event_gain) -> jax.Array:
    """fp32 [N, n]: gain(role) gain(event) fade(age)."""
    gain = jnp.where(
      e.role >= 0, jnp.exp(jnp.take(self.role_gain[...], jnp.maximum(e.role, 0))), 1.0
    )
    return jnp.where(
      e.present,
      _faded(e) @ jax.nn.softmax(fade) * jnp.exp(jnp.take(event_gain, e.event)) * gain,
      0.0,
    )

  def retrieve(self, e: Evidence, keep: int, codes_IxL) -> Retrieved:
    """The `keep` items that are called for most."""
    n = len(e.age)
    share = jnp.concatenate(
      [jnp.broadcast_to(jnp.exp(self.self_transition[...]), (*e.item.shape, 1)), e.share], axis=-1
    )
    weight = self._excites(e, self.counted_fade[...], self.event_gain[...])[..., None] * share
    item = jnp.concatenate([jnp.maximum(e.item, 0)[..., None], e.next_item], axis=-1)
    item, weight = jax.lax.sort((item.reshape(n, -1), weight.reshape(n, -1)), num_keys=1)
    # Equal items are neighbours now: the terms of the d-th distinct one go to place d.
    place = (
      jnp.cumsum(item != jnp.pad(item, ((0, 0), (1, 0)), constant_values=-1)[:, :-1], axis=1) - 1
    )
    retrieved = jax.vmap(lambda at, x: jnp.zeros_like(x).at[at].add(x))(place, weight)
    distinct = jax.vmap(lambda at, x: jnp.zeros_like(x).at[at].max(x))(place, item)
    weight, at = jax.lax.top_k(retrieved, min(keep, retrieved.shape[1]))
    item = jnp.where(weight > 0, jnp.take_along_axis(distinct, at, axis=1), -1)
    pad = ((0, 0), (0, keep - item.shape[1]))
    item = jnp.pad(item, pad, constant_values=-1)
    return Retrieved(item, jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0), jnp.pad(weight, pad))

  def next_code(self, level: int, retrieved: Retrieved, below_NxPxA) -> jax.Array:
    """fp32 [N, P, K]: what speaks for each code of `level` >= 1. `below`: which of the items called for are below each of P prefixes."""
    none = jnp.zeros(self.base[...].shape, jnp.float32)
    add = jax.vmap(jax.vmap(lambda code, term: none.at[code].add(term), (None, 0)))
    retrieved = add(
      retrieved.codes[..., level], jnp.where(below_NxPxA, retrieved.weight[:, None], 0.0)
    )
    return self.counted_focus[level - 1] * jnp.log(
      jnp.exp(self.counted_prior[level - 1]) + retrieved
    )


def _faded(e: Evidence) -> jax.Array:
  """fp32 [N, n, FADES], by age in time, and in events that came after."""
  after = jnp.cumsum(e.present[:, ::-1], axis=1)[:, ::-1] - e.present
  by = lambda age, scale: jnp.exp(-age[..., None].astype(jnp.float32) / jnp.array(scale))
  return jnp.concatenate([by(e.age / 86_400.0, FADE_DAYS), by(after, FADE_EVENTS)], axis=-1)


def without_each(equation: Intent, evidence: Evidence, last: int) -> jax.Array:
  """fp32 [1 + M, N, K]: log p(coarse code) as it stands, then without each of the last M = `last` events."""
  n = evidence.present.shape[1]
  left = lambda position: equation(
    evidence._replace(present=evidence.present & (jnp.arange(n) != position))
  )
  return jax.vmap(left)(jnp.concatenate([jnp.array([-1]), jnp.arange(n - last, n)]))
