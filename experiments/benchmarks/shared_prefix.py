"""Rollouts of worlds that share their prompt, against worlds that each read and cache all of it.

  python -m experiments.benchmarks.shared_prefix

Both sides decode with the library's loop, under the same interventions and noise, so they sample
the same tokens. They differ in what is read and kept (`SIDES`), which is all that sharing changes;
the naive side lives here and nowhere else. Log-probs of both are held against the training forward,
in which the worlds of a user are one row (`likelihood.py`).

Shapes: B users, W worlds, P slots that worlds share, R prompt length, T completion length.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import demo
from experiments.benchmarks import harness
from rolegen_jax import overrides, sharding
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Examples
from rolegen_jax.models.attention import Visible, causal
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.perf.throughput import Bench
from rolegen_jax.reasoning.frcot import Prompt, build_prompt
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.prefill import Prefilled, prefill, prefill_worlds
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.rollout import Rollout, sample_worlds
from rolegen_jax.reasoning.sampling import RolloutSettings, Sampler
from rolegen_jax.reasoning.worlds import (
  Choice,
  Interventions,
  Tree,
  choose_interventions,
  removing,
  world_prompts,
)
from rolegen_jax.runtime.compile import jit
from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.sharding import constrain_rows

# A reasoner of a million parameters in its layers, two users.
BASE = (
  'semantic_ids.codes=64',
  'loop_stage.batch=2',
  'reasoner.transformer.layers=4',
  'reasoner.transformer.width=128',
  'reasoner.transformer.head_dim=32',
  'reasoner.transformer.mlp=384',
)
# Nats by which a log-prob as sampled may differ from that of the training forward: rounding of the
# compute type, which is that of the cache too.
TOLERANCE = {'float32': 1e-4, 'bfloat16': 0.1}
COLORS = (harness.SKY, harness.BLUE, harness.VERMILION, harness.GREEN)
MIB = 2**20


def measure(
  store: harness.Store,
  *,
  dtypes: tuple[str, ...] = ('float32', 'bfloat16'),
  events: tuple[int, ...] = (16, 64, 128),
  worlds: tuple[int, ...] = (2, 4, 8, 16),
  items: int = 10_000,
  repeats: int = 5,
  assignments: tuple[str, ...] = (),
) -> dict:
  """Time both sides at every combination of compute type, events and worlds.

  dtypes: Compute types.
  events: Events of the prompt; five tokens each.
  worlds: Worlds of a user.
  items: Items of the catalogue.
  repeats: Timed rounds of a point.
  assignments: Fields of the base config to replace, section.field=value.
  """
  harness.require_known('dtypes', dtypes, list(TOLERANCE))
  base = overrides.apply(demo.get_config(), [*BASE, *assignments])
  places = list(itertools.product(dtypes, events, worlds))
  for dtype, n_events, n_worlds in progress(places, 'shared_prefix', len(places)):
    place = dict(dtype=dtype, events=n_events, worlds=n_worlds)
    fields = [
      f'reasoner.transformer.dtype={dtype}',
      f'reasoner.events={n_events}',
      f'backbone.context={max(n_events, base.backbone.context)}',
      f'loop.worlds={n_worlds}',
    ]
    config = overrides.apply(base, fields)
    name = f'{dtype} {n_events} {n_worlds}'
    point = functools.partial(measure_point, place, config, items, repeats)
    store.point(name, (config, items, repeats), point)
  return dict(tolerance=TOLERANCE, points=store.points)


def measure_point(place: dict, config: Config, items: int, repeats: int) -> dict:
  """Time both sides in turn; compare their memory, and their samples with training's forward."""
  bench = Bench(config, None, items)
  rolegen, params, trie = bench.rolegen, bench.params['reasoner'], bench.trie
  examples = bench.examples(config.loop_stage.batch)
  keys = jax.random.split(jax.random.key(config.seed), len(examples.target))
  calls, samples, sides = {}, {}, {}
  with jax.set_mesh(bench.mesh):
    choice = jit(functools.partial(draw_interventions, rolegen))(examples, trie, keys)
    arguments = (params, examples, choice, trie, keys)
    for side in SIDES:
      started = time.perf_counter()
      compiled = jit(functools.partial(rollout, rolegen, side)).lower(*arguments).compile()
      sides[side] = dict(
        compile_s=time.perf_counter() - started,
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
      )
      samples[side] = compiled(*arguments)
      calls[side] = functools.partial(compiled, *arguments)
    seconds = harness.alternate(calls, repeats)
    score = jit(functools.partial(training_log_prob, rolegen))
    for side, sample in samples.items():
      expected = score(params, examples, sample.interventions, trie, sample.tokens)
      sides[side] |= harness.summary(seconds[side])
      sides[side]['off_training'] = difference(expected, sample.log_prob)
  shared_tokens, naive_tokens = (np.asarray(samples[side].tokens) for side in ('shared', 'naive'))
  point = place | dict(
    prompt=rolegen.layout.prompt_length,
    users=len(shared_tokens),
    sides=sides,
    ratio=harness.ratio_summary(seconds['naive'], seconds['shared']),
    tokens_equal=float((shared_tokens == naive_tokens).mean()),
  )
  check(point)
  return point


