"""Worlds that read and keep what they share of their prompt once, against worlds that each read and keep all of it.

Both sides decode with the library's loop, under the same interventions and noise, so they sample the same tokens. They differ in what
is read and kept (`SIDES`), which is the whole of what sharing changes; the naive side lives here and nowhere else. Log-probs of both are
held against the training forward, in which the worlds of a user are one row (`likelihood.py`).

Shapes: B users, W worlds, P slots that worlds share, R prompt length, T completion length.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import demo
from experiments.benchmarks import measure
from rolegen_jax import compile as compiling
from rolegen_jax import config as c
from rolegen_jax import distributed, overrides, sharding
from rolegen_jax.models.attention import causal
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.progress import progress
from rolegen_jax.provenance import machine
from rolegen_jax.reasoning.frcot import Prompt, build_prompt
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.reasoning.rollout import Read, decode, in_worlds, read
from rolegen_jax.reasoning.worlds import Interventions, Tree, choose_interventions, removing, world_prompts
from rolegen_jax.sharding import constrain_rows
from rolegen_jax.throughput import Bench

# A reasoner of a million parameters in its layers, two users.
BASE = (
    'semantic_ids.codes=64', 'loop_stage.batch=2', 'reasoner.transformer.layers=4', 'reasoner.transformer.width=128',
    'reasoner.transformer.head_dim=32', 'reasoner.transformer.mlp=384',
)
ITEMS = 10_000
AXES = dict(dtype=('float32', 'bfloat16'), events=(16, 64, 128), worlds=(2, 4, 8, 16))
# Nats by which a log-prob as sampled may differ from that of the training forward: rounding of the compute type, which the cache has too.
TOLERANCE = dict(float32=1e-4, bfloat16=0.1)


def together(reasoner: Reasoner, tree: Tree, prompt: Prompt, prompts: Prompt, interventions: Interventions) -> Read:
  """As the library does: what worlds share is read once and kept once."""
  return in_worlds(reasoner, tree, read(reasoner, tree, prompt), prompt, prompts, interventions.removed.any(-1))


def apart(reasoner: Reasoner, tree: Tree, prompt: Prompt, prompts: Prompt, interventions: Interventions) -> Read:
  """Every world reads its whole prompt and keeps all of it in a cache of its own; P = 0 slots are shared."""
  tokens, valid = constrain_rows((prompts.tokens, prompts.valid))
  hidden, cache = reasoner.prefill(tokens, np.arange(tree.layout.prompt_length), causal(valid.astype(jnp.int32)))
  own = tuple(x.reshape(x.shape[0], -1, tree.chains, *x.shape[2:]) for x in cache)
  sees = valid.reshape(-1, tree.chains, valid.shape[1])
  return Read(hidden[:, -1].reshape(-1, tree.chains, hidden.shape[-1]), tuple(x[:, :, 0, :0] for x in own), own, (sees[:, 0, :0], sees))


SIDES = dict(shared=together, naive=apart)


def tree_of(config: c.Config, rolegen: RoleGen) -> Tree:
  return Tree(rolegen.layout, config.loop.worlds, removing(config.loop.worlds, config.loop.interventions))


def rollout(rolegen: RoleGen, side: str, params, cases, interventions: Interventions, trie, key):
  """Tokens and their log-probs, [B, W, T] each; 0 is the log-prob of what was not sampled."""
  tree, shape = tree_of(rolegen.config, rolegen), interventions.role.shape[:2]
  with sharding.layout(rolegen.decoding):
    reasoner = rolegen.gathered('reasoner', params)
    prompt = build_prompt(tree.layout, cases.history, cases.excites, cases.timestamp, trie.item_codes)
    prompts = world_prompts(tree.layout, prompt, interventions)
    ready = SIDES[side](reasoner, tree, prompt, prompts, interventions)
    equation = reasoner.intent
    said = equation(prompts.evidence), equation.calls(prompts.evidence, tree.layout.config.called, trie.item_codes)
    tokens, log_prob, _ = decode(reasoner, tree.layout, ready, prompts, *said, trie, key, 1.0)
    return constrain_rows((tokens.reshape(*shape, -1), log_prob.reshape(*shape, -1)))


def taught(rolegen: RoleGen, params, cases, interventions: Interventions, trie, tokens):
  """Log-probs [B, W, T] of given tokens by the forward pass that the losses use."""
  tree = tree_of(rolegen.config, rolegen)
  prompt = build_prompt(tree.layout, cases.history, cases.excites, cases.timestamp, trie.item_codes)
  prompts = world_prompts(tree.layout, prompt, interventions)
  found = likelihood(rolegen.bind('reasoner', params), tree, prompts, tokens.reshape(-1, tree.layout.length), trie)
  return found.log_prob.reshape(tokens.shape)


def interventions_of(rolegen: RoleGen, cases, trie, key) -> Interventions:
  """One in every world but the first, at pivots drawn by chance."""
  prompt = build_prompt(rolegen.layout, cases.history, cases.excites, cases.timestamp, trie.item_codes)
  loop = rolegen.config.loop
  moved, intent = (jax.random.uniform(key, shape) for shape in (prompt.role_allowed.shape[:2], (len(cases.target), rolegen.vocab.codes)))
  return choose_interventions(prompt, moved, intent, loop.worlds, loop.interventions, key)


def cache_bytes(rolegen: RoleGen) -> dict[str, int]:
  """Keys and values that a user's rollout keeps, all layers."""
  t, tree = rolegen.config.reasoner.transformer, tree_of(rolegen.config, rolegen)
  slot = 2 * t.layers * t.kv_heads * t.head_dim * jnp.dtype(t.dtype).itemsize
  own = tree.chains * (tree.rest + tree.layout.length)
  return dict(shared=slot * (tree.shared + own), naive=slot * (tree.chains * tree.shared + own))


