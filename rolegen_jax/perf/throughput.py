"""Times the phases of the joint train step, the step itself and the decode program.

Every phase is its own jitted program over one batch, compiled ahead of time, called twice, then
timed call by call to its end (`block_until_ready`); medians and quartiles. In the step the phases
are one program: they share work, so their sum is above it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.batches import Examples
from rolegen_jax.data.loader import Batches
from rolegen_jax.evaluation.content import provenance
from rolegen_jax.models import functional
from rolegen_jax.perf import hardware
from rolegen_jax.perf.aot.check import bytes_read
from rolegen_jax.perf.flops import Flops
from rolegen_jax.perf.random_inputs import random_codes, random_examples, random_trending
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.reasoning.feedback import Feedback
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.compile import jit
from rolegen_jax.runtime.progress import progress
from rolegen_jax.semantic_ids.trie import Trie, build_trie
from rolegen_jax.training import losses, state, steps

PHASES = ('input', 'rollout', 'execution', 'reflection', 'step', 'recommend')
MFU = (
  "MFU: the phase's model FLOPs (no recomputation, attention over all pairs) / seconds / chips / "
  'peak dense bf16'
)
UNTIMED = 2  # calls before the clock runs


def measure(
  config: Config, workdir: str, phases: list[str], source: str, items: int, repeats: int
) -> dict[str, Any]:
  """Return all that bench prints and writes. Raises ConfigError naming an unknown phase."""
  names = list(PHASES) if phases == ['all'] else phases
  if not names or set(names) - set(PHASES):
    raise ConfigError(f'--phases={",".join(names)}: must be some of {", ".join(PHASES)}, or all')
  if source == 'random' and 'input' in phases:
    raise ConfigError('--phases=input: there is no input pipeline to time with --input=random')
  inputs = _inputs(config, workdir) if source == 'log' else None
  if inputs is None:
    names = [name for name in names if name != 'input']
  bench = Bench(config, inputs, items)
  results = {name: bench.phase(name, repeats) for name in progress(names, 'bench', len(names))}
  return dict(
    experiment=config.name,
    input=source,
    repeats=repeats,
    phases=results,
    peak_memory=_peak_memory(),
    mfu_convention=MFU,
    provenance=provenance(config, {} if inputs is None else inputs.hashes, 0.0),
  )


def _inputs(config: Config, workdir: str) -> Inputs:
  # A folder that holds a run keeps the settings of that run.
  return prepare_inputs(open_run(config, workdir, keep_config=False))[1]


def show(result: dict[str, Any]) -> str:
  """Return the result of `measure` as text."""
  device, source = result['provenance']['device_kind'], result['input']
  lines = [
    f'{result["experiment"]} on {device}, {source} input; medians of {result["repeats"]} calls',
    f'{"phase":<12} {"median":>10} {"quartiles":>19} {"compile":>8} {"MFU":>7} {"HBM":>7}'
    '  per second and chip',
  ]
  for name, phase in result['phases'].items():
    median, low, high = (
      f'{1e3 * seconds:.1f}' for seconds in (phase['median_s'], *phase['quartiles_s'])
    )
    times = f'{median:>7} ms {low:>8} to {high:>7} {phase["compile_s"]:>6.1f} s'
    shares = f'{_percent(phase["mfu"]):>7} {_percent(phase["hbm_share"]):>7}'
    rates = phase['per_second_per_chip'].items()
    listed = ', '.join(f'{unit} {rate:,.0f}' for unit, rate in rates)
    lines.append(f'{name:<12} {times} {shares}  {listed}')
  memory = result['peak_memory']
  gib = memory['bytes'] / 2**30
  lines.append(f'peak memory {gib:.2f} GiB ({memory["of"]}); {result["mfu_convention"]}')
  return '\n'.join(lines)


def _percent(share: float | None) -> str:
  return '-' if share is None else f'{100 * share:.1f} %'


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
  """Return ratios of medians by phase.

  Raises ConfigError on different devices: such a ratio says nothing about the code.
  """
  a, b = (result['provenance']['device_kind'] for result in (first, second))
  if a != b:
    raise ConfigError(
      f'--compare: the first ran on {a}, the second on {b}; both must be of equal devices'
    )
  both = [name for name in first['phases'] if name in second['phases']]
  if not both:
    raise ConfigError('--compare: no phase is in both files')
  lines = []
  for name in both:
    ratio = first['phases'][name]['median_s'] / second['phases'][name]['median_s']
    lines.append(f'{name:<12} the second is {ratio:.2f} times as fast')
  configs = {result['provenance']['config_digest'] for result in (first, second)}
  return '\n'.join(lines + ['the configs differ'] * (len(configs) > 1))


def read(path: str) -> dict[str, Any]:
  """Return what --json wrote. Raises ConfigError."""
  try:
    return json.loads(storage.path(path).read_text(encoding='utf-8'))
  except (OSError, json.JSONDecodeError) as error:
    raise ConfigError(
      f'--compare={path}: cannot be read ({error}); must be a file that --json wrote'
    ) from error


@dataclasses.dataclass(frozen=True)
class Program:
  """A phase compiled over one batch."""

  call: Callable[[], None]  # runs it once, to its end
  compile_s: float
  # Bytes a device by the compiler: arguments, outputs, aliased (outputs in the place of
  # arguments), temporaries.
  memory: dict[str, int]


class Bench:
  """The programs of one config and their arguments, on all devices."""

  def __init__(self, config: Config, inputs: Inputs | None, items: int):
    self.config, self.inputs, self.items = config, inputs, items
    self.mesh, host_trie = sharding.make_mesh(config.mesh), self._host_trie()
    self.rolegen = RoleGen(config, *host_trie.sizes)
    for name in ('loop_stage', 'evaluation'):
      sharding.check_batch(f'{name}.batch', getattr(config, name).batch, config, self.mesh)
    self.model_fns, self.optimizers = steps.joint_parts(self.rolegen)
    complete = self.rolegen.model_fns | {'reference': self.rolegen.model_fns['reasoner']}
    with jax.set_mesh(self.mesh):
      self.trie = jax.device_put(host_trie, sharding.sharding(self.mesh))
      key = jax.random.key(config.seed)
      self.params = state.create(complete, {}, self.mesh, key).params
    self.trained = {
      name: functional.part(model_fn, self.params[name])
      for name, model_fn in self.model_fns.items()
    }
    self.frozen = {
      name: functional.part(model_fn, self.params[name])
      for name, model_fn in self.rolegen.frozen.items()
    }

  def _host_trie(self) -> Trie:
    if self.inputs is not None:
      return self.inputs.trie
    trie = build_trie(random_codes(self.config, self.items), self.config.semantic_ids.codes)
    return dataclasses.replace(trie, trending=random_trending(self.config, self.items))

  def examples(self, users: int) -> Examples:
    """Return a global batch of `users`, real ones where there is a log."""
    if self.inputs is None:
      host = random_examples(self.config, users, self.items)
    else:
      table = self.inputs.conversions
      host = table.rows(np.arange(users) % len(table), self.config.backbone.context)

    def put(x: np.ndarray) -> jax.Array:
      return sharding.global_batch(self.mesh, np.asarray(x), np.arange(users), users)

    return jax.tree.map(put, host)

  def phase(self, name: str, repeats: int) -> dict[str, Any]:
    """Return times, rates and memory of one of PHASES."""
    if name == 'input':
      return self._result(name, 0.0, _clock(self._next_batch(), repeats))
    program = self.program(name)
    result = self._result(name, program.compile_s, _clock(program.call, repeats))
    return result | dict(memory_per_device=program.memory)

  def _next_batch(self) -> Callable[[], Any]:
    assert self.inputs is not None
    table, config = self.inputs.conversions, self.config
    width = config.backbone.context
    batches = Batches(
      len(table), config.loop_stage.batch, config.seed, lambda rows: table.rows(rows, width)
    )
    return lambda: next(batches)

  def program(self, name: str) -> Program:
    """Return any phase but input, compiled over random or real examples."""
    with jax.set_mesh(self.mesh):
      program, args = self._program(name, self.examples(self._users(name)))
      started = time.perf_counter()
      compiled = program.lower(*args).compile()
      compile_s = time.perf_counter() - started

    def call() -> None:
      out = compiled(*args)
      if name == 'step':  # its state is donated
        args[0] = out[0]
      jax.block_until_ready(out)

    analysis = compiled.memory_analysis()
    sizes = dict(
      arguments=analysis.argument_size_in_bytes,
      outputs=analysis.output_size_in_bytes,
      aliased=analysis.alias_size_in_bytes,
      temporaries=analysis.temp_size_in_bytes,
    )
    return Program(call, compile_s, sizes)

  def _users(self, name: str) -> int:
    config = self.config.evaluation if name == 'recommend' else self.config.loop_stage
    return config.batch

  def _program(self, name: str, examples: Examples) -> tuple[Any, list[Any]]:
    """Return (jitted program, its arguments)."""
    rolegen, params, trie, key = self.rolegen, self.params, self.trie, jax.random.key(0)
    keys = jax.random.split(key, len(examples.target))
    if name == 'rollout':
      return jit(rolegen.rollout), [params['reasoner'], examples, trie, keys]
    if name == 'recommend':
      models = {model: params[model] for model in ('backbone', 'reasoner')}
      recommend = functools.partial(rolegen.recommend, beams=self.config.backbone.beam)
      return jit(recommend), [models, examples, trie]
    if name == 'step':
      return self._step(examples)
    rollout = jit(rolegen.rollout)(params['reasoner'], examples, trie, keys)
    if name == 'execution':
      loss = functools.partial(losses.execution_loss, rolegen)
      program = jit(jax.value_and_grad(loss, has_aux=True))
      return program, [params['backbone'], examples, rollout, trie, key]
    return self._reflection(examples, rollout)

  def _step(self, examples: Examples) -> tuple[Any, list[Any]]:
    key = jax.random.key(self.config.seed)
    fresh = state.create(self.model_fns, self.optimizers, self.mesh, key, self.trained)
    shardings = state.shardings(self.model_fns, self.optimizers, self.mesh)
    program = jit(
      functools.partial(steps.joint_train_step, self.rolegen, self.optimizers),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )
    switches = jax.tree.map(np.float32, steps.Switches())
    return program, [fresh, examples, self.trie, switches, self.frozen]

  def _reflection(self, examples: Examples, rollout: Any) -> tuple[Any, list[Any]]:
    zeros = jnp.zeros(rollout.candidates.shape[:2])
    worth = Feedback(zeros, zeros)

    def loss(
      trained: Any,
      reference: Any,
      frozen: Any,
      examples: Examples,
      rollout: Any,
      worth: Feedback,
      trie: Trie,
    ) -> Any:
      fixed = frozen.get('reasoner', {})
      policy, old = functional.join(trained, fixed), functional.join(reference, fixed)
      return losses.reflection_loss(self.rolegen, policy, old, examples, rollout, worth, trie, 1.0)

    program = jit(jax.value_and_grad(loss, has_aux=True))
    models = [self.trained['reasoner'], self.trained['reference'], self.frozen]
    return program, [*models, examples, rollout, worth, self.trie]

  def _result(self, name: str, compile_s: float, seconds: np.ndarray) -> dict[str, Any]:
    users, chips = self._users(name), jax.device_count()
    median = float(np.median(seconds))
    flops, n_bytes = self._model_flops(name, users), self._bytes_read(name)
    chip = hardware.of_kind(jax.devices()[0].device_kind)
    mfu = hbm_share = None
    if chip is not None and flops is not None:
      mfu = flops / median / chips / (chip.flops / chip.devices)
    if chip is not None and n_bytes is not None:
      hbm_share = n_bytes / median / (chip.hbm_bandwidth / chip.devices)
    return dict(
      compile_s=compile_s,
      median_s=median,
      quartiles_s=[float(q) for q in np.quantile(seconds, (0.25, 0.75))],
      seconds=seconds.tolist(),
      users=users,
      per_second_per_chip={
        unit: n / median / chips for unit, n in self._counts(name, users).items()
      },
      model_flops=flops,
      mfu=mfu,
      bytes_read_per_device=n_bytes,
      hbm_share=hbm_share,
    )

  def _counts(self, name: str, users: int) -> dict[str, int]:
    """Return how much of what a batch of a phase holds."""
    layout, worlds = self.rolegen.layout, self.config.loop.worlds
    written = users * worlds * layout.length
    read = users * (2 * worlds + 1) * (layout.prompt_length + layout.length)
    counts = {
      'rollout': dict(rollouts=users * worlds, tokens=written),
      'execution': dict(events=users * self.config.backbone.context),
      'reflection': dict(tokens=read),
      'step': dict(rollouts=users * worlds, tokens=written + read),
      'recommend': dict(rollouts=users * worlds),
    }
    return dict(trajectories=users) | counts.get(name, {})

  def _model_flops(self, name: str, users: int) -> float | None:
    flops = Flops(self.config, *self.trie.sizes)
    phases = {phase: work.model for phase, work in flops.phases(users).items()}
    return {
      'rollout': phases['rollout prefill'] + phases['rollout decode'],
      'execution': phases['execution'] + phases['feedback'],
      'reflection': phases['reflection'],
      'step': sum(phases.values()),
      'recommend': flops.stages()['recommend'].model,
    }.get(name)

  def _bytes_read(self, name: str) -> float | None:
    """Return the bytes a device must read, where that is what bounds: decoding, token by token."""
    if name != 'rollout':
      return None
    tensor = self.mesh.shape['tensor']
    return bytes_read(self.config, 'step', jax.device_count(), tensor, *self.trie.sizes)['rollout']


def _clock(call: Callable[[], Any], repeats: int) -> np.ndarray:
  """Return the seconds of each timed call, float64 [repeats]."""
  seconds = []
  for _ in range(UNTIMED + repeats):
    started = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - started)
  return np.array(seconds[UNTIMED:])


def _peak_memory() -> dict[str, Any]:
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return dict(bytes=int(stats['peak_bytes_in_use']), of='device 0, all phases')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return dict(bytes=peak, of='host process: this platform counts none on the device')
