import pytest

from tests.aot import hlo

TEXT = '''HloModule jit_loop_step

%fused (p: f32[4]) -> f32[8] {
  ROOT %all-gather.1 = f32[8]{0} all-gather(%p), dimensions={0}
}

%layers (p: f32[4]) -> f32[4] {
  %x = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused
}

%decode (p: f32[4]) -> f32[4] {
  %while.1 = f32[4]{0} while(%p), condition=%c, body=%layers, metadata={op_name="jit(loop_step)/rollout/while/body/closed_call/while"}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %while.2 = f32[4]{0} while(%p), condition=%c, body=%decode, metadata={op_name="jit(loop_step)/rollout/while"}
  %while.3 = f32[4]{0} while(%p), condition=%c, body=%train, metadata={op_name="jit(loop_step)/reflection/while"}
}

%train (p: f32[4]) -> f32[4] {
  %all-reduce.1 = f32[4]{0} all-reduce-start(%p), to_apply=%add
}
'''


def test_finds_collectives_through_calls():
  assert hlo.loops(TEXT) == [
      ('jit(loop_step)/rollout/while/body/closed_call/while', ['all-gather']), ('jit(loop_step)/rollout/while', ['all-gather']),
      ('jit(loop_step)/reflection/while', ['all-reduce']),
  ]
  with pytest.raises(AssertionError, match='collectives in the loops of the rollout'):
    hlo.assert_rollout_loops_are_local(TEXT)
  hlo.assert_rollout_loops_are_local(TEXT.replace('all-gather(', 'add('))
