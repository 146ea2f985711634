"""How intent evolves: structural equations from a trajectory to what the user is drawn to.

The first equation is about coarse codes. Every event excites the coarse codes that contact with its
item leads to, and damps those that it draws interest from (`features/excitation.py`); a purchase
satisfies the coarse code of its own item:

  excited_k = base_k
              + sum_i role_gain_i event_gain_i fade_i (weight_ik + opens * max(shift_ik, 0))
  damped_k  = sum_i damp_fade_i (satisfies [event_i = purchase, own_code_i = k]
                                 - draws * min(shift_ik, 0))
  log p(k)  = log_softmax_k(focus * (log excited_k - damped_k))

Where the reasoner knows kinds of users (`kinds.py`), what it learned of them is pooled with what is
counted: both logs are weighted, added, and normalized. Validation chooses the weights.

The second is about items. Every event retrieves the items that often follow its own
(`features/item_transitions.py`), and its own item again:

  retrieved_j = sum_i role_gain_i event_gain_i counted_fade_i
                      (share_ij + self_transition [item_i = j])

Only the items with the largest values are kept. After a prefix of an item, which is empty at first,
the code c of level l gets the logit

  counted_focus_l * log(counted_prior_l + sum of retrieved_j over items j that begin with prefix c)

At the first level it is added to log p(c): both equations speak of coarse codes, and their evidence
is multiplied.

fade, damp_fade and counted_fade are learned mixtures of exponentials of an event's age, in time and
in events since. Interventions enter here: do(remove event i) takes its terms out, do(role_i = r)
scales its terms by the gain of r (an event left alone has gain 1), and do(intent = k) lets k and
the likeliest coarse code change places. So the effect of an intervention follows from the equations
and is not left to what a language model makes of a changed token.

Shapes: N sequences, n events, R coarse codes and S item transitions per event, K coarse codes,
L levels, A retrieved items, P prefixes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.models import functional
from rolegen_jax.models.attention import per_chain
from rolegen_jax.models.evidence import FADES, PURCHASE, Evidence, faded
from rolegen_jax.models.kinds import Kinds

EQUATIONS = ('intent', 'roles')  # the reasoner's structural equations, by the names it has for them
# Where training starts. Gains are logs. A purchase ends a need, so it excites less than a view.
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
OPENS, DRAWS, SATISFIES = 0.25, 3.0, 1.2  # shares of interest are small numbers
BASE = 0.3  # excitation of a user without any event, summed over all coarse codes
FOCUS = 1.3
COUNTED_FOCUS, COUNTED_PRIOR, SELF_TRANSITION = 0.7, 2e-3, 0.05


class Retrieved(NamedTuple):
  """The items that a history retrieves most strongly, in falling order."""

  item: jax.Array  # int32 [N, A]; -1 = no more
  codes: jax.Array  # int32 [N, A, L]
  weight: jax.Array  # fp32 [N, A]; 0 = no more

  def shares(self) -> jax.Array:
    """Return the share of each in all that is retrieved, fp32 [N, A]."""
    return self.weight / jnp.maximum(self.weight.sum(-1, keepdims=True), 1e-9)


class Priors(NamedTuple):
  """What the equations say of N sequences: where the codes of intents and items start from."""

  intent: jax.Array  # fp32 [N, K], log p(coarse code)
  retrieved: Retrieved


class IntentParts(NamedTuple):
  """What is said of the coarse codes that N users are drawn to, before do(intent)."""

  counted: jax.Array  # fp32 [N, K], log p by the first equation
  learned: jax.Array | None  # fp32 [N, K], log p by kinds of users; None = there are none

  def pooled(self, intent_N: jax.Array, counted: ArrayLike, learned: ArrayLike) -> jax.Array:
    """Return log p(coarse code) under do(intent), the parts weighted so, fp32 [N, K]."""
    log_probs = self.counted
    if self.learned is not None:
      log_probs = jax.nn.log_softmax(counted * self.counted + learned * self.learned)
    return _do_intent(log_probs, intent_N)


class Intent(nnx.Module):
  """The parameters of the equations: `counted_*` and `self_transition` belong to the second.

  `language` is the weight of what the language model adds to them, `pooled` those of what is
  counted and of what is learned of kinds of users, which are there where `kinds` is positive.
  """

  def __init__(
    self,
    codes: int,
    levels: int,
    kinds: int = 0,
    attributes: int = 0,
    *,
    rngs: nnx.Rngs | None = None,
  ):
    def vector(values: ArrayLike | list[float]) -> nnx.Param:
      return nnx.Param(jnp.asarray(values, jnp.float32), axes=(None,))

    self.base = vector(jnp.zeros(codes))
    self.fade = vector([0.0] * FADES)
    self.event_gain = vector([EVENT_GAIN[name] for name in EVENT_NAMES])
    self.role_gain = vector([ROLE_GAIN[name] for name in ROLE_NAMES])
    self.focus = vector([FOCUS])
    self.damp_fade = vector([0.0] * FADES)
    self.strength = vector(np.log([OPENS, DRAWS, SATISFIES]))  # logs of opens, draws, satisfies
    self.counted_fade = vector([0.0] * FADES)
    self.counted_focus = vector([COUNTED_FOCUS] * levels)
    self.counted_prior = vector(np.log([COUNTED_PRIOR] * levels))
    self.self_transition = vector(np.log([SELF_TRANSITION]))
    # Of the language model's logits beside all this; calibration chooses it, no gradient moves it.
    self.language = vector([1.0])
    if kinds:
      self.pooled = vector([0.5, 0.5])  # likewise
      self.kinds = Kinds(kinds, codes, attributes, rngs=rngs or nnx.Rngs(0))

  def __call__(self, evidence: Evidence, worlds: int = 1) -> jax.Array:
    """Return log p(coarse code), fp32 [N, K].

    worlds: how many neighboring rows are of the same events.
    """
    return self.parts(evidence, worlds).pooled(evidence.intent, *self.weights())

  def weights(self) -> jax.Array:
    """Return the weights of what is counted and of what is learned, fp32 [2]; no gradient."""
    pooled = self.pooled[...] if hasattr(self, 'kinds') else jnp.array([1.0, 0.0])
    return jax.lax.stop_gradient(pooled)

  def parts(self, evidence: Evidence, worlds: int = 1) -> IntentParts:
    """Return what is said of coarse codes, before do(intent)."""
    counted = self.counted(evidence)
    if not hasattr(self, 'kinds'):
      return IntentParts(counted, None)
    kind = self._kind(evidence, worlds)
    gain = jnp.where(evidence.present, self._gain_of_role(evidence), 0.0)
    # Fitted in a stage of its own, to whole histories: one conversion says little of a kind.
    return IntentParts(counted, jax.lax.stop_gradient(self.kinds(evidence, gain, kind)))

  def learned_effects(
    self, evidence: Evidence, last: int, worlds: int = 1
  ) -> tuple[jax.Array, jax.Array] | None:
    """Return `Kinds.removal_effects`, without a gradient; None where all users are of one kind."""
    if not hasattr(self, 'kinds'):
      return None
    kinds = functional.held_but(self.kinds)
    return kinds.removal_effects(evidence, self._kind(evidence, worlds), last)

  def _kind(self, evidence: Evidence, worlds: int) -> jax.Array:
    one_of_each = jax.tree.map(lambda x: x[::worlds], evidence)
    return per_chain(functional.held_but(self.kinds).of_users(one_of_each), worlds)

  def counted(self, evidence: Evidence) -> jax.Array:
    """Return log p(coarse code) by the first equation alone, before do(intent), fp32 [N, K]."""
    e = evidence
    base, fade, event_gain, focus, damp_fade, strength = (
      p[...]
      for p in (self.base, self.fade, self.event_gain, self.focus, self.damp_fade, self.strength)
    )
    opens, draws, satisfies = jnp.exp(strength)
    excites = self._gained(e, fade, event_gain)
    damps = jnp.where(e.present, faded(e) @ jax.nn.softmax(damp_fade), 0.0)

    start = jnp.broadcast_to(BASE / base.shape[0] * jnp.exp(base), (len(e.age), *base.shape))
    excites_codes = excites[..., None] * (e.weight + opens * jnp.maximum(e.shift, 0.0))
    excited = _add_by_code(start, e.code, excites_codes)
    damps_codes = damps[..., None] * -draws * jnp.minimum(e.shift, 0.0)
    damped = _add_by_code(jnp.zeros_like(start), e.code, damps_codes)
    satisfied = jnp.where(e.event == PURCHASE, damps * satisfies, 0.0)
    damped = _add_by_code(damped, e.own_code, satisfied)
    return jax.nn.log_softmax(focus * (jnp.log(excited) - damped), axis=-1)

  def _gained(self, e: Evidence, fade: jax.Array, event_gain: jax.Array) -> jax.Array:
    """Return role_gain * event_gain * fade of every event, fp32 [N, n]; 0 where it is absent."""
    of_event = jnp.exp(jnp.take(event_gain, e.event)) * self._gain_of_role(e)
    return jnp.where(e.present, faded(e) @ jax.nn.softmax(fade) * of_event, 0.0)

  def _gain_of_role(self, e: Evidence) -> jax.Array:
    """Return what do(role) multiplies every event by, fp32 [N, n]."""
    gain = jnp.exp(jnp.take(self.role_gain[...], jnp.maximum(e.role, 0)))
    return jnp.where(e.role >= 0, gain, 1.0)

  def retrieve(
    self, evidence: Evidence, keep: int, codes_IxL: jax.Array, worlds: int = 1
  ) -> Retrieved:
    """Return the `keep` items that each history retrieves most strongly.

    worlds: how many neighboring rows are of the same events.
    """
    e, n = evidence, len(evidence.age)
    own_share = jnp.broadcast_to(jnp.exp(self.self_transition[...]), (*e.item.shape, 1))
    share = jnp.concatenate([own_share, e.share], axis=-1)
    gained = self._gained(e, self.counted_fade[...], self.event_gain[...])
    weight = gained[..., None] * share
    item = jnp.concatenate([jnp.maximum(e.item, 0)[..., None], e.next_item], axis=-1)

    place, distinct = (per_chain(x, worlds) for x in _places(item.reshape(n, -1)[::worlds]))
    add = jax.vmap(lambda at, x: jnp.zeros_like(x).at[at].add(x))
    total = add(place, weight.reshape(n, -1))

    weight, best = jax.lax.top_k(total, min(keep, total.shape[1]))
    item = jnp.where(weight > 0, jnp.take_along_axis(distinct, best, axis=1), -1)
    pad = ((0, 0), (0, keep - item.shape[1]))
    item = jnp.pad(item, pad, constant_values=-1)
    codes = jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0)
    return Retrieved(item, codes, jnp.pad(weight, pad))

  def priors(
    self, evidence: Evidence, keep: int, codes_IxL: jax.Array, levels: int, worlds: int = 1
  ) -> Priors:
    """Return what codes of the first `levels` levels start from.

    That is log p(coarse code) and, where there is a level beyond the first, the `keep` items that
    are retrieved most strongly. worlds: how many neighboring rows are of the same events.
    """
    if levels == 1:
      n, empty = len(evidence.age), (len(evidence.age), 0)
      nothing = jnp.zeros(empty, jnp.int32)
      codes = jnp.zeros((n, 0, codes_IxL.shape[1]), jnp.int32)
      return Priors(self(evidence, worlds), Retrieved(nothing, codes, jnp.zeros(empty)))
    return Priors(self(evidence, worlds), self.retrieve(evidence, keep, codes_IxL, worlds))

  def code_prior(
    self, level: int, priors: Priors, matches_NxPxA: jax.Array, is_item: bool
  ) -> jax.Array:
    """Return the logits that codes of a level start from: [N, P, K], of first intents [N, 1, K].

    The first code of an intent starts from the first equation, that of an item from both, all
    further ones from the second. `matches` says which retrieved items may be meant and begin with
    each of P prefixes.
    """
    intent = priors.intent[:, None]
    if level == 0 and not is_item:
      return intent
    retrieved = self.next_code(level, priors.retrieved, matches_NxPxA)
    return retrieved if level else intent + retrieved

  def next_code(self, level: int, retrieved: Retrieved, matches_NxPxA: jax.Array) -> jax.Array:
    """Return the logits of the codes of a level after each of P prefixes, fp32 [N, P, K].

    They are those of the second equation. `matches` says which retrieved items begin with each
    prefix.
    """
    zeros = jnp.zeros(self.base[...].shape, jnp.float32)
    add = jax.vmap(jax.vmap(lambda code, term: zeros.at[code].add(term), (None, 0)))
    terms = jnp.where(matches_NxPxA, retrieved.weight[:, None], 0.0)
    total = add(retrieved.codes[..., level], terms)
    prior = jnp.exp(self.counted_prior[level])
    return self.counted_focus[level] * jnp.log(prior + total)


def _places(item_NxE: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return (the place of each item among the distinct ones of its row, these), int32 [N, E] each.

  Equal items become neighbors when they are sorted. Places that are left over hold 0.
  """
  order = jnp.argsort(item_NxE, axis=1)
  item = jnp.take_along_axis(item_NxE, order, axis=1)
  previous = jnp.pad(item, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  number = jnp.cumsum(item != previous, axis=1) - 1
  distinct = jax.vmap(lambda at, x: jnp.zeros_like(x).at[at].max(x))(number, item)
  return jax.vmap(lambda at, x: jnp.zeros_like(x).at[at].set(x))(order, number), distinct


def _add_by_code(total_NxK: jax.Array, code: jax.Array, term: jax.Array) -> jax.Array:
  """Add to each row's totals its terms, any shape [N, ...], at their codes."""
  n = len(total_NxK)
  add = jax.vmap(lambda total, code, term: total.at[code].add(term))
  return add(total_NxK, code.reshape(n, -1), term.reshape(n, -1))


def _do_intent(log_prob_NxK: jax.Array, intent_N: jax.Array) -> jax.Array:
  """Let the intent and the likeliest coarse code change places; -1 leaves a row alone."""
  first = jnp.argmax(log_prob_NxK, axis=-1)
  wanted = jnp.where(intent_N >= 0, intent_N, first)
  swap = jax.vmap(lambda row, a, b: row.at[a].set(row[b]).at[b].set(row[a]))
  return swap(log_prob_NxK, first, wanted)


def without_each(equation: Intent, evidence: Evidence, last: int) -> jax.Array:
  """Return log p(coarse code) with all events, then without each of the last `last` ones.

  fp32 [1 + last, N, K].
  """
  n = evidence.present.shape[1]

  def without(position: jax.Array) -> jax.Array:
    return equation(evidence._replace(present=evidence.present & (jnp.arange(n) != position)))

  return jax.vmap(without)(jnp.concatenate([jnp.array([-1]), jnp.arange(n - last, n)]))
