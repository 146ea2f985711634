"""Kinds of users: what contact with an item leads to depends on who meets it, and after what.

A user is of one of Z kinds, which nobody sees. A kind says what its users look at and buy at large,
and what contact with an item opens for them; all else is shared:

  want_zk         = softmax_k(base_k + kind_zk + habit(own_k))
  need_zk         = want_zk + sum_v held_vk max(leads_zvk, 0),  leads_zvk = opens_vk + turn_zvk
  log p(k | h, z) = log_softmax_k(FOCUS log need_zk - sum_v held_vk max(-leads_zvk, 0))
  log p(k | h)    = log sum_z p(z | h) p(k | h, z)

What contact opens is added to what is wanted anyway, as excitation is in `intent.py`: it may make a
code that nobody would want as likely as one that is always wanted. As factors, which sums of logs
are, the same would open little where little was wanted.

own_k are faded counts of the history's events in coarse code k, by type of event. held_vk says what
is left for code k of the latest contact with an item that has attribute v, which is a word of its
text or its coarse code; it is in 0..1, unless do(role) gives an event more weight:

  held_vk = counts_iv lasts(age_i) (1 - ended [k was bought after i]),  i = the latest such event
  counts_iv = sigmoid(gate_v + SCALE * sum_u before_iu context_uv)
  lasts(age) = sigmoid(exp(edge) (1 - age / exp(days)))

So later contact replaces what earlier contact left, what led to a purchase ends with it, and what
was met before an event decides how much it counts: before_iu is lasts(...) of the time since the
latest contact with attribute u, when event i came. Most entries of `opens`, `turn` and `context`
are near 0.

Who somebody is follows by Bayes' rule from all that the history holds, event by event:

  log p(z | h) = log prior_z + LOOKS * sum over looks i of log p(code_i | before, z)
                 + sum over the latest purchases of log p(code | history before, z) + a constant
  p(k | before, z) = (1 - shown_i) (w_1 interest_zk + w_2 share of k in all events before
                                    + w_3 share of k in those lately) + shown_i background_k

Items of some attributes are met whoever one is, because they are shown: shown_i in 0..1 goes by the
attributes of the item, and such a look tells little.

This is a latent class model (Lazarsfeld 1950), fitted by the likelihood of whole histories. An
intervention on an event changes what is met, and not who somebody is: a kind is a trait.

Shapes: N histories, n events, q moments of a history, A attributes of an item, V attributes,
K coarse codes, Z kinds, F features of `own`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.models.evidence import PURCHASE, Evidence
from rolegen_jax.models.numerics import dropout

DAY_S = 86_400.0
VIEW = EVENT_NAMES.index('view')
OWN_DAYS, OWN_EVENTS = (0.5, 2.0, 7.0, 30.0), (1.0, 5.0)  # how counts of events fade
LASTS_DAYS, EDGE = 7.0, 5.0  # where training starts: how long contact counts, how sharply it ends
ENDED = 1.0  # and, as a logit, how much of what led to a purchase ends with it
LOOKED_DAYS, FEW_LOOKS = 5.0, (0.5, 0.1)  # in log p of a look: lately; looks at no code
SHOWN = -1.0  # where training starts, as a logit
TYPES = (('impression', 'view'), ('fav', 'cart', 'remove'), ('purchase',))  # that are counted apart
OWN = len(TYPES) * (len(OWN_DAYS) + len(OWN_EVENTS))
PAST = 8  # purchases of a history that tell of its kind by what came before them, the latest ones
# Looks come in runs of the same: each tells less than it would alone.
LOOKS = 0.5
SCALE = 3.0  # of a logit by one of `context`: Adam moves all parameters alike
FOCUS = 1.5  # not learned: it would grow, and leave small entries to say it all
LEAST = 1e-9  # of a need
HIDDEN, DROPOUT = 32, 0.2
SPARSE = ('opens', 'turn', 'context')  # parameters of which most are near 0


class Kinds(nnx.Module):
  """The parameters; an instance is a function of `Evidence`, as the structural equations are."""

  def __init__(self, kinds: int, codes: int, attributes: int, *, rngs: nnx.Rngs):
    self.attributes = attributes

    def drawn(scale: float, *shape: int) -> nnx.Param:
      values = scale * jax.random.normal(rngs.params(), shape, jnp.float32)
      return nnx.Param(values, axes=(None,) * len(shape))

    def zeros(*shape: int) -> nnx.Param:
      return nnx.Param(jnp.zeros(shape, jnp.float32), axes=(None,) * len(shape))

    def vector(values: list[float]) -> nnx.Param:
      return nnx.Param(jnp.array(values, jnp.float32), axes=(None,))

    self.prior = zeros(kinds)
    self.looks_base, self.looks_kind = zeros(codes), drawn(0.3, kinds, codes)
    self.looks_weights = vector([0.0] * 3)  # logits
    self.shown, self.background = zeros(attributes), zeros(codes)
    self.base, self.kind = zeros(codes), zeros(kinds, codes)
    self.own = zeros(OWN)
    self.hidden, self.hidden_base = drawn(OWN**-0.5, OWN, HIDDEN), zeros(HIDDEN)
    self.readout = zeros(HIDDEN)
    self.opens, self.turn = zeros(attributes, codes), drawn(0.02, kinds, attributes, codes)
    self.days, self.edge = vector([math.log(LASTS_DAYS)] * 2), vector([math.log(EDGE)] * 2)
    self.ended = vector([ENDED])
    self.gate, self.context = zeros(attributes), zeros(attributes, attributes)

  def __call__(
    self,
    e: Evidence,
    gain_Nxn: jax.Array,
    kind_NxZ: jax.Array,
    is_before_Nxn: jax.Array | None = None,
  ) -> jax.Array:
    """Return log p(coarse code) at the occasion, fp32 [N, K].

    gain: how much of each event counts, 0 = not at all; bool = all or nothing. In parts, contact
    takes the place of what was before it in part. A part of an event is wholly the context of later
    ones, and wholly a purchase. kind: log p(kind), as `of_users` returns.
    is_before: whether events that come after it know of an event; by default where its gain is
    positive.
    """
    now = jnp.zeros((len(e.age), 1), jnp.int32)
    place = jnp.full_like(now, e.age.shape[1])
    log_probs = self._log_probs(e, gain_Nxn, now, place, is_before_Nxn=is_before_Nxn)[:, 0]
    return jax.nn.logsumexp(kind_NxZ[..., None] + log_probs, axis=1)

  def removal_effects(
    self, e: Evidence, kind_NxZ: jax.Array, last: int
  ) -> tuple[jax.Array, jax.Array]:
    """Return what each of the M = `last` last events adds to log p(coarse code), [N, M, K], nats.

    In all, and as what later events come after: by what they would lead to had it not been met.
    """
    n = e.age.shape[1]

    def log_probs(position: jax.Array) -> tuple[jax.Array, jax.Array]:
      stays = e.present & (jnp.arange(n) != position)
      return self(e, stays, kind_NxZ), self(e, e.present, kind_NxZ, stays)

    positions = jnp.concatenate([jnp.array([-1]), jnp.arange(n - last, n)])
    in_all, before = (jnp.moveaxis(x[:1] - x[1:], 0, 1) for x in jax.lax.map(log_probs, positions))
    return in_all, before

  def opened(
    self, e: Evidence, kind_NxZ: jax.Array, code_NxK: jax.Array, attribute_NxKxA: jax.Array
  ) -> jax.Array:
    """Return how much of their interest a view of each of K items, now, would move, fp32 [N, K].

    In 0..1: half the sum of the differences of the chances of coarse codes. The items have these
    coarse codes and attributes.
    """
    stays = e.present & (jnp.arange(e.age.shape[1]) > 0)  # a view would take the oldest's place
    before = jnp.exp(self(e, stays, kind_NxZ))

    def moved(item: tuple[jax.Array, jax.Array]) -> jax.Array:
      code_N, attribute_NxA = item
      after = _viewed(e, code_N, attribute_NxA)
      chance = jnp.exp(self(after, after.present, kind_NxZ))
      return jnp.abs(chance - before).sum(-1) / 2

    items = jnp.moveaxis(code_NxK, 1, 0), jnp.moveaxis(attribute_NxKxA, 1, 0)
    return jax.lax.map(moved, items).T

  def of_users(self, e: Evidence, key: jax.Array | None = None) -> jax.Array:
    """Return log p(kind | history), fp32 [N, Z], whatever is done to the events."""
    return jax.nn.log_softmax(self._told(e, key))

  def joint(self, e: Evidence, code_N: jax.Array, key: jax.Array) -> jax.Array:
    """Return log p(what the history tells, coarse code), fp32 [N], with dropout."""
    keys = jax.random.split(key)
    n = e.age.shape[1]
    now = jnp.zeros((len(e.age), 1), jnp.int32)
    log_probs = self._log_probs(e, e.item >= 0, now, jnp.full_like(now, n), keys[0])[:, 0]
    of_code = jnp.take_along_axis(log_probs, code_N[:, None, None], axis=2)[..., 0]
    return jax.nn.logsumexp(self._told(e, keys[1]) + of_code, axis=1)

  def sizes(self) -> dict[str, jax.Array]:
    """Return the sums of the sizes of all entries of the sparse parameters, by name."""
    return {name: jnp.abs(getattr(self, name)[...]).sum() for name in SPARSE}

  def _told(self, e: Evidence, key: jax.Array | None = None) -> jax.Array:
    """Return log p(kind, what the history tells), fp32 [N, Z]."""
    is_event = e.item >= 0
    bought = is_event & (e.event == PURCHASE)
    prior = jax.nn.log_softmax(self.prior[...])
    looks = jnp.where((is_event & ~bought)[..., None], self._log_prob_of_looks(e), 0.0)
    purchases = self._log_prob_of_purchases(e, bought, key)
    return prior + LOOKS * looks.sum(1) + purchases

  def _log_prob_of_looks(self, e: Evidence) -> jax.Array:
    """Return log p of the coarse code of every event, fp32 [N, n, Z]."""
    codes = self.base.shape[0]
    code = jax.nn.one_hot(e.own_code, codes) * (e.item >= 0)[..., None]
    gap = (e.age[:, None] - e.age[:, :, None]).astype(jnp.float32) / DAY_S
    earlier = gap > 0
    faded = jnp.where(earlier, jnp.exp(-jnp.maximum(gap, 0.0) / LOOKED_DAYS), 0.0)
    counts = jnp.einsum('fNtn,Nnk->Ntkf', jnp.stack([earlier.astype(jnp.float32), faded]), code)
    few = jnp.array(FEW_LOOKS)
    shares = (counts + few / codes) / (counts.sum(2, keepdims=True) + few)
    weights = jax.nn.softmax(self.looks_weights[...])
    own = jnp.take_along_axis(shares @ weights[1:], e.own_code[..., None], axis=2)
    interest = jax.nn.softmax(self.looks_base[...] + self.looks_kind[...])
    sought = weights[0] * jnp.take(interest.T, e.own_code, axis=0) + own
    shown = jax.nn.sigmoid(SHOWN + self._carries(e) @ self.shown[...])[..., None]
    background = jnp.take(jax.nn.softmax(self.background[...]), e.own_code)[..., None]
    return jnp.log((1 - shown) * sought + shown * background)

  def _log_prob_of_purchases(
    self, e: Evidence, bought: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Return the sum of log p of the coarse codes of the PAST latest purchases, fp32 [N, Z]."""
    n = e.age.shape[1]
    place = jax.lax.top_k(jnp.where(bought, jnp.arange(n), -1), min(PAST, n))[0]
    exists, place = place >= 0, jnp.maximum(place, 0)
    age, code = (jnp.take_along_axis(x, place, axis=1) for x in (e.age, e.own_code))
    log_prob = _picked(self._log_probs(e, e.item >= 0, age, place, key), code)
    return jnp.where(exists[..., None], log_prob, 0.0).sum(1)

  def _log_probs(
    self,
    e: Evidence,
    gain_Nxn: jax.Array,
    age_Nxq: jax.Array,
    place_Nxq: jax.Array,
    key: jax.Array | None = None,
    is_before_Nxn: jax.Array | None = None,
  ) -> jax.Array:
    """Return log p(coarse code | what is strictly earlier, kind) of moments, fp32 [N, q, Z, K].

    age, place: how long before the occasion a moment is, in seconds, and how many slots of the
    history are before it.
    """
    gap_s = e.age[:, None] - age_Nxq[..., None]
    now = place_Nxq[..., None] == e.age.shape[1]  # the occasion is later than all of its history
    counts = jnp.where((gap_s > 0) | now, gain_Nxn[:, None], 0.0)
    gap = jnp.maximum(gap_s, 0).astype(jnp.float32)[..., None] / DAY_S
    since = jnp.maximum(place_Nxq[..., None] - 1 - jnp.arange(e.age.shape[1]), 0)
    own = self._own(e, counts, gap, since.astype(jnp.float32)[..., None])
    hidden = jax.nn.relu(own @ self.hidden[...] + self.hidden_base[...])
    habit = dropout(hidden, DROPOUT, key) @ self.readout[...] + own @ self.own[...]
    earlier = (gap_s > 0) | now | (e.item < 0)[:, None]
    is_before = gain_Nxn > 0 if is_before_Nxn is None else is_before_Nxn
    held = self._held(e, gain_Nxn, is_before, age_Nxq, earlier)
    want = jax.nn.softmax((self.base[...] + habit)[:, :, None] + self.kind[...])
    leads = self.opens[...] + self.turn[...]
    added, damped = (jnp.einsum('Nqvk,zvk->Nqzk', held, jax.nn.relu(x)) for x in (leads, -leads))
    log_need = jnp.log(want + added + LEAST)
    return jax.nn.log_softmax(FOCUS * log_need - damped)

  def _own(self, e: Evidence, counts: jax.Array, gap: jax.Array, since: jax.Array) -> jax.Array:
    """Return what was done in each coarse code, fp32 [N, q, K, F]."""
    decays = [jnp.exp(-gap / jnp.array(OWN_DAYS)), jnp.exp(-since / jnp.array(OWN_EVENTS))]
    faded = jnp.concatenate(decays, axis=-1) * counts[..., None]
    code = jax.nn.one_hot(e.own_code, self.base.shape[0])
    parts = []
    for names in TYPES:
      types = jnp.array([EVENT_NAMES.index(name) for name in names])
      of_type = code * (e.event[..., None] == types).any(-1, keepdims=True)
      parts.append(jnp.log1p(jnp.einsum('Nqnf,Nnk->Nqkf', faded, of_type)))
    return jnp.concatenate(parts, axis=-1)

  def _held(
    self,
    e: Evidence,
    gain: jax.Array,
    is_before: jax.Array,
    age_Nxq: jax.Array,
    earlier_Nxqxn: jax.Array,
  ) -> jax.Array:
    """Return what is left of contact with each attribute for each code, fp32 [N, q, V, K]."""
    touched = (self._carries(e) > 0) & (e.event != PURCHASE)[..., None]
    met = touched & (gain > 0)[..., None]
    slots = earlier_Nxqxn.sum(-1)
    counts = self._counts(e, touched & is_before[..., None])
    codes = jnp.arange(self.base.shape[0])
    bought = (e.own_code[..., None] == codes) & ((e.event == PURCHASE) & (gain > 0))[..., None]
    latest_purchase = _latest(bought, slots)[:, :, None]

    def left(slot: jax.Array) -> jax.Array:
      of_contact = _at(counts, slot) * self._lasts(0, e, slot, age_Nxq)
      is_ended = latest_purchase > slot[..., None]
      return of_contact[..., None] * (1 - jax.nn.sigmoid(self.ended[...]) * is_ended)

    latest = _latest(met, slots)
    if gain.dtype == jnp.bool:
      return left(latest)
    share = _at(jnp.broadcast_to(gain[..., None], met.shape), latest)[..., None]
    earlier = _latest(met, jnp.maximum(latest, 0))  # that took its place in part
    return share * left(latest) + jnp.maximum(1 - share, 0.0) * left(earlier)

  def _carries(self, e: Evidence) -> jax.Array:
    """Return 1 where an event's item has an attribute, fp32 [N, n, V]."""
    return jax.nn.one_hot(e.attribute, self.attributes).max(2)  # -1 is none

  def _counts(self, e: Evidence, met: jax.Array) -> jax.Array:
    """Return how much each event counts by each attribute, after what was before, [N, n, V]."""
    earlier = (e.age[:, None] > e.age[:, :, None]) | (e.item < 0)[:, None]
    before = self._lasts(1, e, _latest(met, earlier.sum(-1)), e.age)
    return jax.nn.sigmoid(self.gate[...] + SCALE * before @ self.context[...])

  def _lasts(self, which: int, e: Evidence, slot: jax.Array, age_Nxq: jax.Array) -> jax.Array:
    """Return how much of contact in slots [N, q, V] is left at q moments; 0 for none, slot -1."""
    gap_s = _at(e.age[..., None], slot) - age_Nxq[..., None]
    passed = gap_s.astype(jnp.float32) / DAY_S / jnp.exp(self.days[which])
    return jnp.where(slot >= 0, jax.nn.sigmoid(jnp.exp(self.edge[which]) * (1 - passed)), 0.0)


