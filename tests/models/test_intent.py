import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import functional, intent as lib
from tests import tiny

GRAPHDEF = functional.abstract(lambda rngs: lib.Intent(tiny.CODES))[0]
PARAMS = tiny.random_params(lambda rngs: lib.Intent(tiny.CODES))
N, EVENTS, KEEP = 3, 5, 2


def evidence(seed: int = 0) -> lib.Evidence:
  rng = np.random.default_rng(seed)
  draw = lambda high, *shape: rng.integers(0, high, (N, EVENTS, *shape)).astype(np.int32)
  weight = rng.random((N, EVENTS, KEEP)).astype(np.float32)
  return lib.Evidence(draw(tiny.CODES, KEEP), weight, draw(40 * tiny.DAY), draw(6), rng.random((N, EVENTS)) < 0.7, draw(9) - 1)


def run(e: lib.Evidence) -> np.ndarray:
  return np.array(functional.bind(GRAPHDEF, PARAMS)(jax.tree.map(jnp.asarray, e)))


@pytest.mark.parametrize('seed', range(5))
def test_the_equation_term_by_term(seed):
  e = evidence(seed)
  mix = np.exp(PARAMS['fade']) / np.exp(PARAMS['fade']).sum()
  expected = np.tile(lib.BASE / tiny.CODES * np.exp(PARAMS['base']), (N, 1)).astype(np.float64)
  for n, i, r in np.ndindex(N, EVENTS, KEEP):
    if e.present[n, i]:
      fade = mix @ np.exp(-e.age[n, i] / tiny.DAY / np.array(lib.FADE_DAYS))
      gain = np.exp(PARAMS['event_gain'][e.event[n, i]] + (PARAMS['role_gain'][e.role[n, i]] if e.role[n, i] >= 0 else 0.0))
      expected[n, e.code[n, i, r]] += fade * gain * e.weight[n, i, r]
  expected = expected ** PARAMS['focus']
  np.testing.assert_allclose(run(e), np.log(expected / expected.sum(1, keepdims=True)), atol=1e-5)


def test_removing_an_event_equals_never_having_seen_it():
  e = evidence(1)
  removed = e._replace(present=e.present & (np.arange(EVENTS) != 2))
  shorter = jax.tree.map(lambda x: np.delete(x, 2, axis=1), e)
  np.testing.assert_allclose(run(removed), run(shorter), atol=1e-6)


def test_without_any_event_the_base_speaks():
  e = evidence()._replace(present=np.zeros((N, EVENTS), bool))
  np.testing.assert_allclose(run(e), np.tile(jax.nn.log_softmax(PARAMS['focus'] * PARAMS['base']), (N, 1)), atol=1e-6)
