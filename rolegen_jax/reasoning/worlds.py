"""The counterfactual worlds of a user: what is done in each, what its prompt then is, and what the worlds have in common.

A removed event is visible to nobody: its own positions are masked, and since every later position would have attended to it, all
later hidden states differ from the second layer on. So a world that removes an event shares with the factual one exactly what comes
before the last M events, the only ones that are ever removed. A world that changes a role or an intent changes nothing of the prompt,
and shares all of it. Both are exact, and `Tree` lays them out.

Shapes: B users, W worlds or n chains, N = B * n, M role events, R prompt length, C context slots, T completion length.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.models.attention import Branched, per_chain
from rolegen_jax.models.backbone import NEG_INF
from rolegen_jax.reasoning.frcot import Layout, Prompt

TRIGGER = ROLE_NAMES.index('TRIGGER')


class Interventions(NamedTuple):
  """What is done in each world; all -1 and False in world 0."""

  role: jax.Array  # int32 [B, W, M], do(role_m = this); -1 = none
  removed: jax.Array  # bool [B, W, M], do(remove the m-th of the last M events)
  intent: jax.Array  # int32 [B, W], do(first code of the first intent = this); -1 = none


def kinds(worlds: int, interventions: tuple[str, ...]) -> list[str]:
  """What is done in worlds 1 .. W - 1: `interventions` by turns, those that remove last."""
  return sorted(
    (interventions[w % len(interventions)] for w in range(worlds - 1)), key='remove'.__eq__
  )


def removing(worlds: int, interventions: tuple[str, ...]) -> tuple[int, ...]:
  """Worlds that remove an event."""
  return tuple(w for w, kind in enumerate(kinds(worlds, interventions), 1) if kind == 'remove')


def pivotal(log_probs_MxBxK) -> jax.Array:
  """fp32 [B, M]: how much of the intent moves when an event is removed (total variation), of `intent.without_each`. No conversion is asked."""
  p = jnp.exp(log_probs_MxBxK)
  return 0.5 * jnp.abs(p[1:] - p[:1]).sum(-1).T


def choose_interventions(
  prompt: Prompt, pivotal_BxM, intent_BxK, worlds: int, interventions: tuple[str, ...], key
) -> Interventions:
  """Pivots are the most pivotal events that are no purchases, one for each world that removes its pivot or gives it a role, uniformly
  drawn (again from the top when there are too few). The other worlds set out from the intents that are likeliest after the first.

  `intent_BxK`: log-probabilities of the factual world; NEG_INF where no item is.
  """
  done = np.array(kinds(worlds, interventions))
  b, m = pivotal_BxM.shape
  eligible = prompt.role_allowed[..., TRIGGER]
  order = jnp.argsort(-jnp.where(eligible, pivotal_BxM, -1.0), axis=1)
  some = jnp.maximum(eligible.sum(1, keepdims=True), 1)
  turn = lambda on: np.cumsum(on) - on  # which of its sort a world is
  pivot = jnp.take_along_axis(order, turn(done != 'intent')[None] % some, axis=1)
  at_pivot = (jnp.arange(m) == pivot[..., None]) & eligible.any(1)[:, None, None]
  new_role = jax.random.randint(
    key, pivot.shape, 0, len(ROLE_NAMES) - 1
  )  # CONVERT, the last role, is never forced
  role = jnp.where(at_pivot & (done == 'role')[:, None], new_role[..., None], -1)
  likely, codes = jax.lax.top_k(intent_BxK, min(worlds, intent_BxK.shape[1]))
  rank = (1 + turn(done == 'intent')) % codes.shape[1]
  intent = jnp.where(likely[:, rank] > NEG_INF / 2, codes[:, rank], -1)
  factual = lambda x, fill: jnp.pad(
    x, ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2)), constant_values=fill
  )
  intent = jnp.where(done == 'intent', intent, -1)
  return Interventions(
    factual(role.astype(jnp.int32), -1),
    factual(at_pivot & (done == 'remove')[:, None], False),
    factual(intent, -1),
  )


def no_interventions(users: int, worlds: int, role_events: int) -> Interventions:
  none = jnp.full((users, worlds, role_events), -1, jnp.int32)
  return Interventions(none, none >= 0, none[..., 0])


def world_prompts(layout: Layout, prompt: Prompt, interventions: Interventions) -> Prompt:
  """The prompts [B * W, ...] that the worlds see: removed events are visible to nobody, cause nothing and get no role."""
  b, w, m = interventions.removed.shape
  removed, role = (a.reshape(b * w, m) for a in (interventions.removed, interventions.role))
  gone = jnp.repeat(
    jnp.pad(removed, ((0, 0), (layout.config.events - m, 0))), layout.per_event, axis=1
  )
  tokens, valid, allowed, evidence = jax.tree.map(lambda x: per_chain(x, w), prompt)
  present = evidence.present.at[:, -m:].set(evidence.present[:, -m:] & ~removed)
  evidence = evidence._replace(
    present=present,
    role=evidence.role.at[:, -m:].set(role),
    intent=interventions.intent.reshape(b * w),
  )
  return Prompt(
    tokens, valid & ~jnp.pad(gone, ((0, 0), (0, 2))), allowed & ~removed[..., None], evidence
  )


@dataclasses.dataclass(frozen=True)
class Tree:
  """All chains of a user as one row, in which what they share stands once. Static; arrays are numpy.

  The trunk is the prompt and the completions of the chains that remove nothing. Then comes a branch for each chain that may remove
  an event: the last M events and the end of the prompt again, and its completion.
  """

  layout: Layout
  chains: int = 1
  removing: tuple[int, ...] = ()  # chains that may remove an event; never the first

  @property
  def shared(self) -> int:
    """Positions before the last M events, which no removal reaches."""
    return (self.layout.config.events - self.layout.config.role_events) * self.layout.per_event

  @property
  def rest(self) -> int:
    """Positions of the prompt from there on."""
    return self.layout.prompt_length - self.shared

  @property
  def trunk(self) -> int:
    return self.layout.prompt_length + (self.chains - len(self.removing)) * self.layout.length

  @property
  def branch(self) -> int:
    return self.rest + self.layout.length

  @property
  def length(self) -> int:
    return self.trunk + len(self.removing) * self.branch

  @functools.cached_property
  def order(self) -> list[int]:
    """Chains as their completions follow in the row."""
    return [c for c in range(self.chains) if c not in self.removing] + list(self.removing)

  @functools.cached_property
  def completions(self) -> list[slice]:
    """Of each chain."""
    t, found = self.layout.length, {}
    for place, chain in enumerate(self.order):
      forks = place - (self.chains - len(self.removing))
      start = (
        self.layout.prompt_length + place * t
        if forks < 0
        else self.trunk + forks * self.branch + self.rest
      )
      found[chain] = slice(start, start + t)
    return [found[chain] for chain in range(self.chains)]

  @functools.cached_property
  def ends(self) -> list[int]:
    """Where the prompt ends that each chain's completion goes on from."""
    return [
      c.start - 1 if chain in self.removing else self.layout.prompt_length - 1
      for chain, c in enumerate(self.completions)
    ]

  @functools.cached_property
  def positions(self) -> np.ndarray:
    """[length], in a chain of its own."""
    r, t, calm = self.layout.prompt_length, self.layout.length, self.chains - len(self.removing)
    return np.concatenate(
      [
        np.arange(r),
        np.tile(np.arange(r, r + t), calm),
        np.tile(np.arange(self.shared, r + t), len(self.removing)),
      ]
    )

  def lay(self, prompt_BxnxR, completion_BxnxT) -> jax.Array:
    """The row [B, length] of what stands in the prompts and completions of all chains."""
    calm = [completion_BxnxT[:, c] for c in self.order if c not in self.removing]
    forks = [
      x for c in self.removing for x in (prompt_BxnxR[:, c, self.shared :], completion_BxnxT[:, c])
    ]
    return jnp.concatenate([prompt_BxnxR[:, 0], *calm, *forks], axis=1)

  def mask(self, segment_Bxlength) -> Branched:
    """A completion sees its prompt and itself; nothing else of the row."""
    r, t = self.layout.prompt_length, self.layout.length
    trunk = np.tri(self.trunk, dtype=bool)
    for start in range(r, self.trunk, t):
      trunk[start : start + t, r:start] = False
    return Branched(trunk, np.tri(self.branch, dtype=bool), self.shared, segment_Bxlength)
