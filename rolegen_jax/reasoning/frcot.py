"""FR-CoT: what the reasoner reads and writes, at fixed positions, and the likelihood of it.

  prompt      event, gap, code_1 .. code_L  of each of the last E events;  gap to now;  REASON
  completion  role of each of the last M events;  INTENT;  I coarse prefixes;  PATH;  P items of L codes;  END

Every position of a completion belongs to one block of the vocabulary, known beforehand, and to a constraint: roles fit the
event (CONVERT exactly on purchases), codes continue to an item that exists. Sampling and likelihood use the same constrained
softmax, so log-probs of rollout and training agree but for rounding.

Shapes: B users, N sequences, E prompt events, M role events, I intents, P candidates, L levels, T completion length, K codes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ReasonerConfig
from rolegen_jax.data.rows import Cases, Excites, Trajectories
from rolegen_jax.models.backbone import NEVER, gap_bucket
from rolegen_jax.models.intent import Evidence
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.semantic_ids.trie import Trie, children_mask, descend
from rolegen_jax.sharding import constrain_rows
from rolegen_jax.vocab import Vocabulary

CONVERT = ROLE_NAMES.index('CONVERT')
PURCHASE = EVENT_NAMES.index('purchase')


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static positions of a completion. Arrays are numpy, [T]."""

  config: ReasonerConfig
  vocab: Vocabulary

  @property
  def per_event(self) -> int:
    return 2 + self.vocab.levels

  @property
  def prompt_length(self) -> int:
    return self.config.events * self.per_event + 2

  @functools.cached_property
  def level(self) -> np.ndarray:
    """SID level of each position; -1 where it holds no code."""
    c, mark = self.config, [-1]
    levels = [-1] * c.role_events + mark + list(range(c.intent_levels)) * c.intents
    return np.array(levels + mark + list(range(self.vocab.levels)) * c.candidates + mark, np.int32)

  @property
  def length(self) -> int:
    return len(self.level)

  @functools.cached_property
  def start(self) -> np.ndarray:
    """First token of the block that each position holds; the mark itself at marks."""
    c, v, block = self.config, self.vocab, lambda name: self.vocab.blocks[name][0]
    start = [block('role') if level < 0 else block(f'sid{level}') for level in self.level]
    intent = c.role_events
    path = intent + 1 + c.intents * c.intent_levels
    start[intent], start[path], start[-1] = v.control('INTENT'), v.control('PATH'), v.control('END')
    return np.array(start, np.int32)

  @functools.cached_property
  def is_role(self) -> np.ndarray:
    return np.arange(self.length) < self.config.role_events

  @functools.cached_property
  def is_mark(self) -> np.ndarray:
    return (self.level < 0) & ~self.is_role

  @functools.cached_property
  def opens_intent(self) -> np.ndarray:
    """First codes of the intents: the positions that the structural equation speaks to."""
    return np.isin(np.arange(self.length), self.intent_slots[:, 0])

  @functools.cached_property
  def intent_slots(self) -> np.ndarray:
    """Positions [I, intent_levels]."""
    first = self.config.role_events + 1
    return first + np.arange(self.config.intents * self.config.intent_levels).reshape(self.config.intents, -1)

  @functools.cached_property
  def path_slots(self) -> np.ndarray:
    """Positions [P, L]."""
    first = self.length - 1 - self.config.candidates * self.vocab.levels
    return first + np.arange(self.config.candidates * self.vocab.levels).reshape(self.config.candidates, -1)


def at_slots(x_NxTx, slots: np.ndarray) -> jax.Array:
  """x[:, slots] for evenly spaced static positions: a strided slice, never partitioned (and differentiated) as a gather."""
  step = int(slots[1] - slots[0]) if len(slots) > 1 else 1
  assert (np.diff(slots) == step).all()
  return x_NxTx[:, int(slots[0]):int(slots[-1]) + 1:step]


class Prompt(NamedTuple):
  tokens: jax.Array  # int32 [N, prompt_length]
  valid: jax.Array  # bool [N, prompt_length]; padding and removed events are not
  role_allowed: jax.Array  # bool [N, M, roles]; nothing allowed = the slot has no event
  evidence: Evidence  # [N, n], of the whole history: the intent tokens start from what it says


