"""Every kernel against XLA's attention.

Splash runs in interpret mode here, and is compiled by the real TPU compiler where it is installed.
"""

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

splash = functools.partial(lib.splash, interpret=True)
xla = functools.partial(lib.attend, kernel='xla')


def inputs():
  """(q, k, v, weights of the result), fp32."""
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.normal(size=(B, T, n, X)), jnp.float32) for n in (H, K, K, H))


def segments() -> jax.Array:
  """Three segments a row, with different starts."""
  first = np.arange(T) >= np.array([[0], [30], [60], [149]])
  return jnp.asarray(first.astype(np.int32) + (np.arange(T) >= 120))


def segment_mask() -> lib.SegmentMask:
  """Causal, but positions from 100 on do not see 60 .. 99."""
  pattern = np.tri(T, dtype=bool)
  pattern[100:, 60:100] = False
  return lib.SegmentMask(pattern, segments(), segments())


def assert_same(attend, reference, queries: int = T):
  """Compare values and all three gradients, with the last `queries` positions as queries."""
  q, k, v, weight = inputs()
  q, weight = q[:, -queries:], weight[:, -queries:]

  def run(attend):
    def value(q, k, v):
      attended = attend(q, k, v)
      return jnp.sum(attended * weight), attended

    return jax.tree.leaves(jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v))

  for actual, expected in zip(run(attend), run(reference)):
    largest = max(float(jnp.abs(expected).max()), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * largest)


def test_grouped_query_attention_equals_a_plain_softmax():
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8)))
  mask, bias = rng.random((2, 3, 5)) < 0.7, rng.normal(size=(2, 4, 3, 5))
  mask[..., 0] = True
  # Query heads 0 and 1 share key head 0.
  wide_k, wide_v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
  logits = np.einsum('bthx,bshx->bhts', q, wide_k) / 8**0.5 + bias
  weights = np.exp(np.where(mask[:, None], logits, -np.inf))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhts,bshx->bthx', weights, wide_v)
  attended = lib.attend(
    *(jnp.asarray(a, jnp.float32) for a in (q, k, v)),
    jnp.asarray(mask),
    jnp.asarray(bias, jnp.float32),
  )
  np.testing.assert_allclose(attended, expected, atol=1e-5)


def test_a_pattern_and_segments_as_one_mask():
  segment = jnp.array([[0, 1, 1]])
  mask = lib.causal(segment)
  dense = [[True, False, False], [False, True, False], [False, True, True]]
  assert mask.dense().tolist() == [dense]
  mask = lib.SegmentMask(mask.pattern[1:], segment[:, 1:], segment)
  assert mask.dense().tolist() == [dense[1:]]


@pytest.mark.parametrize('forks', [0, 1, 3])
def test_a_trunk_and_its_branches_equal_one_mask_over_all(forks):
  branch, shared = 30, 40
  trunk = T - branch * forks
  pattern = np.zeros((T, T), bool)
  pattern[:trunk, :trunk] = np.tri(trunk)
  for start in range(trunk, T, branch):
    rows = slice(start, start + branch)
    pattern[rows, :shared], pattern[rows, rows] = True, np.tri(branch)
  tri = functools.partial(np.tri, dtype=bool)
  branched = lib.BranchedMask(tri(trunk), tri(branch), shared, segments())
  whole = lib.SegmentMask(pattern, segments(), segments())
  assert_same(
    functools.partial(lib.attend, mask=branched), functools.partial(lib.attend, mask=whole)
  )


def test_chains_over_shared_and_own_slots_equal_one_memory_each():
  rng, (b, w, p, s) = np.random.default_rng(1), (3, 4, 7, 5)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  q = draw(b, w, H, X)
  shared = draw(b, p, K, X), draw(b, p, K, X)
  own = draw(b, w, s, K, X), draw(b, w, s, K, X)
  visible = lib.Visible(
    shared=jnp.asarray(rng.random((b, p)) < 0.7),
    own=jnp.asarray(rng.random((b, w, s)) < 0.7).at[..., 0].set(True),
  )
  attended = lib.attend_shared(q, shared, own, visible)
  for chain in range(w):
    k, v = (jnp.concatenate([x, y[:, chain]], axis=1) for x, y in zip(shared, own))
    mask = jnp.concatenate([visible.shared, visible.own[:, chain]], axis=1)[:, None]
    alone = lib.attend(q[:, chain, None], k, v, mask)[:, 0]
    np.testing.assert_allclose(attended[:, chain], alone, atol=2e-6)


