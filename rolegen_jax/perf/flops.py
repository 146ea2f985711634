"""Floating-point operations of every phase and stage, from the config alone.

A compiler's count is of no use for a step made of loops: it counts a loop's body once. Here a
product of [m, k] and [k, n] is 2 m k n; a backward pass costs twice its forward (gradients by
weights and by inputs), or once where the weights are frozen; rematerialization adds the forward of
what it computes again. Attention counts all pairs, masked or not, as the program computes them. Not
counted: elementwise work, gathers, the structural equations, optimizers. `model` leaves the
recomputation out, as MFU does (PaLM, arXiv 2204.02311, appendix B); `hardware` has it.

Shapes: B users or rows, n events of context, S memory slots, Q queries, W worlds, T completion,
R prompt, L levels, K codes, I items, M members, C negatives.
"""

from __future__ import annotations

import dataclasses

from rolegen_jax.config import (
  EVENT_NAMES,
  ROLE_NAMES,
  Config,
  LoraConfig,
  ReasonerConfig,
  TransformerConfig,
)
from rolegen_jax.models.memory import AGE_FEATURES, NO_EVENT
from rolegen_jax.models.role_equation import FEATURES, PAIR_WIDTH
from rolegen_jax.reasoning.frcot import Layout
from rolegen_jax.reasoning.search import BEAMS
from rolegen_jax.reasoning.worlds import Tree, removing
from rolegen_jax.training.losses import PRODUCT_NEGATIVES, TRENDING
from rolegen_jax.vocab import GAPS, Vocabulary


@dataclasses.dataclass(frozen=True)
class Work:
  """FLOPs over all devices."""

  forward: float = 0.0
  backward: float = 0.0
  recompute: float = 0.0

  @property
  def model(self) -> float:
    """FLOPs of the model, without recomputation."""
    return self.forward + self.backward

  @property
  def hardware(self) -> float:
    """FLOPs that the hardware executes."""
    return self.model + self.recompute

  def __add__(self, other: Work) -> Work:
    return Work(
      self.forward + other.forward, self.backward + other.backward, self.recompute + other.recompute
    )

  def times(self, n: float) -> Work:
    """Return this work n times."""
    return Work(n * self.forward, n * self.backward, n * self.recompute)

  def only_forward(self) -> Work:
    """Return the forward pass alone."""
    return Work(self.forward)


def product(m: float, k: float, n: float) -> Work:
  """Return the work of a product of [m, k] and [k, n]."""
  forward = 2.0 * m * k * n
  return Work(forward, 2 * forward)


def attention(c: TransformerConfig, queries: float, memory: float) -> Work:
  """Return the work of scores and weighted values of one layer."""
  scores = product(queries * c.heads, c.head_dim, memory)
  return scores + product(queries * c.heads, memory, c.head_dim)


def projections(c: TransformerConfig, queries: float, memory: float) -> Work:
  """Return the work of Q, K, V, O and the gated MLP of one layer."""
  return (
    product(queries, c.width, c.heads * c.head_dim).times(2)
    + product(memory, c.width, c.kv_heads * c.head_dim).times(2)
    + product(queries, c.width, c.mlp).times(3)
  )


def reasoner_projections(r: ReasonerConfig, tokens: float) -> Work:
  """Return the work of the projections of one layer of the reasoner, by what of it trains."""
  work = projections(r.transformer, tokens, tokens)
  if r.train == 'all':
    return work
  by_inputs = Work(work.forward, work.forward)
  return by_inputs + adapters(r.transformer, r.lora, tokens) if r.train == 'lora' else by_inputs


def _sides(c: TransformerConfig) -> dict[str, tuple[int, int]]:
  """Return the numbers that go into and come out of each projection."""
  q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  return dict(
    wq=(c.width, q),
    wk=(c.width, kv),
    wv=(c.width, kv),
    wo=(q, c.width),
    gate=(c.width, c.mlp),
    up=(c.width, c.mlp),
    down=(c.mlp, c.width),
  )


def adapters(c: TransformerConfig, lora: LoraConfig, tokens: float) -> Work:
  """Return the work of the adapters of one layer."""
  work = Work()
  for inputs, outputs in (_sides(c)[name] for name in lora.targets):
    work += product(tokens, inputs, lora.rank) + product(tokens, lora.rank, outputs)
  return work