def build_prompt(layout: Layout, history: Trajectories, excites: Excites, now_B: jax.Array, codes_IxL) -> Prompt:
  """Prompts of right-aligned histories [B, n >= E] at the occasion's time. Targets are no argument: they cannot leak in."""
  v, events = layout.vocab, layout.config.events
  item, event, time, real = (a[:, -events:] for a in (history.item, history.event, history.timestamp, history.segment > 0))
  before = jnp.pad(time, ((0, 0), (1, 0)))[:, :-1]
  gap = jnp.where(jnp.pad(real, ((0, 0), (1, 0)))[:, :-1], time - before, 0)
  sid = v.sid(jnp.take(codes_IxL, jnp.maximum(item, 0), axis=0))
  tokens = jnp.concatenate([v.event(event)[..., None], v.gap(gap_bucket(gap))[..., None], sid], axis=-1)
  b = item.shape[0]
  since = jnp.where(real[:, -1], now_B - time[:, -1], 0)
  tail = jnp.stack([v.gap(gap_bucket(since)), jnp.full((b,), v.control('REASON'))], axis=1)
  tokens = jnp.concatenate([jnp.where(real[..., None], tokens, v.control('PAD')).reshape(b, -1), tail], axis=1)
  valid = jnp.concatenate([jnp.repeat(real, layout.per_event, axis=1), jnp.ones((b, 2), bool)], axis=1)
  last = -layout.config.role_events
  is_convert = jnp.arange(len(ROLE_NAMES)) == CONVERT
  allowed = (event[:, last:, None] == PURCHASE) == is_convert
  present = history.segment > 0
  age = jnp.where(present, now_B[:, None] - history.timestamp, 0)
  evidence = Evidence(*excites, age, history.event, present, jnp.full_like(history.event, -1))
  return Prompt(tokens.astype(jnp.int32), valid, allowed & real[:, last:, None], evidence)


class Demonstration(NamedTuple):
  """A completion to imitate."""

  tokens: jax.Array  # int32 [B, T]
  weight: jax.Array  # fp32 [B, T], 0 where nothing is known or nothing is chosen


def demonstration(layout: Layout, cases: Cases, codes_IxL) -> Demonstration:
  """FR-CoT in hindsight: labelled roles, the intents of the path (target's first), the path that the user really took."""
  v, c = layout.vocab, layout.config
  b = cases.target.shape[0]
  purchase = cases.history.event[:, -c.role_events:] == PURCHASE
  known = (cases.roles >= 0) & ((cases.roles == CONVERT) == purchase)  # an imported role that no chain can hold is none
  roles = jnp.where(known, v.role(jnp.maximum(cases.roles, 0)), v.control('UNKNOWN_ROLE'))
  path_codes = jnp.take(codes_IxL, jnp.maximum(cases.path, 0), axis=0)  # [B, P, L]
  on_path = cases.path >= 0
  coarse = path_codes[..., :c.intent_levels]
  same = (coarse[:, :, None] == coarse[:, None]).all(-1)  # [B, P, P]
  earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
  fresh = on_path & ~(same & earlier & on_path[:, None]).any(-1)  # first item of its coarse prefix
  order = jnp.argsort(~fresh, axis=1, stable=True)[:, :c.intents]
  intents = jnp.take_along_axis(coarse, order[..., None], axis=1)
  intent_known = jnp.take_along_axis(fresh, order, axis=1)
  missing = c.intents - order.shape[1]
  intents = jnp.pad(intents, ((0, 0), (0, missing), (0, 0)))
  intent_known = jnp.pad(intent_known, ((0, 0), (0, missing)))
  mark = lambda name: jnp.full((b, 1), v.control(name), jnp.int32)
  tokens = [roles, mark('INTENT'), v.sid(intents).reshape(b, -1), mark('PATH'), v.sid(path_codes).reshape(b, -1), mark('END')]
  none = jnp.zeros((b, 1), bool)
  weight = [
      known, none, jnp.repeat(intent_known, c.intent_levels, axis=1), none, jnp.repeat(on_path, v.levels, axis=1), none
  ]
  return Demonstration(jnp.concatenate(tokens, 1).astype(jnp.int32), jnp.concatenate(weight, 1).astype(jnp.float32))


def constrained_log_softmax(logits, allowed, temperature):
  """log-softmax over allowed entries at a temperature; NEVER elsewhere, and everywhere where nothing is allowed."""
  masked = jnp.where(allowed, logits / temperature, NEVER)
  return jnp.where(allowed, jax.nn.log_softmax(masked, axis=-1), NEVER)


class Likelihood(NamedTuple):
  log_prob: jax.Array  # fp32 [N, T]; 0 at marks and at slots without an event
  entropy: jax.Array  # fp32 [N, T], nats; 0 likewise
  role_log_prob: jax.Array  # fp32 [N, M, roles]


