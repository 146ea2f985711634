import pytest

from rolegen_jax.perf.aot.hlo import Module, groups, loops
from tests.perf.aot import hlo

TEXT = """HloModule jit_loop_step, is_scheduled=true, replica_count=1, num_partitions=8

%fused (p: f32[4]) -> f32[8] {
  ROOT %all-gather.1 = f32[8]{0} all-gather(%p), dimensions={0}, replica_groups=[2,4]<=[4,2]T(1,0)
}

%layers (p: f32[4]) -> f32[4] {
  %x = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused
}

%c (p: f32[4]) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%decode (p: f32[4]) -> f32[4] {
  %while.1 = f32[4]{0} while(%p), condition=%c, body=%layers, \
metadata={op_name="jit(joint_train_step)/rollout/while/body/closed_call/while"}
}

%train (p: f32[4]) -> f32[4] {
  %all-reduce.1 = f32[4]{0} all-reduce-start(%p), to_apply=%add, replica_groups={{0,1},{2,3}}, \
metadata={op_name="jit(joint_train_step)/reflection/transpose(jvp())/while/body/dot"}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %while.2 = f32[4]{0} while(%p), condition=%other, body=%decode, \
metadata={op_name="jit(joint_train_step)/rollout/while"}, \
backend_config={"known_trip_count":{"n":"3"}}
  %while.3 = f32[4]{0} while(%p), condition=%other, body=%train, \
metadata={op_name="jit(joint_train_step)/reflection/while"}
}
"""


def test_finds_collectives_through_calls():
  assert [(loop.scope, loop.trips, loop.collectives) for loop in loops(TEXT)] == [
    ('jit(joint_train_step)/rollout/while/body/closed_call/while', 5, ['all-gather']),
    ('jit(joint_train_step)/rollout/while', 3, ['all-gather']),
    ('jit(joint_train_step)/reflection/while', None, ['all-reduce']),
  ]
  with pytest.raises(AssertionError, match='collectives in the loops of the rollout'):
    hlo.assert_rollout_loops_are_local(TEXT)
  hlo.assert_rollout_loops_are_local(TEXT.replace('all-gather(', 'add('))


def test_counts_bytes_by_phase_and_iteration():
  gather, reduce = Module(TEXT).collectives(domain=2)
  assert (gather.kind, gather.phase, gather.in_loop, gather.times, gather.wide) == (
    'all-gather',
    'rollout',
    True,
    15,
    True,
  )
  assert gather.sent == 15 * 32 * 3 / 4
  assert (reduce.kind, reduce.phase, reduce.times, reduce.wide, reduce.sent) == (
    'all-reduce',
    'reflection',
    1,
    False,
    16.0,
  )


def test_a_collective_that_names_no_group_is_among_all_devices():
  everywhere = TEXT.replace('replica_groups={{0,1},{2,3}}', 'replica_groups={}')
  _, reduce = Module(everywhere).collectives(domain=2)
  assert (reduce.wide, reduce.sent) == (True, 2 * 16 * 7 / 8)


def test_reads_both_spellings_of_groups():
  assert groups('replica_groups=[2,4]<=[4,2]T(1,0)') == [[0, 2, 4, 6], [1, 3, 5, 7]]
  assert groups('replica_groups={{0,1},{2,3}}, x') == [[0, 1], [2, 3]]


BETWEEN_SLICES = """HloModule jit_step, is_scheduled=true, num_partitions=16

%layers (p: f32[4]) -> f32[4] {
  %send.1 = (bf16[192,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %t), channel_id=90, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.341_0",\
_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{TARGET}x{0:15}",\
_xla_megascale_transfer_type="TRANSFER"}
  %send.2 = (f32[8]{0}, u32[], token[]) send(%x, %t), channel_id=1, is_host_transfer=true
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %while.1 = f32[4]{0} while(%p), condition=%c, body=%layers, \
metadata={op_name="jit(joint_train_step)/reflection/while"}, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


@pytest.mark.parametrize(
  'transfer, target, kind, parts',
  [
    ('ALL_REDUCE', '{1,2,3,4}', 'all-reduce', 2 * 3 / 4),
    ('ALL_REDUCE', '{1,3:5}', 'all-reduce', 2 * 3 / 4),
    ('ALL_GATHER', '{1,2,3,4}', 'all-gather', 3),
    ('REDUCE_SCATTER', '{1,2,3,4}', 'reduce-scatter', 3 / 4),
    ('ONE_TO_ONE', '', 'collective-permute', 1),
    ('ALL_TO_ALL', '', 'all-to-all', 1 / 2),
  ],
)
def test_what_goes_to_other_slices_is_told_apart(transfer, target, kind, parts):
  text = BETWEEN_SLICES.replace('{TARGET}', target).replace('TRANSFER', transfer)
  (found,) = Module(text).collectives(domain=16)
  assert (found.kind, found.phase, found.in_loop, found.wide) == (kind, 'reflection', True, True)
  assert found.sent == 3 * parts * 192 * 8 * 128 * 2
  assert [loop.collectives for loop in loops(text)] == [[kind]]