@pytest.mark.parametrize(
  'queries',
  # 128: queries need no padding, memory does.
  [pytest.param(T, marks=pytest.mark.slow), pytest.param(128, marks=pytest.mark.slow), 20],
)
def test_splash_equals_xla(queries):
  pattern, query_segment, segment = segment_mask()
  mask = lib.SegmentMask(pattern[-queries:], query_segment[:, -queries:], segment)
  assert_same(functools.partial(splash, mask=mask), functools.partial(xla, mask=mask), queries)


@pytest.mark.parametrize(
  'table',
  [
    pytest.param(sharding.TRAIN, id='train'),
    pytest.param(sharding.ROLLOUTS['tensor'], id='rollout', marks=pytest.mark.slow),
  ],
)
def test_splash_equals_xla_on_eight_devices(table):
  """Rows over four devices, heads over two: each device runs the kernel for its own."""
  mesh, mask = sharding.make_mesh(MeshConfig(2, 2, 2), jax.devices()), segment_mask()
  with jax.set_mesh(mesh), sharding.layout(table):
    assert_same(functools.partial(splash, mask=mask), functools.partial(xla, mask=mask))


@pytest.mark.parametrize(
  'backend, mask, changes, expected',
  [
    ('tpu', 'segment', {}, 'splash'),
    ('gpu', 'segment', {}, 'cudnn'),
    ('cpu', 'segment', {}, 'xla'),
    ('tpu', 'dense', {}, 'xla'),
    ('gpu', 'dense', {}, 'cudnn'),
    ('tpu', 'segment', dict(dtype=jnp.float32), 'xla'),
    ('gpu', 'segment', dict(dtype=jnp.float32), 'xla'),
    ('tpu', 'segment', dict(queries=4), 'xla'),
    ('gpu', 'dense', dict(queries=1), 'xla'),
    ('tpu', 'segment', dict(width=16), 'xla'),
    ('gpu', 'segment', dict(width=20), 'xla'),
    ('gpu', 'segment', dict(width=256), 'xla'),
    ('tpu', 'segment', dict(bias=True), 'xla'),
    ('gpu', 'segment', dict(bias=True), 'xla'),
  ],
)
def test_the_kernel_fits_platform_shapes_and_mask(backend, mask, changes, expected):
  t, width = changes.get('queries', T), changes.get('width', X)
  q = jax.ShapeDtypeStruct((B, t, H, width), changes.get('dtype', jnp.bfloat16))
  masks = dict(segment=lib.causal(jnp.zeros((B, t), jnp.int32)), dense=jnp.ones((B, t, t), bool))
  bias = jnp.zeros((B, H, t, t)) if 'bias' in changes else None
  assert lib.kernel_for(backend, q, masks[mask], bias) == expected


def test_the_platform_is_that_of_the_mesh():
  assert lib.platform() == jax.default_backend()
  with jax.set_mesh(sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])):
    assert lib.platform() == 'cpu'


def output_of(module: str) -> list[str]:
  """The lines that a module prints in a process of its own."""
  command = [sys.executable, '-m', module]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, the TPU compiler, is not installed (requirements-test.txt)',
)
def test_the_tpu_compiler_takes_splash_under_a_mesh():
  """Forward and backward of a layer for four chips: kernels where they are asked for, else none."""
  kernels = dict(line.split() for line in output_of('tests.models.compile_attention'))
  # The forward pass, gradients by queries, and gradients by keys and values.
  assert int(kernels['auto']) >= 3 and int(kernels['xla']) == 0


@pytest.mark.skipif(not glob.glob('/dev/nvidia[0-9]*'), reason='no GPU')
def test_cudnn_equals_xla():
  for line in output_of('tests.models.attention_on_gpu'):
    difference, largest = map(float, line.split())
    assert difference < 0.03 * largest, 'beyond the rounding of bfloat16'