def likelihood(reasoner: Reasoner, layout: Layout, prompt: Prompt, tokens_NxT, trie: Trie, temperature=None) -> Likelihood:
  """Teacher-forced log-probs of completions, one forward pass, at a temperature (number or fp32 [N]; default: that of rollouts)."""
  v = layout.vocab
  temperature = jnp.reshape(jnp.asarray(layout.config.temperature if temperature is None else temperature, jnp.float32), (-1, 1, 1))
  # Pinned: what this has in common with a rollout would otherwise take over the layout of rollouts.
  prompt, tokens_NxT = constrain_rows((prompt, tokens_NxT))
  sequence = jnp.concatenate([prompt.tokens, tokens_NxT], axis=1)
  valid = jnp.concatenate([prompt.valid, jnp.ones(tokens_NxT.shape, bool)], axis=1)
  hidden = reasoner.hidden(sequence, valid)[:, layout.prompt_length - 1:-1]

  def choose(log_probs, choice, exists):
    """(log-prob of the choice, entropy), 0 where nothing is chosen."""
    picked = jnp.take_along_axis(log_probs, choice[..., None], axis=-1)[..., 0]
    spread = -jnp.sum(jnp.where(log_probs > NEVER / 2, jnp.exp(log_probs) * log_probs, 0.0), axis=-1)
    return jnp.where(exists, picked, 0.0), spread

  start, size = v.blocks['role']
  m = layout.config.role_events
  role_log_prob = constrained_log_softmax(reasoner.logits(hidden[:, :m], start, size), prompt.role_allowed, temperature)
  found = [choose(role_log_prob, jnp.clip(tokens_NxT[:, :m] - start, 0, size - 1), prompt.role_allowed.any(-1))]
  mark = (jnp.zeros((tokens_NxT.shape[0], 1)),) * 2
  for slots, evidence in ((layout.intent_slots, reasoner.intent(prompt.evidence)[:, None]), (layout.path_slots, 0.0)):
    node, levels = jnp.zeros((tokens_NxT.shape[0], slots.shape[0]), jnp.int32), []
    for level in range(slots.shape[1]):
      start, size = v.blocks[f'sid{level}']
      at = slots[:, level]
      choice = jnp.clip(at_slots(tokens_NxT, at) - start, 0, size - 1)
      exists, _ = children_mask(trie, level, node)
      logits = reasoner.logits(at_slots(hidden, at), start, size) + (evidence if level == 0 else 0.0)
      log_probs = constrained_log_softmax(logits, exists, temperature)
      levels.append(choose(log_probs, choice, True))
      node = jnp.maximum(descend(trie, level, node, choice), 0)
    found += [mark, tuple(jnp.stack(part, axis=-1).reshape(tokens_NxT.shape[0], -1) for part in zip(*levels))]
  log_prob, entropy = (jnp.concatenate(part, axis=1) for part in zip(*found, mark))
  return Likelihood(log_prob, entropy, role_log_prob)


def intent_loss(reasoner: Reasoner, prompt: Prompt, cases: Cases, codes_IxL) -> tuple[jax.Array, jax.Array]:
  """NLL in nats of the target's neighbourhood under the structural equation: as it stands, and with hindsight roles done.

  The second term teaches what a role is worth and nothing else: hindsight roles know the target.
  """
  m, evidence = cases.roles.shape[1], prompt.evidence
  told = evidence._replace(role=evidence.role.at[:, -m:].set(cases.roles))
  target = jnp.take(codes_IxL, cases.target, axis=0)[:, :1]
  nll = lambda log_probs: -jnp.mean(jnp.take_along_axis(log_probs, target, axis=1))
  return nll(reasoner.intent(evidence)), nll(reasoner.intent(told, only_roles=True))


def next_event_loss(reasoner: Reasoner, layout: Layout, prompt: Prompt) -> jax.Array:
  """Mean next-token cross-entropy in nats over the prompt's events: the `align` stage on a log without text."""
  v, k = layout.vocab, layout.per_event
  body = layout.config.events * k
  tokens, valid = prompt.tokens[:, :body], prompt.valid[:, :body]
  hidden = reasoner.hidden(tokens, valid)[:, :-1]
  blocks = ['event', 'gap'] + [f'sid{level}' for level in range(v.levels)]
  total, count = 0.0, 0.0
  for i, name in enumerate(blocks):  # position j predicts token j + 1, whose kind is (j + 1) mod k
    start, size = v.blocks[name]
    at = np.arange((i - 1) % k, body - 1, k)
    log_probs = jax.nn.log_softmax(reasoner.logits(at_slots(hidden, at), start, size), axis=-1)
    target = jnp.clip(at_slots(tokens, at + 1) - start, 0, size - 1)
    weight = (at_slots(valid, at) & at_slots(valid, at + 1)).astype(jnp.float32)
    total -= jnp.sum(jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0] * weight)
    count += jnp.sum(weight)
  return total / jnp.maximum(count, 1.0)