def _viewed(e: Evidence, code_N: jax.Array, attribute_NxA: jax.Array) -> Evidence:
  """Return histories that end with a view, now, of an item; the oldest event makes room."""
  zeros = jnp.zeros_like(code_N)

  def end(field: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.concatenate([field[:, 1:], value[:, None].astype(field.dtype)], axis=1)

  assert e.attribute is not None
  return e._replace(
    item=end(e.item, zeros),
    age=end(e.age, zeros),
    event=end(e.event, zeros + VIEW),
    present=end(e.present, zeros == 0),
    own_code=end(e.own_code, code_N),
    attribute=end(e.attribute, attribute_NxA),
  )


def _latest(happened_NxnxV: jax.Array, slots: jax.Array) -> jax.Array:
  """Return the latest of the first `slots` slots where it happened, int32 [N, q, V]; -1 = none.

  slots: [N, q], or [N, q, V].
  """
  slot = jnp.where(happened_NxnxV, jnp.arange(happened_NxnxV.shape[1])[:, None], -1)
  before = jnp.pad(slot, ((0, 0), (1, 0), (0, 0)), constant_values=-1)
  slots = slots if slots.ndim == 3 else slots[..., None]
  return jnp.take_along_axis(jax.lax.cummax(before, axis=1), slots, axis=1)


def _at(values_NxnxV: jax.Array, slot_NxqxV: jax.Array) -> jax.Array:
  """Return the values of slots, [N, q, V]; of slot -1, what nobody should read."""
  return jnp.take_along_axis(values_NxnxV, jnp.maximum(slot_NxqxV, 0), axis=1)


def _picked(log_prob: jax.Array, code: jax.Array) -> jax.Array:
  """Return log_prob [N, q, Z, K] at codes [N, q], fp32 [N, q, Z]."""
  return jnp.take_along_axis(log_prob, code[:, :, None, None], axis=-1)[..., 0]