def point(config: c.Config, items: int, repeats: int) -> dict:
  """Both sides in turn: times, their ratio, bytes, and how far their samples agree with each other and with training."""
  bench = Bench(config, None, items)
  rolegen, params, trie, cases = bench.rolegen, bench.params['reasoner'], bench.trie, bench.cases(config.loop_stage.batch)
  key, compiled, held, found = jax.random.key(config.seed), {}, {}, {}
  with jax.set_mesh(bench.mesh):
    done = compiling.jit(functools.partial(interventions_of, rolegen))(cases, trie, key)
    for side in SIDES:
      started = time.perf_counter()
      compiled[side] = compiling.jit(functools.partial(rollout, rolegen, side)).lower(params, cases, done, trie, key).compile()
      found[side] = dict(compile_s=time.perf_counter() - started, temporaries=compiled[side].memory_analysis().temp_size_in_bytes)

    def call(side):
      held[side] = compiled[side](params, cases, done, trie, key)
      return held[side]

    times = measure.alternate({side: functools.partial(call, side) for side in SIDES}, repeats)
    teach = compiling.jit(functools.partial(taught, rolegen))
    for side, (tokens, log_prob) in held.items():
      wanted, log_prob = (np.asarray(x, np.float64) for x in (teach(params, cases, done, trie, tokens), log_prob))
      # What was forced or chosen from one token has log-prob 0; in training too, but for interventions, which nobody learns.
      off = np.abs(wanted - log_prob)[log_prob != 0]
      far = dict(max=float(off.max()), mean=float(off.mean()), tokens=len(off))
      found[side] |= times[side] | dict(cache_bytes=cache_bytes(rolegen)[side], off_training=far)
  (a, log_a), (b, log_b) = (jax.device_get(held[side]) for side in SIDES)
  same = a == b
  ratio = np.divide(times['naive']['seconds'], times['shared']['seconds'])
  return dict(
      prompt=rolegen.layout.prompt_length, completion=rolegen.layout.length, shared_slots=tree_of(config, rolegen).shared, users=len(a), sides=found,
      ratio=dict(median=float(np.median(ratio)), quartiles=np.quantile(ratio, (0.25, 0.75)).tolist()),
      bytes_saved=found['naive']['temporaries'] - found['shared']['temporaries'],
      tokens_equal=float(same.mean()), off_each_other=float(np.abs(log_a - log_b)[same.cumprod(-1, dtype=bool)].max()),
  )