def stack(
  c: TransformerConfig,
  tokens: float,
  layers: int | None = None,
  pairs: Work | None = None,
  dots: Work | None = None,
) -> Work:
  """Return the work of one sequence of `tokens` through a stack, with what `remat` repeats.

  `pairs`: attention of a layer, if not of all tokens to all; `dots`: its projections, if not all of
  them train.
  """
  dots, pairs = dots or projections(c, tokens, tokens), pairs or attention(c, tokens, tokens)
  again = dict(none=0.0, full=dots.forward + pairs.forward, dots=pairs.forward)[c.remat]
  one = dots + pairs + Work(recompute=again)
  return one.times(c.layers if layers is None else layers)


class Flops:
  """All counts of one config. Methods give one user or row unless they say otherwise."""

  def __init__(self, config: Config, room: int, text: int = 0):
    """Count for a catalogue with room for `room` items, with text vectors of width `text`."""
    self.room, self.text = room, text
    self.config, self.vocab = config, Vocabulary.of(config)
    self.layout = Layout(config.reasoner, self.vocab)
    self.b, self.r, self.loop = config.backbone, config.reasoner, config.loop
    self.worlds = config.loop.worlds
    self.history = config.backbone.context + 1  # the start slot is memory too
    # Items that the reasoning of all worlds names.
    self.candidates = self.worlds * config.reasoner.candidates
    self.tree = Tree(self.layout, self.worlds, removing(self.worlds, self.loop.interventions))

  # Backbone

  def encode(self) -> Work:
    """Return the work of encoding a row."""
    return self.vectors(self.b.context) + stack(self.b.temporal, self.b.context)

  def vectors(self, items: float) -> Work:
    """Return the work of the vectors of items: their text's; the rest is looked up."""
    work = product(items, self.text, self.b.temporal.width)
    return Work(work.forward, work.forward)  # the text has no gradient

  def attend(self, queries: int, slots: int) -> Work:
    """Return the work of queries attending to memory."""
    c = self.b.temporal
    layer = projections(c, queries, slots) + attention(c, queries, slots)
    age_bias = 2.0 * queries * slots * AGE_FEATURES * c.heads
    layer += Work(age_bias, age_bias)
    layer += product(slots, NO_EVENT + 1, c.heads)
    return layer.times(self.b.query_layers)

  def generate(self, items: float, length: int) -> Work:
    """Return the work of the log-probs of the first `length` codes of items."""
    c = dataclasses.replace(self.b.temporal, remat='none')
    readout = product(length, c.width, self.vocab.codes)
    return (stack(c, length, self.b.depth_layers) + readout).times(items)

  def supervised(self, items: float) -> Work:
    """Return the work of the log-probs of given items; the backward pass repeats them."""
    if 'generative' not in self.b.experts:
      return Work()
    work = self.generate(items, self.vocab.levels)
    return work + Work(recompute=work.forward)

  def history_expert(self, queries: float, items: float) -> Work:
    """Return the work of what the slots of memory say of items, whose gradient is by the slots."""
    if 'history' not in self.b.experts:
      return Work()
    by_age = 2.0 * queries * self.history * AGE_FEATURES
    by_event = 2.0 * self.history * (NO_EVENT + 1)
    forward = by_age + by_event + 2.0 * queries * self.history * items
    return Work(forward, forward)

  def choice(self, queries: float, own: float) -> Work:
    """Return the work of choosing among a row's own items and negatives.

    The backward pass repeats it. The vectors of negatives are a batch's, and a row's share of them
    is small.
    """
    if self.b.experts == ('generative',):
      return Work()
    work = self.history_expert(queries, own)
    if 'dense' in self.b.experts:
      work += product(queries, self.b.temporal.width, own + min(self.b.negatives, self.room))
    return self.vectors(own) + work + Work(recompute=work.forward)

  def sequence(self) -> Work:
    """Return the work of encoding a row and predicting each of its events."""
    n = self.b.context
    generated = self.supervised(self.b.generated_targets(n))
    return self.encode() + self.attend(n, self.history) + generated + self.choice(n, n)

  def members(self, items: int, generated: int = 0) -> Work:
    """Return the work of what dense and generative experts say of a row's members, forward.

    Members share the depth decoder's first position; those that it generated are not read again.
    """
    work = self.vectors(items)
    if 'dense' in self.b.experts:
      work += product(1, self.b.temporal.width, items)
    if 'generative' in self.b.experts:
      work += self.position(1, 1)
      others = self.position(items - generated, self.vocab.levels)
      work += others.times(self.vocab.levels - 1)
    return work.only_forward()

  def position(self, chains: float, slots: int) -> Work:
    """Return the work of a position of the depth decoder that attends to `slots`, and its code."""
    c = self.b.temporal
    layer = projections(c, 1, 1) + attention(c, 1, slots)
    return (layer.times(self.b.depth_layers) + product(1, c.width, self.vocab.codes)).times(chains)

  def terms(self, items: int, candidates: int) -> Work:
    """Return the work of the experts that are formulas, for a row's members."""
    work, said = self.history_expert(1, items), self.loop.experts
    named = dict(retrieved=self.r.retrieved, candidates=candidates)
    forward = sum(2.0 * n * items for name, n in named.items() if name in said)
    return work + Work(forward, forward)

  def beam_search(self) -> Work:
    """Return the work of a beam search.

    A level is one position of the depth decoder per beam, against the cache of the codes before it;
    the first is one for all beams.
    """
    if 'generative' not in self.b.experts:
      return Work()
    total, beams = self.position(1, 1), self.vocab.codes
    for _ in range(1, self.vocab.levels):
      beams = min(self.b.beam, beams)
      total += self.position(beams, self.vocab.levels)
      beams *= self.vocab.codes
    return total.only_forward()

  def nearest(self) -> Work:
    """Return the work of ranking the whole catalogue, the vectors apart."""
    if 'dense' not in self.b.experts:
      return Work()
    return product(1, self.b.temporal.width, self.room).only_forward()

  def rank(self) -> Work:
    """Return the most work of finding items and ranking them: what is found twice is read once."""
    by_search = min(self.b.beam, self.room)
    searches = ('generative' in self.b.experts) + (
      'dense' in self.b.experts or 'intent' in self.loop.experts
    )
    named = dict(retrieved=self.r.retrieved, candidates=self.candidates)
    found = self.history + searches * by_search
    found += sum(n for name, n in named.items() if name in self.loop.experts)
    scored = self.members(found, by_search) + self.terms(found, self.candidates)
    return self.beam_search() + self.nearest() + scored.only_forward()

  # Reasoner

  def prefill(self) -> Work:
    """Return the work of reading one prompt."""
    r, n = self.r, self.layout.prompt_length
    return stack(r.transformer, n, dots=reasoner_projections(r, n)).only_forward()

  def branches(self) -> Work:
    """Return the work of what the worlds that remove an event read again."""
    c, rest = self.r.transformer, self.tree.rest
    one = reasoner_projections(self.r, rest) + attention(c, rest, self.layout.prompt_length)
    return one.times(c.layers * len(self.tree.removing)).only_forward()

  def decode(self, search: bool = False) -> Work:
    """Return the work of one chain's tokens against prompt and whole cache, of a path or search."""
    c, read = self.r.transformer, self.layout.length
    slots = self.layout.prompt_length + read
    written = read - self.r.role_events
    if search:
      followed = BEAMS * (self.vocab.levels - 1)
      read = int(self.layout.path_slots[0, 0]) + followed
      written = int(self.layout.role_slots[0]) + 1 + followed
    one = (reasoner_projections(self.r, 1) + attention(c, 1, slots)).times(c.layers)
    roles = product(self.r.role_events, c.width, len(ROLE_NAMES))
    return (one.times(read) + roles + product(written, c.width, self.vocab.codes)).only_forward()

  def likelihood(self, tree: Tree) -> Work:
    """Return the work of all chains of one user; the backward pass repeats the codes' readout."""
    c = self.r.transformer
    n_codes = self.r.intents * self.r.intent_levels + self.r.candidates * self.vocab.levels
    codes = product(n_codes, c.width, self.vocab.codes)
    roles = product(self.r.role_events, c.width, len(ROLE_NAMES))
    readout = roles + codes + Work(recompute=codes.forward)
    branches = attention(c, tree.branch, tree.shared + tree.branch).times(len(tree.removing))
    pairs = attention(c, tree.trunk, tree.trunk) + branches
    dots = reasoner_projections(self.r, tree.length)
    return stack(c, tree.length, pairs=pairs, dots=dots) + readout.times(tree.chains)

  def next_event(self) -> Work:
    """Return the work of stage `align` on one example, without text."""
    c, kinds = self.r.transformer, len(EVENT_NAMES) + GAPS + self.vocab.levels * self.vocab.codes
    readout = product(self.r.events, c.width, kinds)
    n = self.r.events * self.layout.per_event
    work = stack(c, n, dots=reasoner_projections(self.r, n))
    return work + readout + Work(recompute=readout.forward)

  # Phases of the joint train step, over a batch

  def phases(self, users: int | None = None) -> dict[str, Work]:
    """Return the work of each phase over `users`, by default a batch of the loop."""
    w, tree, n = self.worlds, self.tree, self.b.context
    policy = self.likelihood(dataclasses.replace(tree, chains=w + 1))
    # The target, the history, what any world names, what is trending most, and negatives.
    trending = min(TRENDING, self.b.trending) if 'trending' in self.b.experts else 0
    named = w * self.r.retrieved + self.candidates + trending
    scored = 1 + n + named + min(PRODUCT_NEGATIVES, self.room)
    alone = self.attend(1, self.history) + self.supervised(1) + self.choice(1, 1 + n)
    product_of_experts = self.members(scored) + self.terms(scored, self.candidates)
    per_user = {
      'rollout prefill': self.prefill() + self.branches(),
      'rollout decode': self.decode().times(w),
      'execution': self.sequence() + alone + product_of_experts,
      # With and without candidates.
      'feedback': self.terms(scored, self.r.candidates).times(2 * w).only_forward(),
      'reflection': policy + self.likelihood(tree).only_forward(),
    }
    batch = users or self.config.loop_stage.batch
    return {name: work.times(batch) for name, work in per_user.items()}

  def stages(self) -> dict[str, Work]:
    """Return the work of one step of each stage, and of one batch of recommendations."""
    c, phases = self.config, self.phases()
    search = self.loop.noise != 'common'
    recommend = self.prefill() + self.branches() + self.decode(search).times(self.worlds)
    asked = self.encode() + self.attend(1, self.history)
    recommend += asked.only_forward() + self.rank()
    return {
      'warmup': self.sequence().times(c.warmup.batch),
      'align': self.next_event().times(c.align.batch),
      'reason': self.likelihood(Tree(self.layout)).times(c.reason.batch),
      'loop': sum(phases.values(), Work()),
      'recommend': recommend.times(c.evaluation.batch) + self.vectors(self.room).only_forward(),
    }


