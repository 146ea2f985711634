"""A stand-in for rolegen_jax.train at the smallest size: data, semantic IDs, and the backbone's warm-up.

  python tests/launch/tiny_train.py --workdir=DIR [--terminate_at=3] [--differ] [--set a.b=c ...]
"""

import os
import signal
import time

from absl import flags

from rolegen_jax import commands, distributed
from rolegen_jax import compile as compile_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_TERMINATE_AT = flags.DEFINE_integer('terminate_at', -1, 'The last process sends itself SIGTERM before this step; steps are slow then.')
_SET = flags.DEFINE_multi_string('set', [], 'As rolegen_jax.train has it.')
_DIFFER = flags.DEFINE_bool('differ', False, 'Only agree on a config, and the last process has another one.')

STEPS = 16
SETTINGS = (
    'world.users=200', 'world.items=64', 'world.categories=8', f'warmup.steps={STEPS}', 'warmup.batch=8', 'warmup.save_every=100', 'mesh.fsdp=2',
    'backbone.temporal.layers=1', 'backbone.temporal.kv_heads=4',
)


def last() -> bool:
  return int(os.environ.get(distributed.PROCESS_ID, 0)) == int(os.environ[distributed.PROCESSES]) - 1


def disturb(batches_class) -> None:
  hand_out, number = batches_class.__next__, 0

  def slow(self):
    nonlocal number
    if number == _TERMINATE_AT.value and last():
      os.kill(os.getpid(), signal.SIGTERM)
    number += 1
    time.sleep(0.4)
    return hand_out(self)

  batches_class.__next__ = slow


def main() -> None:
  if _DIFFER.value:  # before anything heavy is imported
    distributed.agree(dict(code='same', config='b' if last() else 'a'))
    return
  from rolegen_jax.data.pipeline import Batches
  from rolegen_jax.stages import Run
  from tests import tiny

  # As tests/conftest.py: compile fast, run slowly.
  compile_lib.OPTIONS['cpu'] = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  if _TERMINATE_AT.value >= 0:
    disturb(Batches)
  Run(tiny.config(*SETTINGS, *_SET.value), _WORKDIR.value).backbone


if __name__ == '__main__':
  commands.run(main)
