"""Floating-point operations of every phase and stage, from the config alone.

A compiler's count is of no use for a step made of loops: it counts a loop's body once. Here a
product of [m, k] and [k, n] is 2 m k n; a backward pass costs twice its forward (gradients by
weights and by inputs), or once where the weights are frozen; rematerialization adds the forward of
what it computes again. Attention counts all pairs, masked or not, as the program computes them. Not
counted: elementwise work, gathers, the structural equations, optimizers. `model` leaves the
recomputation out, as MFU does (PaLM, arXiv 2204.02311, appendix B); `hardware` has it.

Shapes: B users or rows, n events of context, S memory slots, Q queries, W worlds, T completion,
R prompt, L levels, K codes.
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
from rolegen_jax.reasoning.frcot import Layout
from rolegen_jax.reasoning.worlds import Tree, removing
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

  def __init__(self, config: Config):
    self.config, self.vocab = config, Vocabulary.of(config)
    self.layout = Layout(config.reasoner, self.vocab)
    self.b, self.r, self.loop = config.backbone, config.reasoner, config.loop
    self.worlds = config.loop.worlds
    self.history = config.backbone.context + 1  # the start slot is memory too
    # Slots that the reasoning of all worlds adds.
    self.reasoned = self.worlds * config.reasoner.candidates + config.reasoner.retrieved
    self.tree = Tree(self.layout, self.worlds, removing(self.worlds, self.loop.interventions))

  # Backbone

  def encode(self) -> Work:
    """Return the work of encoding a row."""
    return stack(self.b.temporal, self.b.context)

  def attend(self, queries: int, slots: int) -> Work:
    """Return the work of queries attending to memory, and of the pointer."""
    c = self.b.temporal
    layer = projections(c, queries, slots) + attention(c, queries, slots)
    age_bias = 2.0 * queries * slots * AGE_FEATURES * c.heads
    layer += Work(age_bias, age_bias)
    layer += product(slots, NO_EVENT + 1, c.heads)
    pointer = (
      product(queries, c.width, c.width)
      + product(slots, c.width, c.width)
      + product(queries, c.width, slots)
    )
    return layer.times(self.b.query_layers) + pointer + Work(2.0 * queries * slots * AGE_FEATURES)

  def generate(self, items: float, length: int) -> Work:
    """Return the work of the log-probs of the first `length` codes of items."""
    c = dataclasses.replace(self.b.temporal, remat='none')
    readout = product(length, c.width, self.vocab.codes)
    return (stack(c, length, self.b.depth_layers) + readout).times(items)

  def supervised(self, items: float) -> Work:
    """Return the work of the log-probs of given items; the backward pass repeats them."""
    work = self.generate(items, self.vocab.levels)
    return work + Work(recompute=work.forward)

  def query(self, slots: int) -> Work:
    """Return the work of one query and the log-prob of its target."""
    return self.attend(1, slots) + self.supervised(1)

  def sequence(self) -> Work:
    """Return the work of encoding a row and predicting each of its events."""
    n = self.b.context
    return self.encode() + self.attend(n, self.history) + self.supervised(n)

  def beam_search(self) -> Work:
    """Return the work of a beam search.

    A level is one position of the depth decoder per beam, against the cache of the codes before it.
    """
    c, total, beams = self.b.temporal, Work(), 1
    for level in range(self.vocab.levels):
      layer = projections(c, 1, 1) + attention(c, 1, level + 1)
      position = layer.times(self.b.depth_layers) + product(1, c.width, self.vocab.codes)
      total += position.times(beams)
      beams = min(self.b.beam, beams * self.vocab.codes)
    return total.only_forward()

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

  def decode(self) -> Work:
    """Return the work of one chain's tokens, one at a time, against prompt and whole cache."""
    c, length = self.r.transformer, self.layout.length
    slots = self.layout.prompt_length + length
    one = (reasoner_projections(self.r, 1) + attention(c, 1, slots)).times(c.layers)
    roles = product(self.r.role_events, c.width, len(ROLE_NAMES))
    codes = product(length - self.r.role_events, c.width, self.vocab.codes)
    return (one.times(length) + roles + codes).only_forward()

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
    w, tree = self.worlds, self.tree
    with_world = self.query(self.history + self.r.candidates + self.r.retrieved)
    policy = self.likelihood(dataclasses.replace(tree, chains=w + 1))
    per_user = {
      'rollout prefill': self.prefill() + self.branches(),
      'rollout decode': self.decode().times(w),
      'execution': self.sequence() + self.query(self.history + self.reasoned),
      'feedback': with_world.times(2 * w).only_forward(),  # with and without candidates
      'reflection': policy + self.likelihood(tree).only_forward(),
    }
    batch = users or self.config.loop_stage.batch
    return {name: work.times(batch) for name, work in per_user.items()}

  def stages(self) -> dict[str, Work]:
    """Return the work of one step of each stage, and of one batch of recommendations."""
    c, phases = self.config, self.phases()
    reason = self.phases(1)
    recommend = reason['rollout prefill'] + reason['rollout decode'] + self.encode().only_forward()
    recommend += self.attend(1, self.history + self.reasoned).only_forward() + self.beam_search()
    return {
      'warmup': self.sequence().times(c.warmup.batch),
      'align': self.next_event().times(c.align.batch),
      'reason': self.likelihood(Tree(self.layout)).times(c.reason.batch),
      'loop': sum(phases.values(), Work()),
      'recommend': recommend.times(c.evaluation.batch),
    }


def parameters(config: Config) -> dict[str, int]:
  """Return the numbers of parameters, without what is added to a frozen base.

  Only matrices count: vectors are a few parts in ten thousand.
  """
  vocab = Vocabulary.of(config)
  b, r = config.backbone, config.reasoner.transformer
  t = b.temporal
  tables = vocab.without_text.size * t.width + vocab.levels * vocab.codes * t.width + 2 * t.width**2
  return dict(
    backbone=(t.layers + b.query_layers + b.depth_layers) * _block(t) + tables,
    reasoner=r.layers * _block(r) + (2 - r.tied) * vocab.size * r.width,
  )


def _block(c: TransformerConfig) -> int:
  return c.width * (2 * (c.heads + c.kv_heads) * c.head_dim + 3 * c.mlp)


def trained(config: Config) -> dict[str, int]:
  """Return how many parameters train: those that have moments and, in the reasoner, a reference."""
  count, r, vocab = parameters(config), config.reasoner, Vocabulary.of(config)
  if r.train == 'all':
    return count
  rows = (2 - r.transformer.tied) * vocab.own * r.transformer.width
  adapter = sum(r.lora.rank * sum(_sides(r.transformer)[name]) for name in r.lora.targets)
  return count | dict(reasoner=rows + (r.transformer.layers * adapter if r.train == 'lora' else 0))
