"""Measures the phases of the joint train step, the step itself and the decode program on the devices at hand.

Every phase is its own jitted program over one batch, compiled ahead of time, called twice, then timed call by call to its end
(`block_until_ready`); medians and quartiles. In the step the phases are one program: they share work, so their sum is above it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import resource
import time
from collections.abc import Callable

import jax
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.data.loader import Batches
from rolegen_jax.evaluation.content import provenance
from rolegen_jax.models import functional
from rolegen_jax.perf import hardware
from rolegen_jax.perf.aot.check import bytes_read
from rolegen_jax.perf.flops import Flops
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import compile as compiling
from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training import losses, state, steps

PHASES = ('input', 'rollout', 'execution', 'reflection', 'step', 'recommend')
MFU = "MFU: the phase's model FLOPs (no recomputation, attention over all pairs) / seconds / chips / peak dense bf16"
WARM_UP = 2  # calls before the clock runs


def measure(
  config: Config, workdir: str, phases: list[str], source: str, items: int, repeats: int
) -> dict:
  """Everything that bench prints and writes. Raises ConfigError naming an unknown phase."""
  names = PHASES if phases == ['all'] else phases
  if unknown := sorted(set(names) - set(PHASES)):
    raise ConfigError(f'--phases={unknown[0]}: must be some of {", ".join(PHASES)}, or all')
  if source == 'random' and 'input' in phases:
    raise ConfigError('--phases=input: there is no input pipeline to time with --input=random')
  inputs = prepare_inputs(open_run(config, workdir)) if source == 'log' else None
  place = Bench(config, inputs, items)
  found = {}
  for name in progress([name for name in names if inputs or name != 'input'], 'bench', len(names)):
    found[name] = place.phase(name, repeats)
  artifacts = {} if inputs is None else inputs.hashes
  return dict(
    experiment=config.name,
    input=source,
    repeats=repeats,
    phases=found,
    peak_memory=_peak_memory(),
    mfu_convention=MFU,
    provenance=provenance(config, artifacts, 0.0),
  )


def show(found: dict) -> str:
  lines = [
    f'{found["experiment"]} on {found["provenance"]["device_kind"]}, {found["input"]} input; medians of {found["repeats"]} retrieved',
    f'{"phase":<12} {"median":>10} {"quartiles":>19} {"compile":>8} {"MFU":>7} {"HBM":>7}  per second and chip',
  ]
  share = lambda x: '-' if x is None else f'{100 * x:.1f} %'
  for name, p in found['phases'].items():
    ms = lambda s: f'{1e3 * s:.1f}'
    rates = ', '.join(f'{unit} {rate:,.0f}' for unit, rate in p['per_second_per_chip'].items())
    lines.append(
      f'{name:<12} {ms(p["median_s"]):>7} ms {ms(p["quartiles_s"][0]):>8} to {ms(p["quartiles_s"][1]):>7} {p["compile_s"]:>6.1f} s'
      f' {share(p["mfu"]):>7} {share(p["hbm_share"]):>7}  {rates}'
    )
  memory = found['peak_memory']
  return '\n'.join(
    [
      *lines,
      f'peak memory {memory["bytes"] / 2**30:.2f} GiB ({memory["of"]}); {found["mfu_convention"]}',
    ]
  )


def compare(first: dict, second: dict) -> str:
  """Ratios of medians by phase. Raises ConfigError on different devices: such a ratio says nothing about the code."""
  a, b = (f['provenance']['device_kind'] for f in (first, second))
  if a != b:
    raise ConfigError(
      f'--compare: the first ran on {a}, the second on {b}; both must be of equal devices'
    )
  both = [name for name in first['phases'] if name in second['phases']]
  if not both:
    raise ConfigError('--compare: no phase is in both files')
  note = (
    ''
    if first['provenance']['config_digest'] == second['provenance']['config_digest']
    else '\nthe configs differ'
  )
  speed = lambda name: first['phases'][name]['median_s'] / second['phases'][name]['median_s']
  return (
    '\n'.join(f'{name:<12} the second is {speed(name):.2f} times as fast' for name in both) + note
  )


def read(path: str) -> dict:
  try:
    return json.loads(pathlib.Path(path).read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise ConfigError(
      f'--compare={path}: cannot be read ({error}); must be a file that --json wrote'
    ) from error


@dataclasses.dataclass(frozen=True)
class Program:
  """A phase compiled over one batch."""

  call: Callable[[], None]  # runs it once, to its end
  compile_s: float
  memory: dict[
    str, int
  ]  # bytes a device by the compiler: arguments, outputs, aliased (outputs in the place of arguments), temporaries


class Bench:
  """One config's programs and their arguments, on all devices."""

  def __init__(self, config: Config, inputs: Inputs | None, items: int):
    self.config, self.inputs, self.items = config, inputs, items
    self.rolegen, self.mesh = RoleGen(config), sharding.make_mesh(config.mesh)
    self.model_fns, self.optimizers = steps.joint_parts(self.rolegen)
    whole = self.rolegen.model_fns | {'reference': self.rolegen.model_fns['reasoner']}
    trie = (
      build_trie(_random_codes(config, items), config.semantic_ids.codes)
      if inputs is None
      else inputs.trie
    )
    with jax.set_mesh(self.mesh):
      self.trie = jax.device_put(trie, sharding.sharding(self.mesh))
      self.params = state.create(whole, {}, self.mesh, jax.random.key(config.seed)).params
    self.trained = {
      name: functional.part(make, self.params[name]) for name, make in self.model_fns.items()
    }
    self.frozen = {
      name: functional.part(make, self.params[name]) for name, make in self.rolegen.frozen.items()
    }

  def examples(self, users: int) -> Examples:
    if self.inputs is not None:
      table = self.inputs.conversions
      host = table.rows(np.arange(users) % len(table), self.config.backbone.context)
    else:
      host = _random_examples(self.config, users, self.items)
    return jax.tree.map(
      lambda x: sharding.global_batch(self.mesh, np.asarray(x), np.arange(users), users), host
    )

  def phase(self, name: str, repeats: int) -> dict:
    if name == 'input':
      table, c = self.inputs.conversions, self.config
      batches = Batches(
        len(table), c.loop_stage.batch, c.seed, lambda rows: table.rows(rows, c.backbone.context)
      )
      return self._found(
        name, 0.0, _clock(lambda: next(batches), repeats), self.config.loop_stage.batch
      )
    program = self.program(name)
    return self._found(
      name, program.compile_s, _clock(program.call, repeats), self._users(name)
    ) | dict(memory_per_device=program.memory)

  def program(self, name: str) -> Program:
    """Any phase but input, compiled over random or real cases."""
    with jax.set_mesh(self.mesh):
      program, held = self._program(name, self.examples(self._users(name)))
      started = time.perf_counter()
      compiled = program.lower(*held).compile()
      compile_s = time.perf_counter() - started

    def call():
      out = compiled(*held)
      if name == 'step':  # its state is donated
        held[0] = out[0]
      jax.block_until_ready(out)

    m = compiled.memory_analysis()
    sizes = dict(
      arguments=m.argument_size_in_bytes,
      outputs=m.output_size_in_bytes,
      aliased=m.alias_size_in_bytes,
      temporaries=m.temp_size_in_bytes,
    )
    return Program(call, compile_s, sizes)

  def _users(self, name: str) -> int:
    return (self.config.evaluation if name == 'recommend' else self.config.loop_stage).batch

  def _program(self, name: str, examples: Examples):
    """(jitted program, its arguments)."""
    rolegen, params, trie, key = self.rolegen, self.params, self.trie, jax.random.key(0)
    switches = jax.tree.map(np.float32, steps.Switches())
    if name == 'rollout':
      return compiling.jit(rolegen.rollout), [params['reasoner'], examples, trie, key]
    if name == 'recommend':
      answer = lambda p, examples, trie, key: rolegen.recommend(
        p, examples, trie, key, self.config.backbone.beam
      )
      return compiling.jit(answer), [
        {n: params[n] for n in ('backbone', 'reasoner')},
        examples,
        trie,
        key,
      ]
    if name == 'step':
      fresh = state.create(
        self.model_fns, self.optimizers, self.mesh, jax.random.key(self.config.seed), self.trained
      )
      out = state.shardings(self.model_fns, self.optimizers, self.mesh), None
      program = compiling.jit(
        functools.partial(steps.joint_train_step, rolegen, self.optimizers),
        donate_argnums=0,
        out_shardings=out,
      )
      return program, [fresh, examples, trie, switches, self.frozen]
    rollout = compiling.jit(rolegen.rollout)(params['reasoner'], examples, trie, key)
    if name == 'execution':
      loss = lambda p, examples, rollout, trie, key: losses.execution_loss(
        rolegen, p, examples, rollout, trie, key
      )
      return compiling.jit(jax.value_and_grad(loss, has_aux=True)), [
        params['backbone'],
        examples,
        rollout,
        trie,
        key,
      ]
    zeros = jax.numpy.zeros(rollout.candidates.shape[:2])
    worth = losses.Feedback(zeros, zeros)
    whole = lambda p, frozen: functional.join(p, frozen.get('reasoner', {}))
    loss = lambda p, reference, frozen, *args: losses.reflection_loss(
      rolegen, whole(p, frozen), whole(reference, frozen), *args, switches.reflect
    )
    trained = self.trained['reasoner'], self.trained['reference']
    return compiling.jit(jax.value_and_grad(loss, has_aux=True)), [
      *trained,
      self.frozen,
      examples,
      rollout,
      worth,
      trie,
    ]

  def _found(self, name: str, compile_s: float, seconds: np.ndarray, users: int) -> dict:
    median, c, chips = float(np.median(seconds)), self.config, jax.device_count()
    layout, worlds = self.rolegen.layout, c.loop.worlds
    whole = layout.prompt_length + layout.length
    counts = dict(trajectories=users)
    counts |= {
      'rollout': dict(rollouts=users * worlds, tokens=users * worlds * layout.length),
      'execution': dict(events=users * c.backbone.context),
      'reflection': dict(tokens=users * (2 * worlds + 1) * whole),
      'step': dict(
        rollouts=users * worlds, tokens=users * (worlds * layout.length + (2 * worlds + 1) * whole)
      ),
      'recommend': dict(rollouts=users * worlds),
    }.get(name, {})
    flops, read = self._work(name, users), self._read(name)
    chip = hardware.of_kind(jax.devices()[0].device_kind)
    return dict(
      compile_s=compile_s,
      median_s=median,
      quartiles_s=[float(q) for q in np.quantile(seconds, (0.25, 0.75))],
      seconds=seconds.tolist(),
      users=users,
      per_second_per_chip={unit: n / median / chips for unit, n in counts.items()},
      model_flops=flops,
      mfu=None
      if chip is None or flops is None
      else flops / median / chips / (chip.flops / chip.devices),
      bytes_read_per_device=read,
      hbm_share=None
      if chip is None or read is None
      else read / median / (chip.hbm_bandwidth / chip.devices),
    )

  def _work(self, name: str, users: int) -> float | None:
    flops = Flops(self.config)
    phases = {n: w.model for n, w in flops.phases(users).items()}
    return {
      'rollout': phases['rollout prefill'] + phases['rollout decode'],
      'execution': phases['execution'] + phases['feedback'],
      'reflection': phases['reflection'],
      'step': sum(phases.values()),
      'recommend': flops.stages()['recommend'].model,
    }.get(name)

  def _read(self, name: str) -> float | None:
    """Bytes that a device must read at least, where that is what bounds: decoding, token by token."""
    if name != 'rollout':
      return None
    return bytes_read(self.config, 'step', jax.device_count(), self.mesh.shape['tensor'])['rollout']


