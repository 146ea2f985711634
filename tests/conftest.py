"""Every test runs on eight CPU devices: sharding that one device would hide is part of what is tested."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

jax.config.update('jax_num_cpu_devices', 8)

from rolegen_jax import compile as compile_lib

# Tests compile much and run little: half the compile time of the project's own CPU options, twice the (tiny) run time.
compile_lib.OPTIONS['cpu'] = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
