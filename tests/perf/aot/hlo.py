"""What compiled programs must keep to."""

import re

from rolegen_jax.perf.aot.hlo import loops


def assert_rollout_loops_are_local(text: str):
  """Assert that no loop of the rollout has a collective.

  And that the text is the right one: it has such loops, and collectives elsewhere.
  """
  found = loops(text)
  rollout = {loop.scope: loop.collectives for loop in found if '/rollout/' in loop.scope}
  assert any(re.search('/rollout/while/body/.*while$', name) for name in rollout), (
    'no loop over layers inside the decoding loop'
  )
  assert not any(rollout.values()), (
    f'collectives in the loops of the rollout: { {k: v for k, v in rollout.items() if v} }'
  )
  assert any(loop.collectives for loop in found if '/reflection/' in loop.scope), (
    'no collective in a training loop: nothing was sharded?'
  )
