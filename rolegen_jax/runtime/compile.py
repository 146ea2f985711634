"""`jit` with the compiler options that a platform needs, and compiling in step with the other processes."""

from __future__ import annotations

import jax

from rolegen_jax.runtime import distributed

# XLA:CPU spends most of a small run in LLVM. Level 1 compiled the warmup gradient in 6.4 s instead of 19 and ran it in 312 ms
# instead of 324 (2 cores); the CPU is where people try things, so that is the default there. Other platforms get none.
OPTIONS = {'cpu': {'xla_backend_optimization_level': 1}}


def jit(function, **kwargs):
  """`jax.jit(function, **kwargs)` for the default backend."""
  return jax.jit(function, compiler_options=OPTIONS.get(jax.default_backend()), **kwargs)


def together(jitted, *args):
  """The program of `jitted` for `args`, compiled, on every process. It never compiles again: other shapes or shardings raise.

  A process that compiled sooner (its cache held the program) would wait for the others inside the first collective, and
  collectives give up on that: Gloo after 30 seconds.
  """
  compiled = jitted.lower(*args).compile()
  distributed.gather(None)
  return compiled
