import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import TransformerConfig
from rolegen_jax.models import functional
from rolegen_jax.models.attention import Visible
from rolegen_jax.models.layers import frequencies, rope
from rolegen_jax.models.transformer import Dropout, Transformer
from rolegen_jax.runtime.compile import jit
from tests import tiny

CONFIG = TransformerConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp=48)
B, T = 3, 7


def model_fn(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  return lambda rngs: Transformer(config, rngs=rngs)


@pytest.fixture(scope='module')
def params():
  return tiny.random_params(model_fn())


def inputs(seed: int = 0):
  """x, positions, a causal mask and what is valid: the first two positions of row 0 are padding."""
  x = jax.random.normal(jax.random.key(seed), (B, T, CONFIG.width))
  valid = np.arange(T) >= np.array([[2], [0], [0]])
  mask = np.tril(np.ones((T, T), bool)) & valid[:, None]
  return x, jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.asarray(mask), jnp.asarray(valid)


def runner(**changes):
  graphdef = functional.abstract(model_fn(**changes))[0]
  return lambda params, x, positions, mask: functional.bind(graphdef, params)(x, positions, mask)


@pytest.fixture(scope='module')
def full():
  return jit(runner())


@pytest.mark.parametrize('parts', [(4,), (2, 2)])
def test_cached_decoding_equals_the_full_pass(params, full, parts):
  """Two chains continue one prompt, of which they share two positions.

  The prompt is read at once or in two parts.
  """
  x, positions, mask, valid = inputs()
  other = x.at[:, 4:].set(inputs(1)[0][:, 4:])
  graphdef = functional.abstract(model_fn())[0]
  shared_slots, prompt_length, slots = 2, sum(parts), T - 2

  def prefill(model, x):
    """(hidden, cache) of the prompt, part by part."""
    hidden, cache, start = [], None, 0
    for end in np.cumsum(parts):
      at = slice(start, end)
      part, more = model.prefill(x[:, at], positions[:, at], mask[:, at, :end], cache)
      if cache is not None:
        more = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), cache, more)
      hidden, cache, start = [*hidden, part], more, end
    return jnp.concatenate(hidden, axis=1), cache

  def own_slots(cache):
    """Of two chains, with room for the positions to come."""
    own = jnp.stack([cache[:, :, shared_slots:]] * 2, axis=2)
    return jnp.pad(own, ((0, 0),) * 3 + ((0, T - prompt_length), (0, 0), (0, 0)))

  @jit
  def decode(params, x, other):
    model = functional.bind(graphdef, params)
    hidden, cache = prefill(model, x)
    shared = jax.tree.map(lambda c: c[:, :, :shared_slots], cache)
    cache, states = jax.tree.map(own_slots, cache), [jnp.stack([hidden, hidden], axis=1)]
    for slot in range(prompt_length - shared_slots, slots):
      position = shared_slots + slot
      own = valid[:, shared_slots:] & (jnp.arange(slots) <= slot)
      visible = Visible(valid[:, :shared_slots], jnp.broadcast_to(own[:, None], (B, 2, slots)))
      chains = jnp.stack([x[:, position], other[:, position]], axis=1)
      step, cache = model.step(chains, position, shared, cache, slot, visible)
      states.append(step[:, :, None])
    return jnp.concatenate(states, axis=2)

  decoded = np.array(decode(params, x, other))
  for chain, embedded in enumerate((x, other)):
    expected = np.array(full(params, embedded, positions, mask))[valid]
    np.testing.assert_allclose(decoded[:, chain][valid], expected, atol=2e-6)


def test_later_positions_change_nothing_before_them(params, full):
  x, positions, mask, valid = inputs()
  before = np.array(full(params, x, positions, mask))
  after = np.array(full(params, x.at[:, 4:].add(1.0), positions, mask))
  np.testing.assert_array_equal(before[:, :4][valid[:, :4]], after[:, :4][valid[:, :4]])
  assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max() > 0


def test_padding_is_seen_by_nobody(params, full):
  x, positions, mask, valid = inputs()
  changed = jnp.where(valid[..., None], x, x + 3.0)
  before, after = (np.array(full(params, a, positions, mask))[valid] for a in (x, changed))
  np.testing.assert_array_equal(before, after)


def test_rotary_scores_depend_on_the_distance_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  frequency = frequencies(4, 100.0)

  def score(q_position: int, k_position: int) -> float:
    rotated_q = rope(q, jnp.array([[q_position]]), frequency)
    return float(jnp.sum(rotated_q * rope(k, jnp.array([[k_position]]), frequency)))

  assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-5)
  assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
  np.testing.assert_array_equal(rope(q, jnp.array([[0]]), frequency), q)


def gradient(**changes):
  """The function from parameters to the gradient of some loss."""
  x, positions, mask, _ = inputs()
  run = runner(**changes)

  def loss(params):
    hidden = run(params, x, positions, mask).astype(jnp.float32)
    return jnp.mean(jnp.square(hidden) * jnp.arange(32))

  return jax.grad(loss)


@pytest.mark.parametrize('remat', ['full', pytest.param('dots', marks=pytest.mark.slow)])
def test_rematerialization_keeps_the_gradient(params, remat):
  plain, recomputed = (jit(gradient(remat=name))(params) for name in ('none', remat))
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, recomputed)


def test_bfloat16_computes_near_float32_with_float32_gradients(params, full):
  x, positions, mask, valid = inputs()
  exact = np.array(full(params, x, positions, mask))[valid]
  half = jit(runner(dtype='bfloat16'))(params, x, positions, mask)
  assert half.dtype == jnp.bfloat16
  assert np.abs(np.array(half, np.float32)[valid] - exact).max() < 0.1 < np.abs(exact).max()
  gradients = jax.eval_shape(gradient(dtype='bfloat16'), params)
  assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype('float32')}


def test_dropout_is_inside_every_layer(params, full):
  """It changes each layer's part; without a key, or at rate 0, nothing; with one it repeats."""
  x, positions, mask, _ = inputs()
  graphdef = functional.abstract(model_fn())[0]

  def dropped(rate: float, seed: int) -> jax.Array:
    drop = Dropout(rate, jax.random.key(seed))
    return functional.bind(graphdef, params)(x, positions, mask, drop)

  exact = full(params, x, positions, mask)
  np.testing.assert_allclose(dropped(0.0, 0), exact, atol=1e-5)
  np.testing.assert_array_equal(dropped(0.5, 0), dropped(0.5, 0))
  assert np.abs(dropped(0.5, 0) - dropped(0.5, 1)).max() > 1e-2
  assert np.abs(dropped(0.5, 0) - exact).max() > 1e-2
