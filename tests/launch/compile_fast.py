"""Compile options of tests/conftest.py, for processes that pytest does not run."""

from rolegen_jax.runtime import compile as compile_lib


def compile_fast() -> None:
  """Halve the time to compile; the tiny programs of these tests may run slowly."""
  compile_lib.OPTIONS['cpu'] = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  }