def _clock(call, repeats: int) -> np.ndarray:
  seconds = []
  for i in range(WARM_UP + repeats):
    started = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - started)
  return np.array(seconds[WARM_UP:])


def _peak_memory() -> dict:
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return dict(bytes=int(stats['peak_bytes_in_use']), of='device 0, all phases')
  return dict(
    bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    of='host process: this platform counts none on the device',
  )


def _random_codes(config: Config, items: int) -> np.ndarray:
  levels, codes = config.semantic_ids.levels, config.semantic_ids.codes
  if items > codes**levels:
    raise ConfigError(
      f'--items={items}: must be at most semantic_ids.codes ** levels = {codes**levels}'
    )
  ids = (
    np.random.default_rng(0).permutation(codes**levels)[:items]
    if codes**levels <= 1 << 24
    else np.arange(items) * (codes**levels // items)
  )
  return (ids[:, None] // codes ** np.arange(levels)[::-1] % codes).astype(np.int32)


def _random_examples(config: Config, users: int, items: int) -> Examples:
  rng, n, r = np.random.default_rng(0), config.backbone.context, config.reasoner
  draw = lambda high, *shape: rng.integers(0, high, (users, *shape)).astype(np.int32)
  time_Bxn = np.sort(draw(86_400 * 90, n), axis=1)
  history = Trajectories(
    draw(items, n),
    1 + draw(5, n),
    np.ones((users, n), np.int32),
    time_Bxn,
    np.ones((users, n), np.int32),
  )
  weight, shift = rng.random((2, users, n, r.coarse_codes), np.float32)
  retrieved = draw(items, n, r.transitions), 0.1 * rng.random((users, n, r.transitions), np.float32)
  excites = Excites(
    draw(config.semantic_ids.codes, n, r.coarse_codes), weight, 0.1 * shift - 0.05, *retrieved
  )
  return Examples(
    history,
    time_Bxn[:, -1] + 86_400,
    excites,
    draw(items),
    draw(7, r.role_events),
    draw(items, r.candidates),
  )
