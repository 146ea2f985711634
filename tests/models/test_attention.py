"""Every kernel against XLA's attention. Splash runs in interpret mode here, and is compiled by the real TPU compiler where it is installed."""

import functools
import glob
import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax import sharding
from rolegen_jax.config import MeshConfig
from rolegen_jax.models import attention as lib
from rolegen_jax.runtime.compile import jit

ROOT = pathlib.Path(__file__).parents[2]
B, T, H, K, X = 4, 150, 4, 2, 128  # T is no multiple of 128


def inputs(dtype=jnp.float32):
  """(q, k, v, what the result is weighted with)."""
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.normal(size=(B, T, heads, X)), dtype) for heads in (H, K, K, H))


def seen() -> lib.Seen:
  """Causal, and two branches that see what is before them but not each other; three segments a row."""
  pattern = np.tri(T, dtype=bool)
  pattern[100:, 60:100] = False
  segment = jnp.asarray(
    (np.arange(T) >= np.array([[0], [30], [60], [149]])).astype(np.int32) + (np.arange(T) >= 120)
  )
  return lib.Seen(pattern, segment, segment)


def parity(kernel, reference, queries: int = T):
  """(largest difference, largest number) of values and of the three gradients, with the last `queries` positions as queries."""
  q, k, v, weight = inputs()
  q, weight = q[:, -queries:], weight[:, -queries:]

  def run(attend):
    value = lambda q, k, v: (jnp.sum(attend(q, k, v) * weight), attend(q, k, v))
    return jax.tree.leaves(jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v))

  return [
    (float(jnp.abs(a - b).max()), float(jnp.abs(a).max()))
    for a, b in zip(run(reference), run(kernel))
  ]


def assert_same(found):
  for difference, largest in found:
    assert difference < 2e-5 * max(largest, 1.0)


splash = functools.partial(lib.splash, interpret=True)


