"""`jit` with the compiler options of a platform, and compiling in step with the other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rolegen_jax.runtime import distributed

# XLA:CPU spends most of a small run in LLVM. Level 1 compiled the warmup gradient in 6.4 s instead
# of 19 and ran it in 312 ms instead of 324 (2 cores); without fusion emitters the joint train step
# of the demo compiles in 53 s of CPU instead of 87 and runs in 581 ms instead of 644. Other
# platforms keep their defaults.
OPTIONS: dict[str, dict[str, Any]] = {'cpu': {'xla_backend_optimization_level': 1}}
if jax.__version_info__ < (0, 12):  # which has no such option any more
  OPTIONS['cpu']['xla_cpu_use_fusion_emitters'] = False


# A program that runs once is not worth optimizing: level 0 halves its compilation.
ONCE: dict[str, dict[str, Any]] = {'cpu': {'xla_backend_optimization_level': 0}}


def jit(function: Callable, **kwargs: Any) -> jax.stages.Wrapped:
  """Return `jax.jit(function, **kwargs)` with the compiler options of the default backend."""
  return jax.jit(function, compiler_options=OPTIONS.get(jax.default_backend()), **kwargs)


def jit_once(function: Callable, **kwargs: Any) -> jax.stages.Wrapped:
  """Return `jit(function, **kwargs)` for a function that is called once or a few times."""
  platform = jax.default_backend()
  options = OPTIONS.get(platform, {}) | ONCE.get(platform, {})
  return jax.jit(function, compiler_options=options or None, **kwargs)


def compile_in_step(jitted: jax.stages.Wrapped, *args: Any) -> jax.stages.Compiled:
  """Compile `jitted` for `args` and wait until every process has.

  The result never compiles again: other shapes or shardings raise. A process that compiled sooner,
  because its cache held the program, would wait for the others inside the first collective, and
  collectives give up on that: Gloo after 30 seconds.
  """
  compiled = jitted.lower(*args).compile()
  distributed.gather(None)
  return compiled
