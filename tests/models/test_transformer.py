import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import TransformerConfig
from rolegen_jax.models import functional
from rolegen_jax.models.transformer import REMAT, Transformer, frequencies, rope
from rolegen_jax.runtime.compile import jit
from tests import tiny

CONFIG = TransformerConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp=48)
B, T = 3, 7


def make(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  return lambda rngs: Transformer(config, rngs=rngs)


@pytest.fixture(scope='module')
def params():
  return tiny.random_params(make())


def inputs(seed: int = 0):
  """x, positions and a causal mask in which the first two positions of row 0 are padding."""
  x = jax.random.normal(jax.random.key(seed), (B, T, CONFIG.width))
  valid = np.arange(T) >= np.array([[2], [0], [0]])
  return (
    x,
    jnp.broadcast_to(jnp.arange(T), (B, T)),
    jnp.asarray(np.tril(np.ones((T, T), bool)) & valid[:, None]),
    jnp.asarray(valid),
  )


def runner(**changes):
  graphdef = functional.abstract(make(**changes))[0]
  return lambda params, x, positions, mask: functional.bind(graphdef, params)(x, positions, mask)


@pytest.fixture(scope='module')
def full():
  return jit(runner())


@pytest.mark.parametrize('parts', [(4,), (2, 2)])
def test_cached_decoding_equals_the_full_pass(params, full, parts):
  """Two chains go on from one prompt, of which they share two positions; it is read at once or in two parts."""
  x, positions, mask, valid = inputs()
  other = x.at[:, 4:].set(inputs(1)[0][:, 4:])
  graphdef = functional.abstract(make())[0]

  @jit
  def decode(params, x, other):
    model = functional.bind(graphdef, params)
    prompt, hidden, start = None, [], 0
    for end in np.cumsum(parts):
      at = slice(start, end)
      part, more = model.prefill(x[:, at], positions[:, at], mask[:, at, :end], prompt)
      prompt = (
        more
        if prompt is None
        else jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), prompt, more)
      )
      hidden, start = hidden + [jnp.stack([part, part], axis=1)], end
    shared = tuple(c[:, :, :2] for c in prompt)
    cache = tuple(
      jnp.pad(jnp.stack([c[:, :, 2:]] * 2, axis=2), ((0, 0),) * 3 + ((0, T - 4), (0, 0), (0, 0)))
      for c in prompt
    )
    for slot in range(2, T - 2):
      sees = (
        valid[:, :2],
        jnp.broadcast_to((valid[:, 2:] & (jnp.arange(T - 2) <= slot))[:, None], (B, 2, T - 2)),
      )
      step, cache = model.step(
        jnp.stack([x[:, 2 + slot], other[:, 2 + slot]], axis=1), 2 + slot, shared, cache, slot, sees
      )
      hidden.append(step[:, :, None])
    return jnp.concatenate(hidden, axis=2)

  found = np.array(decode(params, x, other))
  for chain, given in enumerate((x, other)):
    np.testing.assert_allclose(
      found[:, chain][valid], np.array(full(params, given, positions, mask))[valid], atol=2e-6
    )


def test_later_positions_change_nothing_before_them(params, full):
  x, positions, mask, valid = inputs()
  before = np.array(full(params, x, positions, mask))
  after = np.array(full(params, x.at[:, 4:].add(1.0), positions, mask))
  np.testing.assert_array_equal(before[:, :4][valid[:, :4]], after[:, :4][valid[:, :4]])
  assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max() > 0


def test_padding_is_seen_by_nobody(params, full):
  x, positions, mask, valid = inputs()
  changed = jnp.where(valid[..., None], x, x + 3.0)
  np.testing.assert_array_equal(
    np.array(full(params, x, positions, mask))[valid],
    np.array(full(params, changed, positions, mask))[valid],
  )


def test_rotary_scores_depend_on_the_distance_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  turns = frequencies(4, 100.0)
  score = lambda at_q, at_k: float(
    jnp.sum(rope(q, jnp.array([[at_q]]), turns) * rope(k, jnp.array([[at_k]]), turns))
  )
  assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-5)
  assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
  np.testing.assert_array_equal(rope(q, jnp.array([[0]]), turns), q)


@pytest.fixture(scope='module')
def gradients(params):
  x, positions, mask, _ = inputs()

  def of(**changes):
    run = runner(**changes)
    return jit(
      jax.grad(
        lambda p: jnp.mean(
          jnp.square(run(p, x, positions, mask).astype(jnp.float32)) * jnp.arange(32)
        )
      )
    )(params)

  return of


@pytest.mark.parametrize('remat', [name for name in REMAT if name != 'none'])
def test_rematerialisation_keeps_the_gradient(gradients, remat):
  plain, again = gradients(), gradients(remat=remat)
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)


def test_bfloat16_computes_near_float32_with_float32_gradients(params, full, gradients):
  x, positions, mask, valid = inputs()
  exact = np.array(full(params, x, positions, mask))[valid]
  half = jit(runner(dtype='bfloat16'))(params, x, positions, mask)
  assert half.dtype == jnp.bfloat16
  assert np.abs(np.array(half, np.float32)[valid] - exact).max() < 0.1 < np.abs(exact).max()
  assert {g.dtype for g in jax.tree.leaves(gradients(dtype='bfloat16'))} == {jnp.dtype('float32')}
