"""The worlds of a user: interventions, the prompts that follow, and what worlds share.

A removed event is visible to nobody. Its own positions are masked, and since every later position
would have attended to it, all later hidden states differ from the second layer on. So a world that
removes an event shares with the factual one exactly what comes before the last M events, the only
ones that are ever removed. A world that changes a role or an intent changes nothing of the prompt
and shares all of it. Both are exact, and `Tree` lays them out.

Shapes: B users, W worlds or n chains, N = B * n, M role events, R prompt length, T completion
length, K coarse codes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.models.attention import BranchedMask, per_chain
from rolegen_jax.models.numerics import is_possible
from rolegen_jax.reasoning.frcot import PURCHASE, Layout, Prompt


class Choice(NamedTuple):
  """What is chosen for each world before any role is known; all 0, False and -1 in world 0."""

  role_shift: jax.Array  # int32 [B, W, M], do(role_m = the factual one moved on so far); 0 = none
  removed: jax.Array  # as in Interventions
  intent: jax.Array

  def without_roles(self) -> Interventions:
    """Return the interventions as far as they are known before the roles."""
    return self.with_roles(jnp.full_like(self.role_shift, -1))

  def with_roles(self, roles_BxWxM: jax.Array) -> Interventions:
    """Return the interventions once the roles of all worlds are known."""
    forced = jnp.where(self.role_shift > 0, roles_BxWxM, -1)
    return Interventions(forced, self.removed, self.intent)


class Interventions(NamedTuple):
  """What is done in each world; all -1 and False in world 0."""

  role: jax.Array  # int32 [B, W, M], do(role_m = this); -1 = none
  removed: jax.Array  # bool [B, W, M], do(remove the m-th of the last M events)
  intent: jax.Array  # int32 [B, W], do(first code of the first intent = this); -1 = none


def kinds(worlds: int, interventions: tuple[str, ...]) -> list[str]:
  """Return the kind of intervention in worlds 1 .. W - 1: each by turns, removals moved last."""
  by_turns = (interventions[w % len(interventions)] for w in range(worlds - 1))
  return sorted(by_turns, key=lambda kind: kind == 'remove')


def removing(worlds: int, interventions: tuple[str, ...]) -> tuple[int, ...]:
  """Return the worlds that remove an event."""
  of_world = enumerate(kinds(worlds, interventions), 1)
  return tuple(w for w, kind in of_world if kind == 'remove')


def pivotal(log_probs_MxBxK: jax.Array) -> jax.Array:
  """Return how much of the intent moves when each event is removed, fp32 [B, M].

  It is the total variation between the distributions of `intent.without_each` [1 + M, B, K]. No
  conversion enters.
  """
  p = jnp.exp(log_probs_MxBxK)
  return 0.5 * jnp.abs(p[1:] - p[:1]).sum(-1).T


def choose_interventions(
  prompt: Prompt,
  pivotal_BxM: jax.Array,
  intent_BxK: jax.Array,
  worlds: int,
  interventions: tuple[str, ...],
  keys_B: jax.Array,
) -> Choice:
  """Choose what is done in each world.

  Worlds that remove an event or change a role do so at a pivot. Pivots are the most pivotal events
  that are no purchases, a new one in each such world (again from the top when there are too few);
  a changed role is never the factual one, and any other but CONVERT equally likely. The other
  worlds start from the likeliest intents after the first. `intent_BxK` are log-probabilities of the
  factual world; NEG_INF where no item is.
  """
  kind_of = np.array(kinds(worlds, interventions))  # of worlds 1 .. W - 1
  changes_intent = kind_of == 'intent'
  m = pivotal_BxM.shape[1]
  evidence = prompt.evidence
  eligible = (evidence.present & (evidence.event != PURCHASE))[:, -m:]
  order = jnp.argsort(-jnp.where(eligible, pivotal_BxM, -1.0), axis=1)
  n_eligible = jnp.maximum(eligible.sum(1, keepdims=True), 1)
  pivot = jnp.take_along_axis(order, _turn(~changes_intent)[None] % n_eligible, axis=1)
  at_pivot = (jnp.arange(m) == pivot[..., None]) & eligible.any(1)[:, None, None]
  # The last role, CONVERT, is no choice; a shift by all the others would lead back.
  draw = jax.vmap(lambda key: jax.random.randint(key, pivot.shape[1:], 1, len(ROLE_NAMES) - 1))
  shift = jnp.where(at_pivot & (kind_of == 'role')[:, None], draw(keys_B)[..., None], 0)
  log_prob, codes = jax.lax.top_k(intent_BxK, min(worlds, intent_BxK.shape[1]))
  rank = (1 + _turn(changes_intent)) % codes.shape[1]
  intent = jnp.where(is_possible(log_prob[:, rank]), codes[:, rank], -1)
  return Choice(
    _with_factual(shift.astype(jnp.int32), 0),
    _with_factual(at_pivot & (kind_of == 'remove')[:, None], False),
    _with_factual(jnp.where(changes_intent, intent, -1), -1),
  )


def _turn(in_group: np.ndarray) -> np.ndarray:
  """Return how many worlds of a group come before each world."""
  return np.cumsum(in_group) - in_group


def _with_factual(x: jax.Array, value: int | bool) -> jax.Array:
  """Put the factual world, where everything is `value`, before the others on axis 1."""
  widths = ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2))
  return jnp.pad(x, widths, constant_values=value)


def no_choice(users: int, worlds: int, role_events: int) -> Choice:
  """Return the choice of nothing in any world."""
  none = jnp.zeros((users, worlds, role_events), jnp.int32)
  return Choice(none, none > 0, none[..., 0] - 1)


def no_interventions(users: int, worlds: int, role_events: int) -> Interventions:
  """Return interventions that do nothing in any world."""
  return no_choice(users, worlds, role_events).without_roles()


def world_prompts(layout: Layout, prompt: Prompt, interventions: Interventions) -> Prompt:
  """Return the prompts [B * W, ...] of all worlds.

  Removed events are visible to nobody, cause nothing and get no role.
  """
  b, w, m = interventions.removed.shape
  removed, role = (a.reshape(b * w, m) for a in (interventions.removed, interventions.role))
  of_event = jnp.pad(removed, ((0, 0), (layout.config.events - m, 0)))
  removed_tokens = jnp.pad(jnp.repeat(of_event, layout.per_event, axis=1), ((0, 0), (0, 2)))
  tokens, valid, role_allowed, evidence = jax.tree.map(lambda x: per_chain(x, w), prompt)
  evidence = evidence._replace(
    present=evidence.present.at[:, -m:].set(evidence.present[:, -m:] & ~removed),
    role=evidence.role.at[:, -m:].set(role),
    intent=interventions.intent.reshape(b * w),
  )
  return Prompt(tokens, valid & ~removed_tokens, role_allowed & ~removed[..., None], evidence)


@dataclasses.dataclass(frozen=True)
class Tree:
  """The layout of all chains of a user as one row, in which what they share stands once.

  The trunk is the prompt and the completions of the chains that remove nothing. A branch follows
  for each chain that may remove an event: the last M events and the end of the prompt again, and
  its completion. Everything is static; arrays are numpy.
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
    """Positions of the prompt after the shared ones."""
    return self.layout.prompt_length - self.shared

  @property
  def trunk_chains(self) -> int:
    """Chains whose completions are on the trunk."""
    return self.chains - len(self.removing)

  @property
  def trunk(self) -> int:
    """Positions of the trunk."""
    return self.layout.prompt_length + self.trunk_chains * self.layout.length

  @property
  def branch(self) -> int:
    """Positions of a branch."""
    return self.rest + self.layout.length

  @property
  def length(self) -> int:
    """Positions of the row."""
    return self.trunk + len(self.removing) * self.branch

  @functools.cached_property
  def order(self) -> list[int]:
    """The chains in the order of their completions in the row."""
    return [c for c in range(self.chains) if c not in self.removing] + list(self.removing)

  @functools.cached_property
  def completions(self) -> list[slice]:
    """Where the completion of each chain stands in the row."""
    t, slices = self.layout.length, {}
    for place, chain in enumerate(self.order):
      if place < self.trunk_chains:
        start = self.layout.prompt_length + place * t
      else:
        start = self.trunk + (place - self.trunk_chains) * self.branch + self.rest
      slices[chain] = slice(start, start + t)
    return [slices[chain] for chain in range(self.chains)]

  @functools.cached_property
  def ends(self) -> list[int]:
    """The last position of the prompt that each chain's completion continues."""
    return [
      completion.start - 1 if chain in self.removing else self.layout.prompt_length - 1
      for chain, completion in enumerate(self.completions)
    ]

  @functools.cached_property
  def positions(self) -> np.ndarray:
    """The position of each place of the row in a chain of its own, [length]."""
    r, t = self.layout.prompt_length, self.layout.length
    completions = np.tile(np.arange(r, r + t), self.trunk_chains)
    branches = np.tile(np.arange(self.shared, r + t), len(self.removing))
    return np.concatenate([np.arange(r), completions, branches])

  def lay(self, prompt_BxnxR: jax.Array, completion_BxnxT: jax.Array) -> jax.Array:
    """Lay what stands in the prompts and completions of all chains out as rows [B, length]."""
    parts = [prompt_BxnxR[:, 0]]
    parts += [completion_BxnxT[:, c] for c in self.order if c not in self.removing]
    for c in self.removing:
      parts += [prompt_BxnxR[:, c, self.shared :], completion_BxnxT[:, c]]
    return jnp.concatenate(parts, axis=1)

  def mask(self, segment_Bxlength: jax.Array) -> BranchedMask:
    """Return the mask by which a completion sees its prompt and itself, and nothing else."""
    r, t = self.layout.prompt_length, self.layout.length
    trunk = np.tri(self.trunk, dtype=bool)
    for start in range(r, self.trunk, t):
      trunk[start : start + t, r:start] = False
    return BranchedMask(trunk, np.tri(self.branch, dtype=bool), self.shared, segment_Bxlength)
