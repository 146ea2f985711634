"""Every test runs on eight CPU devices: the sharding that one device would hide is tested too."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
# Workers and the processes that tests start import the same libraries. Where Python is told to keep
# no bytecode (images of containers often do), each would compile their sources for seconds.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
# Runs, commands and workers of one session compile each program once: the processes that pytest or
# a test starts inherit the folder.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='rolegen_tests_')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

# A collective holds a thread until all devices are there, and steps are in flight behind each
# other: with a thread for each device and no more, they were seen to wait for each other for good.
os.environ.setdefault('PJRT_NPROC', '32')
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    # The eight devices are threads on few cores. XLA takes a device that waits 40 s for the others
    # for a deadlock and aborts; on a busy machine it is none.
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
    # Half the compile time of the project's own CPU options, twice the (tiny) run time.
    '--xla_backend_optimization_level=0',
  ]
).strip()
if tuple(map(int, importlib.metadata.version('jax').split('.')[:2])) < (0, 12):
  # Tests compile much and run little. Without XLA's newer emitters of fusions the gradient of the
  # stage `reason` compiles in 3.0 s of CPU instead of 7.3. Later versions have no such flag.
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'

import jax

from rolegen_jax.runtime import compile as compile_lib

jax.config.update('jax_num_cpu_devices', 8)
# Tracing makes many objects that live on: Python would look through all of them again and again.
gc.set_threshold(200_000, 50, 50)
del compile_lib.OPTIONS['cpu']  # the flags above hold

# Files that take longest, which workers start with: one that came last would run alone.
LONGEST = (
  'tests/cli/test_commands.py',
  'tests/training/test_step.py',
  'tests/models/test_decode.py',
  'tests/training/test_calibration.py',
  'tests/models/test_experts.py',
  'tests/reasoning/test_ablations.py',
  'tests/training/test_fit.py',
)


def pytest_collection_modifyitems(items):
  def place(item):
    file = item.nodeid.split('::')[0]
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)

  items.sort(key=place)
