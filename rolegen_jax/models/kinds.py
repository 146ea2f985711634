"""Kinds of users: what contact with an item leads to depends on who meets it, and after what.

A user is of one of Z kinds, which nobody sees. A kind says what its users look at and buy at large,
and what contact with an item opens for them; all else is shared:

  log p(k | h, z) = log_softmax_k(base_k + kind_zk + habit(own_k)
                                  + SCALE * sum_v met_v (opens_vk + turn_zvk))
  log p(k | h)    = log sum_z p(z | h) p(k | h, z)

own_k are faded counts of the history's events in coarse code k, by type of event. met_v in 0..1
says whether an item with attribute v (a word of its text, or its coarse code) was met lately, and
after what: what was met before an event decides how much it counts,

  met_v   = 1 - exp(-sum over events i with attribute v of fade_i counts_iv)
  counts_iv = sigmoid(gate_v + SCALE * sum_u before_iu context_uv)

before_iu in 0..1 says whether attribute u was met before event i. Most entries of `opens`, `turn`
and `context` are near 0.

Who somebody is follows by Bayes' rule from all that the history holds, event by event:

  log p(z | h) = log prior_z + LOOKS * sum over looks of log p(code | codes of events before, z)
                 + sum over the latest purchases of log p(code | history before, z) + a constant

This is a latent class model (Lazarsfeld 1950), fitted by the likelihood of whole histories. An
intervention on an event changes what is met, and not who somebody is: a kind is a trait.

Shapes: N histories, n events, q moments of a history, A attributes of an item, V attributes,
K coarse codes, Z kinds, F features of `own`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.models.evidence import PURCHASE, Evidence
from rolegen_jax.models.numerics import dropout

DAY_S = 86_400.0
OWN_DAYS, OWN_EVENTS = (0.5, 2.0, 7.0, 30.0), (1.0, 5.0)  # how counts of events fade
MET_DAYS = (3.0, 12.0)  # and what was met
BEFORE_DAYS = 6.0  # and what was met before it
MET_ONCE = 3.0  # how surely one contact, just before, has been met
LOOKED_DAYS = 5.0  # in log p of a look
TYPES = (('impression', 'view'), ('fav', 'cart', 'remove'), ('purchase',))  # that are counted apart
OWN = len(TYPES) * (len(OWN_DAYS) + len(OWN_EVENTS))
PAST = 8  # purchases of a history that tell of its kind by what came before them, the latest ones
# Looks come in runs of the same: each tells less than it would alone.
LOOKS = 0.25
SCALE = 3.0  # nats by one of the sparse entries: Adam moves all parameters alike
HIDDEN, DROPOUT = 32, 0.2
SPARSE = ('opens', 'turn', 'context')  # parameters of which most are near 0


class Kinds(nnx.Module):
  """The parameters; an instance is a function of `Evidence`, as the structural equations are."""

  def __init__(self, kinds: int, codes: int, attributes: int, *, rngs: nnx.Rngs):
    met = len(MET_DAYS) * attributes
    self.attributes = attributes

    def drawn(scale: float, *shape: int) -> nnx.Param:
      values = scale * jax.random.normal(rngs.params(), shape, jnp.float32)
      return nnx.Param(values, axes=(None,) * len(shape))

    def zeros(*shape: int) -> nnx.Param:
      return nnx.Param(jnp.zeros(shape, jnp.float32), axes=(None,) * len(shape))

    self.prior = zeros(kinds)
    self.looks_base, self.looks_kind = zeros(codes), drawn(0.3, kinds, codes)
    self.looks_own = nnx.Param(jnp.full(2, 0.5, jnp.float32), axes=(None,))
    self.base, self.kind = zeros(codes), zeros(kinds, codes)
    self.own = zeros(OWN)
    self.hidden, self.hidden_base = drawn(OWN**-0.5, OWN, HIDDEN), zeros(HIDDEN)
    self.readout = zeros(HIDDEN)
    self.opens, self.turn = zeros(met, codes), drawn(0.02, kinds, met, codes)
    self.gate, self.context = zeros(attributes), zeros(attributes, attributes)

  def __call__(self, e: Evidence, gain_Nxn: jax.Array, kind_NxZ: jax.Array) -> jax.Array:
    """Return log p(coarse code) at the occasion, fp32 [N, K].

    gain: how much of each event counts, 0 = not at all. kind: log p(kind), as `of_users` returns.
    """
    now = jnp.zeros((len(e.age), 1), jnp.int32)
    log_probs = self._log_probs(e, gain_Nxn, now, jnp.full_like(now, e.age.shape[1]))[:, 0]
    return jax.nn.logsumexp(kind_NxZ[..., None] + log_probs, axis=1)

  def of_users(self, e: Evidence, key: jax.Array | None = None) -> jax.Array:
    """Return log p(kind | history), fp32 [N, Z], whatever is done to the events."""
    return jax.nn.log_softmax(self._told(e, key))

  def joint(self, e: Evidence, code_N: jax.Array, key: jax.Array) -> jax.Array:
    """Return log p(what the history tells, coarse code), fp32 [N], with dropout."""
    keys = jax.random.split(key)
    n = e.age.shape[1]
    now = jnp.zeros((len(e.age), 1), jnp.int32)
    is_event = (e.item >= 0).astype(jnp.float32)
    log_probs = self._log_probs(e, is_event, now, jnp.full_like(now, n), keys[0])[:, 0]
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
    is_event = (e.item >= 0).astype(jnp.float32)
    code = jax.nn.one_hot(e.own_code, self.base.shape[0]) * is_event[..., None]
    gap = (e.age[:, None] - e.age[:, :, None]).astype(jnp.float32) / DAY_S
    earlier = gap > 0
    faded = jnp.where(earlier, jnp.exp(-jnp.maximum(gap, 0.0) / LOOKED_DAYS), 0.0)
    counts = jnp.stack([earlier.astype(jnp.float32), faded])
    counts = jnp.log1p(jnp.einsum('fNtn,Nnk->fNtk', counts, code))
    shared = self.looks_base[...] + jnp.einsum('f,fNtk->Ntk', self.looks_own[...], counts)
    logits = shared[:, :, None] + self.looks_kind[...]
    return _picked(jax.nn.log_softmax(logits), e.own_code)

  def _log_prob_of_purchases(
    self, e: Evidence, bought: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Return the sum of log p of the coarse codes of the PAST latest purchases, fp32 [N, Z]."""
    n = e.age.shape[1]
    place = jax.lax.top_k(jnp.where(bought, jnp.arange(n), -1), min(PAST, n))[0]
    exists, place = place >= 0, jnp.maximum(place, 0)
    age, code = (jnp.take_along_axis(x, place, axis=1) for x in (e.age, e.own_code))
    is_event = (e.item >= 0).astype(jnp.float32)
    log_prob = _picked(self._log_probs(e, is_event, age, place, key), code)
    return jnp.where(exists[..., None], log_prob, 0.0).sum(1)

  def _log_probs(
    self,
    e: Evidence,
    gain_Nxn: jax.Array,
    age_Nxq: jax.Array,
    place_Nxq: jax.Array,
    key: jax.Array | None = None,
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
    met = SCALE * self._met(e, gain_Nxn, counts, gap)
    shared = self.base[...] + habit + met @ self.opens[...]
    turned = jnp.einsum('Nqv,zvk->Nqzk', met, self.turn[...])
    return jax.nn.log_softmax(shared[:, :, None] + self.kind[...] + turned)

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

  def _met(self, e: Evidence, gain: jax.Array, counts: jax.Array, gap: jax.Array) -> jax.Array:
    """Return how much of each attribute was met, other than by a purchase, fp32 [N, q, 2 V]."""
    carries = jax.nn.one_hot(e.attribute, self.attributes).sum(2)  # -1 is none
    carries *= (e.event != PURCHASE)[..., None]
    carries *= self._in_context(e, carries * gain[..., None])
    faded = jnp.exp(-gap / jnp.array(MET_DAYS)) * counts[..., None]
    met = 1.0 - jnp.exp(-jnp.einsum('Nqnd,Nnv->Nqdv', faded, carries))
    return met.reshape(*met.shape[:2], -1)

  def _in_context(self, e: Evidence, carries: jax.Array) -> jax.Array:
    """Return how much each event counts by each attribute, after what was before it, [N, n, V]."""
    gap = (e.age[:, None] - e.age[:, :, None]).astype(jnp.float32) / DAY_S
    faded = jnp.where(gap > 0, jnp.exp(-jnp.maximum(gap, 0.0) / BEFORE_DAYS), 0.0)
    before = 1.0 - jnp.exp(-MET_ONCE * jnp.einsum('Nti,Niv->Ntv', faded, carries))
    return jax.nn.sigmoid(self.gate[...] + SCALE * before @ self.context[...])


def _picked(log_prob: jax.Array, code: jax.Array) -> jax.Array:
  """Return log_prob [N, q, Z, K] at codes [N, q], fp32 [N, q, Z]."""
  return jnp.take_along_axis(log_prob, code[:, :, None, None], axis=-1)[..., 0]
