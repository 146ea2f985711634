"""Train the warmup at the smallest size: data, semantic IDs and the backbone.

  python tests/launch/tiny_train.py --workdir=DIR [--signal=SIGTERM] [--differ] [--observe]
      [--set a.b=c ...]

It compiles fast and stops before the other stages.
"""

import os
import signal
import time

from absl import flags
from compile_fast import compile_fast

from rolegen_jax.cli import entry
from rolegen_jax.runtime import distributed

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_SIGNAL = flags.DEFINE_string(
  'signal', '', 'Signal that the last process sends to itself before its third step.'
)
_SET = flags.DEFINE_multi_string('set', [], 'Replace one field of the config.')
_DIFFER = flags.DEFINE_bool(
  'differ', False, 'Only compare configs; that of the last process is different.'
)
_OBSERVE = flags.DEFINE_bool(
  'observe', False, 'Trace two steps on the last process, and report to W&B.'
)

SIGNAL_STEP = 2
STEP_S = 0.4  # long enough that a signal arrives between two steps
STEPS = 16
SETTINGS = (
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  f'warmup.steps={STEPS}',
  'warmup.batch=8',
  'warmup.save_every=100',
  'mesh.fsdp=2',
  'backbone.temporal.layers=1',
  'backbone.temporal.kv_heads=4',
  'reasoner.transformer.kv_heads=4',
)


def is_last_process() -> bool:
  process = int(os.environ.get(distributed.PROCESS_ID, 0))
  return process == int(os.environ[distributed.PROCESSES]) - 1


def send_signal_while_training(batches_class: type, number: signal.Signals) -> None:
  """Make each step slow, and send the signal before one of them."""
  next_batch, n_batches = batches_class.__next__, 0

  def slow_next(self):
    nonlocal n_batches
    if n_batches == SIGNAL_STEP and is_last_process():
      os.kill(os.getpid(), number)
    n_batches += 1
    time.sleep(STEP_S)
    return next_batch(self)

  batches_class.__next__ = slow_next


def main() -> None:
  if _DIFFER.value:
    distributed.agree(dict(code='same', config='b' if is_last_process() else 'a'))
    return
  # After the comparison, which needs none of these heavy modules.
  from rolegen_jax.data.loader import Batches
  from rolegen_jax.pipeline import stages
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.training import profiling, trackers
  from rolegen_jax.training.fit import Observers
  from tests import tiny

  compile_fast()
  if _SIGNAL.value:
    send_signal_while_training(Batches, signal.Signals[_SIGNAL.value])
  config, observers = tiny.config(*SETTINGS, *_SET.value), Observers()
  if _OBSERVE.value:
    last = str(int(os.environ[distributed.PROCESSES]) - 1)
    profile = profiling.parse(['warmup:4-5'], [last], config, _WORKDIR.value)
    observers = Observers(profile, trackers.Tracking('wandb', config, _WORKDIR.value))
  run = open_run(config, _WORKDIR.value, observers=observers)
  stages.warm_up(*prepare_inputs(run))


if __name__ == '__main__':
  entry.run(main)
