"""Every test runs on eight CPU devices: sharding that one device would hide is part of what is tested."""

import atexit
import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
# Runs, commands and workers of one session compile each program once: those that pytest or a test starts inherit the folder.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='rolegen_tests_')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

# A collective holds a thread until all devices are there, and steps are in flight behind each other: with a thread for each device and no
# more, they were seen to wait for each other for good.
os.environ.setdefault('PJRT_NPROC', '32')
# The eight devices are threads on few cores. XLA takes a device that waits 40 s for the others for a deadlock and aborts; on a busy machine it is none.
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_collective_call_terminate_timeout_seconds=600'.strip()
)

import jax

jax.config.update('jax_num_cpu_devices', 8)

from rolegen_jax.runtime import compile as compile_lib

# Tests compile much and run little: half the compile time of the project's own CPU options, twice the (tiny) run time.
compile_lib.OPTIONS['cpu'] = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}