def base(assignments: Iterable[str] = ()) -> c.Config:
  return overrides.apply(demo.get_config(), [*BASE, *assignments])


def at(config: c.Config, dtype: str, events: int, worlds: int) -> c.Config:
  return overrides.apply(config, [
      f'reasoner.transformer.dtype={dtype}', f'reasoner.events={events}', f'backbone.context={max(events, config.backbone.context)}',
      f'loop.worlds={worlds}'])


def measured(config: c.Config, items: int, axes: dict, repeats: int, kept: dict, save: Callable[[dict], None]) -> dict:
  """`kept`, an earlier result, with the points of all combinations of `axes` (as AXES); `save` gets the whole after each new one.

  What was found with other code, settings, versions or on another machine is dropped. Raises ConfigError where log-probs are off.
  """
  known = machine()
  where = [distributed.code_digest(), known['versions'], known['device_kind'], measure.processor(), repeats, items]
  key = lambda place: c.digest(where, at(config, *place))
  points = {name: p for name, p in kept.get('points', {}).items() if p['key'] == key([p[axis] for axis in AXES])}
  found = dict(tolerance=TOLERANCE, points=points)
  missing = [place for place in itertools.product(*(axes[name] for name in AXES)) if ' '.join(map(str, place)) not in points]
  for place in progress(missing, 'shared_prefix', len(missing)):
    name, made = ' '.join(map(str, place)), dict(key=key(place), commit=known['commit'], when=known['when'])
    points[name] = dict(zip(AXES, place)) | point(at(config, *place), items, repeats) | made
    check(name, points[name])
    save(found)
  return found


def check(name: str, p: dict) -> None:
  """Raises ConfigError unless log-probs are those of training, and float32 samples those of the other side."""
  worst = max(side['off_training']['max'] for side in p['sides'].values())
  if worst > TOLERANCE[p['dtype']]:
    raise c.ConfigError(f'{name}: a log-prob is {worst:.2g} nats off the training forward; must be within {TOLERANCE[p["dtype"]]}')
  if p['dtype'] == 'float32' and p['tokens_equal'] < 1:
    raise c.ConfigError(f'{name}: {100 * p["tokens_equal"]:.2f} % of the tokens are those of the naive side; must be all')


def table(found: dict) -> str:
  mib = 2**20
  lines = ['type      events worlds      naive     shared  ratio   temporaries MiB    caches MiB   tokens  off training, max (mean)']
  for p in found['points'].values():
    naive, shared = p['sides']['naive'], p['sides']['shared']
    off, both = shared['off_training'], lambda width, read: f'{read(naive) / mib:>{width}.1f} > {read(shared) / mib:>{width}.1f}'
    lines.append(
        f'{p["dtype"]:<9} {p["events"]:>6} {p["worlds"]:>6} {1e3 * naive["median_s"]:>7.0f} ms {1e3 * shared["median_s"]:>7.0f} ms '
        f'{p["ratio"]["median"]:>6.2f} {both(7, lambda s: s["temporaries"])} {both(5, lambda s: p["users"] * s["cache_bytes"])} '
        f'{100 * p["tokens_equal"]:>6.2f} %  {off["max"]:.1e} ({off["mean"]:.1e})')
  return '\n'.join([*lines, 'tolerances, nats: ' + ', '.join(f'{dtype} {t:g}' for dtype, t in found['tolerance'].items())])