def difference(expected: jax.Array, log_prob: jax.Array) -> dict:
  """Return how far log-probs are from the expected, in nats.

  What was forced or chosen from one token has log-prob 0, and does not count.
  """
  expected, log_prob = (np.asarray(x, np.float64) for x in (expected, log_prob))
  off = np.abs(expected - log_prob)[log_prob != 0]
  return dict(max=float(off.max()), mean=float(off.mean()), tokens=len(off))


def check(point: dict) -> None:
  """Raise ConfigError unless log-probs are those of training and float32 samples are equal."""
  name = f'{point["dtype"]}, {point["events"]} events, {point["worlds"]} worlds'
  worst = max(side['off_training']['max'] for side in point['sides'].values())
  allowed = TOLERANCE[point['dtype']]
  if worst > allowed:
    raise ConfigError(
      f'{name}: a log-prob is {worst:.2g} nats off the training forward; must be within {allowed}'
    )
  if point['dtype'] == 'float32' and point['tokens_equal'] < 1:
    share = 100 * point['tokens_equal']
    raise ConfigError(
      f'{name}: {share:.2f} % of the tokens are those of the naive side; must be all'
    )


# The two sides


def read_shared(
  reasoner: Reasoner, tree: Tree, prompt: Prompt, prompts: Prompt, choice: Choice
) -> Prefilled:
  """Read and keep once what the worlds of a user share, as the library does."""
  factual, removes = prefill(reasoner, tree, prompt), choice.removed.any(-1)
  return prefill_worlds(reasoner, tree, factual, prompt, prompts, removes)


def read_naive(
  reasoner: Reasoner, tree: Tree, prompt: Prompt, prompts: Prompt, choice: Choice
) -> Prefilled:
  """Read the whole prompt in every world, each with a cache of its own: P = 0 slots are shared."""
  tokens, valid = constrain_rows((prompts.tokens, prompts.valid))
  positions = np.arange(tree.layout.prompt_length)
  hidden, cache = reasoner.prefill(tokens, positions, causal(valid.astype(jnp.int32)))
  own = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, tree.chains, *x.shape[2:]), cache)
  shared = jax.tree.map(lambda x: x[:, :, 0, :0], own)
  sees = valid.reshape(-1, tree.chains, valid.shape[1])
  last = hidden[:, -1].reshape(-1, tree.chains, hidden.shape[-1])
  return Prefilled(last, shared, own, Visible(sees[:, 0, :0], sees))


SIDES = {'shared': read_shared, 'naive': read_naive}


def world_tree(rolegen: RoleGen) -> Tree:
  loop = rolegen.config.loop
  return Tree(rolegen.layout, loop.worlds, removing(loop.worlds, loop.interventions))


def build_prompts(
  rolegen: RoleGen, examples: Examples, interventions: Interventions, trie: Trie
) -> tuple[Prompt, Prompt]:
  """Return the factual prompts [B, R] and those of all worlds [B * W, R]."""
  layout, timestamp = rolegen.layout, examples.timestamp
  prompt = build_prompt(layout, examples.history, examples.excites, timestamp, trie.item_codes)
  return prompt, world_prompts(layout, prompt, interventions)


def rollout(
  rolegen: RoleGen,
  side: str,
  params: Any,
  examples: Examples,
  choice: Choice,
  trie: Trie,
  keys: jax.Array,
) -> Rollout:
  """Sample all worlds from prompts that one side has read."""
  tree, loop = world_tree(rolegen), rolegen.config.loop
  with sharding.layout(rolegen.decoding):
    reasoner = rolegen.gathered('reasoner', params)
    prompt, prompts = build_prompts(rolegen, examples, choice.without_roles(), trie)
    ready = SIDES[side](reasoner, tree, prompt, prompts, choice)
    settings = RolloutSettings(loop.worlds, loop.interventions)
    sampler, reading = Sampler.begin(reasoner, tree.layout, ready, keys, settings)
    return constrain_rows(sample_worlds(sampler, reading, prompt, choice, trie))


