"""Histories as the structural equations read them: events as causes of intent.

Shapes: N sequences, n events, R coarse codes, S item transitions and A attributes per event.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rolegen_jax.config import EVENT_NAMES

PURCHASE = EVENT_NAMES.index('purchase')
# Scales of the exponentials that a fade mixes: days, and events since.
FADE_DAYS, FADE_EVENTS = (0.5, 2.0, 7.0, 30.0), (1.0, 5.0)
FADES = len(FADE_DAYS) + len(FADE_EVENTS)


class Evidence(NamedTuple):
  """The events of histories as causes of intent."""

  code: jax.Array  # int32 [N, n, R], coarse codes that contact with the item leads to
  weight: jax.Array  # fp32 [N, n, R], how much more than at large
  shift: jax.Array  # fp32 [N, n, R], share of interest after contact less the share before
  next_item: jax.Array  # int32 [N, n, S], items that follow the event's
  share: jax.Array  # fp32 [N, n, S], how strongly: the normalized counts
  item: jax.Array  # int32 [N, n]; -1 = padding
  age: jax.Array  # int32 [N, n], seconds before the occasion
  event: jax.Array  # int32 [N, n]
  present: jax.Array  # bool [N, n]; False for padding and removed events
  own_code: jax.Array  # int32 [N, n], the item's coarse code
  role: jax.Array  # int32 [N, n], do(role); -1 = left alone
  intent: jax.Array  # int32 [N], do(intent); -1 = left alone
  # int32 [N, n, A], attributes of the event's item; -1 = no more. None = without kinds of users.
  attribute: jax.Array | None = None

  def with_roles(self, role_NxM: jax.Array) -> Evidence:
    """Return the same with these roles of the last M events; -1 leaves one alone."""
    return self._replace(role=self.role.at[:, -role_NxM.shape[1] :].set(role_NxM))

  def without_roles(self) -> Evidence:
    """Return the same with every role left alone."""
    return self._replace(role=jnp.full_like(self.role, -1))


def faded(e: Evidence) -> jax.Array:
  """Return the exponentials of each event's age in time and in events, fp32 [N, n, FADES]."""
  events_since = jnp.cumsum(e.present[:, ::-1], axis=1)[:, ::-1] - e.present

  def decays(age: jax.Array, scales: tuple[float, ...]) -> jax.Array:
    return jnp.exp(-age[..., None].astype(jnp.float32) / jnp.array(scales))

  by_time, by_events = decays(e.age / 86_400.0, FADE_DAYS), decays(events_since, FADE_EVENTS)
  return jnp.concatenate([by_time, by_events], axis=-1)