def parameters(config: Config, room: int, text: int = 0) -> dict[str, int]:
  """Return the numbers of parameters, without what is added to a frozen base.

  The backbone's item table has a row for each of the `room` items that there may be; `text` is the
  width of their text vectors. Only matrices count: vectors are a few parts in ten thousand.
  """
  vocab = Vocabulary.of(config)
  b, r = config.backbone, config.reasoner.transformer
  t = b.temporal
  depth, tables = 0, (vocab.without_text.size + text) * t.width
  if 'generative' in b.experts:
    depth, tables = b.depth_layers, tables + vocab.levels * vocab.codes * t.width
  if 'dense' in b.experts:
    tables += room * t.width
  return dict(
    backbone=(t.layers + b.query_layers + depth) * _block(t) + tables,
    reasoner=r.layers * _block(r) + (2 - r.tied) * vocab.size * r.width + _of_equations(config),
  )


def _of_equations(config: Config) -> int:
  """Return how many parameters roles and kinds of users have, many of a small reasoner's."""
  kinds, attributes = config.reasoner.kinds, config.reasoner.attributes
  codes, roles = config.semantic_ids.codes, len(ROLE_NAMES)
  of_roles = 2 * codes * PAIR_WIDTH + (PAIR_WIDTH + FEATURES) * roles
  if not kinds:
    return of_roles
  return of_roles + 2 * kinds * codes + (1 + kinds) * attributes * codes + attributes**2


def _block(c: TransformerConfig) -> int:
  return c.width * (2 * (c.heads + c.kv_heads) * c.head_dim + 3 * c.mlp)


def trained(config: Config, room: int, text: int = 0) -> dict[str, int]:
  """Return how many parameters train: those that have moments and, in the reasoner, a reference."""
  count, r, vocab = parameters(config, room, text), config.reasoner, Vocabulary.of(config)
  if r.train == 'all':
    return count
  rows = (2 - r.transformer.tied) * vocab.own * r.transformer.width + _of_equations(config)
  adapter = sum(r.lora.rank * sum(_sides(r.transformer)[name]) for name in r.lora.targets)
  return count | dict(reasoner=rows + (r.transformer.layers * adapter if r.train == 'lora' else 0))