def training_log_prob(
  rolegen: RoleGen,
  params: Any,
  examples: Examples,
  interventions: Interventions,
  trie: Trie,
  tokens_BxWxT: jax.Array,
) -> jax.Array:
  """Return log-probs [B, W, T] of given tokens by the forward pass that the losses use."""
  tree = world_tree(rolegen)
  _, prompts = build_prompts(rolegen, examples, interventions, trie)
  tokens_NxT = tokens_BxWxT.reshape(-1, tree.layout.length)
  scores = likelihood(rolegen.bind('reasoner', params), tree, prompts, tokens_NxT, trie)
  return scores.log_prob.reshape(tokens_BxWxT.shape)


def draw_interventions(rolegen: RoleGen, examples: Examples, trie: Trie, keys: jax.Array) -> Choice:
  """Return one intervention in every world but the first, at pivots drawn at random."""
  layout, loop, timestamp = rolegen.layout, rolegen.config.loop, examples.timestamp
  prompt = build_prompt(layout, examples.history, examples.excites, timestamp, trie.item_codes)
  pivotal = jax.random.uniform(keys[0], prompt.role_allowed.shape[:2])
  intent = jax.random.uniform(keys[0], (len(examples.target), rolegen.vocab.codes))
  return choose_interventions(prompt, pivotal, intent, loop.worlds, loop.interventions, keys)


# What the numbers say


def table(results: dict) -> str:
  lines = [
    'type      events worlds      naive     shared  ratio   temporaries MiB   tokens'
    '  off training, max (mean)'
  ]
  for point in results['points'].values():
    naive, shared = point['sides']['naive'], point['sides']['shared']
    temporaries = [side['temporaries'] / MIB for side in (naive, shared)]
    off = shared['off_training']
    lines.append(
      f'{point["dtype"]:<9} {point["events"]:>6} {point["worlds"]:>6}'
      f' {1e3 * naive["median_s"]:>7.0f} ms {1e3 * shared["median_s"]:>7.0f} ms'
      f' {point["ratio"]["median"]:>6.2f} {temporaries[0]:>7.1f} > {temporaries[1]:>7.1f}'
      f' {100 * point["tokens_equal"]:>6.2f} %'
      f'  {off["max"]:.1e} ({off["mean"]:.1e})'
    )
  tolerances = ', '.join(f'{dtype} {nats:g}' for dtype, nats in results['tolerance'].items())
  return '\n'.join([*lines, f'tolerances, nats: {tolerances}'])


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw how many times as fast sharing is, and the memory of both sides, per compute type."""
  points = list(results['points'].values())
  dtypes = list(dict.fromkeys(point['dtype'] for point in points))
  figure, grid = harness.panels(len(dtypes), 2, (8.5, 2.7 * len(dtypes)))
  for (speed, memory), dtype in zip(grid, dtypes, strict=True):
    of_dtype = [point for point in points if point['dtype'] == dtype]
    for color, events in zip(COLORS, sorted({point['events'] for point in of_dtype})):
      row = [point for point in of_dtype if point['events'] == events]
      _plot_row(speed, memory, sorted(row, key=lambda point: point['worlds']), color)
    speed.set_title(f'{dtype}: times as fast as worlds on their own', loc='left', fontsize=9)
    users = of_dtype[0]['users']
    memory.set_title(f'{dtype}: temporaries, MiB, {users} users', loc='left', fontsize=9)
    speed.axhline(1, color=harness.GRAY, linewidth=0.8)
    speed.set_ylim(bottom=0)
    memory.set_yscale('log')
    worlds = sorted({point['worlds'] for point in of_dtype})
    for panel in (speed, memory):
      panel.set_xscale('log', base=2)
      panel.set_xticks(worlds, list(map(str, worlds)))
      panel.set_xlabel('worlds', fontsize=8)
      panel.legend(fontsize=6.5, frameon=False)
  figure.savefig(figure_path, dpi=90)


def _plot_row(speed: Any, memory: Any, row: list[dict], color: str) -> None:
  """Draw the points of one prompt length over worlds."""
  worlds = [point['worlds'] for point in row]
  ratio = np.array([point['ratio']['median'] for point in row])
  error = np.abs(np.array([point['ratio']['quartiles'] for point in row]).T - ratio)
  label = f'prompt of {row[0]["prompt"]}'
  style = dict(color=color, marker='o', markersize=4)
  speed.errorbar(worlds, ratio, yerr=error, capsize=2, label=label, **style)
  for side, line in (('naive', '--'), ('shared', '-')):
    mib = [point['sides'][side]['temporaries'] / MIB for point in row]
    style = dict(color=color, marker='o', markersize=3)
    memory.plot(worlds, mib, line, label=f'{label}, {side}', **style)


if __name__ == '__main__':
  harness.main(measure, plot, table)