def test_grouped_query_attention_against_plain_softmax():
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=(2, 3, 4, 8)),
    rng.normal(size=(2, 5, 2, 8)),
    rng.normal(size=(2, 5, 2, 8)),
  )
  mask, bias = rng.random((2, 3, 5)) < 0.7, rng.normal(size=(2, 4, 3, 5))
  mask[..., 0] = True
  wide_k, wide_v = (
    np.repeat(k, 2, axis=2),
    np.repeat(v, 2, axis=2),
  )  # query heads 0 and 1 share key head 0
  logits = np.where(mask[:, None], np.einsum('bthx,bshx->bhts', q, wide_k) / 8**0.5 + bias, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  expected = np.einsum('bhts,bshx->bthx', weights / weights.sum(-1, keepdims=True), wide_v)
  found = lib.attend(
    *(jnp.asarray(a, jnp.float32) for a in (q, k, v)),
    jnp.asarray(mask),
    jnp.asarray(bias, jnp.float32),
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_pattern_and_segments_as_one_mask():
  segment = jnp.array([[0, 1, 1]])
  mask = lib.causal(segment)
  assert mask.dense().tolist() == [
    [[True, False, False], [False, True, False], [False, True, True]]
  ]
  mask = lib.Seen(mask.pattern[1:], segment[:, 1:], segment)
  assert mask.dense().tolist() == [[[False, True, False], [False, True, True]]]


@pytest.mark.parametrize('forks', [0, 1, 3])
def test_a_trunk_and_its_branches_equal_one_mask_of_all(forks):
  a, z, shared = T - 30 * forks, 30, 40
  pattern = np.zeros((T, T), bool)
  pattern[:a, :a] = np.tri(a)
  for start in range(a, T, z):
    pattern[start : start + z, :shared], pattern[start : start + z, start : start + z] = (
      True,
      np.tri(z),
    )
  segment = seen().queries
  branched = lib.Branched(np.tri(a, dtype=bool), np.tri(z, dtype=bool), shared, segment)
  assert_same(
    parity(
      lambda *a: lib.attend(*a, branched),
      lambda *a: lib.attend(*a, lib.Seen(pattern, segment, segment)),
    )
  )


def test_chains_over_shared_and_own_slots_equal_one_memory_each():
  rng, (b, w, p, s) = np.random.default_rng(1), (3, 4, 7, 5)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, shared, own = (
    draw(b, w, H, X),
    (draw(b, p, K, X), draw(b, p, K, X)),
    (draw(b, w, s, K, X), draw(b, w, s, K, X)),
  )
  sees = (
    jnp.asarray(rng.random((b, p)) < 0.7),
    jnp.asarray(rng.random((b, w, s)) < 0.7).at[..., 0].set(True),
  )
  found = lib.attend_shared(q, shared, own, *sees)
  for chain in range(w):
    k, v = (jnp.concatenate([x, y[:, chain]], axis=1) for x, y in zip(shared, own))
    mask = jnp.concatenate([sees[0], sees[1][:, chain]], axis=1)[:, None]
    np.testing.assert_allclose(
      found[:, chain], lib.attend(q[:, chain, None], k, v, mask)[:, 0], atol=2e-6
    )


@pytest.mark.parametrize('queries', [T, 128, 20])  # 128: queries need no padding, memory does
def test_splash_equals_xla(queries):
  mask = lib.Seen(seen().pattern[-queries:], seen().queries[:, -queries:], seen().memory)
  assert_same(
    parity(lambda *a: splash(*a, mask), lambda *a: lib.attend(*a, mask, kernel='xla'), queries)
  )


@pytest.mark.parametrize(
  'table', [sharding.TRAIN, sharding.ROLLOUTS['tensor']], ids=['train', 'rollout']
)
def test_splash_equals_xla_on_eight_devices(table):
  """Rows over four devices, heads over two: the kernel runs on each for its own."""
  with jax.set_mesh(sharding.make_mesh(MeshConfig(2, 2, 2), jax.devices())), sharding.layout(table):
    assert_same(
      parity(lambda *a: splash(*a, seen()), lambda *a: lib.attend(*a, seen(), kernel='xla'))
    )


@pytest.mark.parametrize(
  'where, mask, changes, expected',
  [
    ('tpu', 'seen', {}, 'splash'),
    ('gpu', 'seen', {}, 'cudnn'),
    ('cpu', 'seen', {}, 'xla'),
    ('tpu', 'dense', {}, 'xla'),
    ('gpu', 'dense', {}, 'cudnn'),
    ('tpu', 'seen', dict(dtype=jnp.float32), 'xla'),
    ('gpu', 'seen', dict(dtype=jnp.float32), 'xla'),
    ('tpu', 'seen', dict(queries=4), 'xla'),
    ('gpu', 'dense', dict(queries=1), 'xla'),
    ('tpu', 'seen', dict(width=16), 'xla'),
    ('gpu', 'seen', dict(width=20), 'xla'),
    ('gpu', 'seen', dict(width=256), 'xla'),
    ('tpu', 'seen', dict(bias=True), 'xla'),
    ('gpu', 'seen', dict(bias=True), 'xla'),
  ],
)
def test_which_kernel(where, mask, changes, expected):
  t = changes.get('queries', T)
  q = jax.ShapeDtypeStruct((B, t, H, changes.get('width', X)), changes.get('dtype', jnp.bfloat16))
  given = lib.causal(jnp.zeros((B, t), jnp.int32)) if mask == 'seen' else jnp.ones((B, t, t), bool)
  assert (
    lib.kernel_for(where, q, given, jnp.zeros((B, H, t, t)) if 'bias' in changes else None)
    == expected
  )


def test_the_platform_is_that_of_the_mesh():
  assert lib.platform() == jax.default_backend()
  with jax.set_mesh(sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])):
    assert lib.platform() == 'cpu'


def elsewhere(module: str, *args: str) -> str:
  done = subprocess.run(
    [sys.executable, '-m', module, *args], cwd=ROOT, capture_output=True, text=True, timeout=580
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, the TPU compiler, is not installed (requirements-test.txt)',
)
def test_the_tpu_compiler_takes_splash_under_a_mesh():
  """Forward and backward of a layer for four chips: kernels where they are asked for, none where not."""
  calls = dict(line.split() for line in elsewhere('tests.models.compile_attention').splitlines())
  assert (
    int(calls['auto']) >= 3 and int(calls['xla']) == 0
  )  # forward, gradients by queries, by keys and values


@pytest.mark.skipif(not glob.glob('/dev/nvidia[0-9]*'), reason='no GPU')
def test_cudnn_equals_xla():
  for line in elsewhere('tests.models.attention_on_gpu').splitlines():
    difference, largest = map(float, line.split())
    assert difference < 0.03 * largest, 'beyond the rounding of bfloat16'
