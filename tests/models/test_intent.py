import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.models import functional
from rolegen_jax.models import intent as lib
from tests import tiny

GRAPHDEF = functional.abstract(lambda rngs: lib.Intent(tiny.CODES, tiny.LEVELS))[0]
PARAMS = tiny.random_params(lambda rngs: lib.Intent(tiny.CODES, tiny.LEVELS))
N, EVENTS, KEEP, RETRIEVED = 3, 5, 2, 3


def evidence(seed: int = 0) -> lib.Evidence:
  rng = np.random.default_rng(seed)
  draw = lambda high, *shape: rng.integers(0, high, (N, EVENTS, *shape)).astype(np.int32)
  weight, shift = rng.random((2, N, EVENTS, KEEP)).astype(np.float32)
  present = rng.random((N, EVENTS)) < 0.7
  retrieved = draw(12, RETRIEVED), rng.random((N, EVENTS, RETRIEVED)).astype(np.float32)
  return lib.Evidence(
    draw(tiny.CODES, KEEP),
    weight,
    shift - 0.5,
    *retrieved,
    draw(12),
    draw(40 * tiny.DAY),
    draw(6),
    present,
    draw(tiny.CODES),
    draw(9) - 1,
    np.full(N, -1, np.int32),
  )


def run(e: lib.Evidence) -> np.ndarray:
  return np.array(functional.bind(GRAPHDEF, PARAMS)(jax.tree.map(jnp.asarray, e)))


def faded_by_hand(e: lib.Evidence, n: int, i: int) -> np.ndarray:
  by = lambda age, scale: np.exp(-age / np.array(scale))
  return np.concatenate(
    [by(e.age[n, i] / tiny.DAY, lib.FADE_DAYS), by(e.present[n, i + 1 :].sum(), lib.FADE_EVENTS)]
  )


@pytest.mark.parametrize('seed', range(5))
def test_the_equation_term_by_term(seed):
  e = evidence(seed)
  mix = lambda name: np.exp(PARAMS[name]) / np.exp(PARAMS[name]).sum()
  opens, draws, satisfies = np.exp(PARAMS['strength'])
  excited = np.tile(lib.BASE / tiny.CODES * np.exp(PARAMS['base']), (N, 1)).astype(np.float64)
  damped = np.zeros((N, tiny.CODES))
  for n, i in np.argwhere(e.present):
    faded = faded_by_hand(e, n, i)
    gain = np.exp(
      PARAMS['event_gain'][e.event[n, i]]
      + (PARAMS['role_gain'][e.role[n, i]] if e.role[n, i] >= 0 else 0.0)
    )
    for code, weight, shift in zip(e.code[n, i], e.weight[n, i], e.shift[n, i]):
      excited[n, code] += mix('fade') @ faded * gain * (weight + opens * max(shift, 0))
      damped[n, code] += mix('damp_fade') @ faded * draws * max(-shift, 0)
    if e.event[n, i] == tiny.PURCHASE:
      damped[n, e.own[n, i]] += mix('damp_fade') @ faded * satisfies
  expected = np.exp(PARAMS['focus'] * (np.log(excited) - damped))
  np.testing.assert_allclose(run(e), np.log(expected / expected.sum(1, keepdims=True)), atol=1e-5)


def test_removing_an_event_equals_never_having_seen_it():
  e = evidence(1)
  removed = e._replace(present=e.present & (np.arange(EVENTS) != 2))
  shorter = lib.Evidence(*(np.delete(x, 2, axis=1) for x in e[:-1]), e.intent)
  np.testing.assert_allclose(run(removed), run(shorter), atol=1e-6)


def test_without_any_event_the_base_speaks():
  e = evidence()._replace(present=np.zeros((N, EVENTS), bool))
  np.testing.assert_allclose(
    run(e), np.tile(jax.nn.log_softmax(PARAMS['focus'] * PARAMS['base']), (N, 1)), atol=1e-6
  )


def test_another_intent_and_the_likeliest_change_places():
  e = evidence(2)
  plain = run(e)
  first, last = plain.argmax(1), plain.argmin(1)
  done = run(e._replace(intent=np.where(np.arange(N) == 1, last, -1).astype(np.int32)))
  np.testing.assert_array_equal(done[[0, 2]], plain[[0, 2]])
  expected = plain[1].copy()
  expected[[first[1], last[1]]] = plain[1, [last[1], first[1]]]
  np.testing.assert_array_equal(done[1], expected)
  np.testing.assert_array_equal(run(e._replace(intent=first.astype(np.int32))), plain)


def retrieved_by_hand(e: lib.Evidence, n: int) -> dict[int, float]:
  """What each item is called for with."""
  mix, retrieved = np.exp(PARAMS['counted_fade']) / np.exp(PARAMS['counted_fade']).sum(), {}
  for i in np.flatnonzero(e.present[n]):
    gain = np.exp(
      PARAMS['event_gain'][e.event[n, i]]
      + (PARAMS['role_gain'][e.role[n, i]] if e.role[n, i] >= 0 else 0.0)
    )
    self_transition = float(np.exp(PARAMS['self_transition'][0]))
    for item, share in zip((e.item[n, i], *e.next_item[n, i]), (self_transition, *e.share[n, i])):
      retrieved[int(item)] = (
        retrieved.get(int(item), 0.0) + mix @ faded_by_hand(e, n, i) * gain * share
      )
  return retrieved


@pytest.mark.parametrize('seed', range(3))
def test_calls_for_items_code_by_code(seed):
  """Items 0 .. 11 share codes: evidence for a code is that of all items below it."""
  e, codes = (
    evidence(seed),
    np.stack([np.arange(12) // 6, np.arange(12) // 3 % 2, np.arange(12) % 3], axis=1).astype(
      np.int32
    ),
  )
  equation = functional.bind(GRAPHDEF, PARAMS)
  retrieved = equation.retrieve(jax.tree.map(jnp.asarray, e), 20, codes)
  prefixes = [codes[5], codes[8]]
  for level in (1, 2):
    below = jnp.stack(
      [(retrieved.codes[..., :level] == prefix[:level]).all(-1) for prefix in prefixes], axis=1
    )
    found = np.array(equation.next_code(level, retrieved, below))
    for n in range(N):
      retrieved = retrieved_by_hand(e, n)
      for p, prefix in enumerate(prefixes):
        total = np.zeros(tiny.CODES)
        for item, value in retrieved.items():
          if (codes[item, :level] == prefix[:level]).all():
            total[codes[item, level]] += value
        expected = PARAMS['counted_focus'][level - 1] * np.log(
          np.exp(PARAMS['counted_prior'][level - 1]) + total
        )
        np.testing.assert_allclose(found[n, p], expected, atol=1e-5)


@pytest.mark.parametrize('keep', (4, 20))
def test_items_called_for_most(keep):
  e = evidence(4)
  codes = np.arange(36).reshape(12, 3)
  found = jax.device_get(
    functional.bind(GRAPHDEF, PARAMS).retrieve(jax.tree.map(jnp.asarray, e), keep, codes)
  )
  assert found.item.shape == found.weight.shape == (N, keep)
  for n in range(N):
    retrieved = sorted(((v, item) for item, v in retrieved_by_hand(e, n).items()), reverse=True)[
      :keep
    ]
    assert found.item[n].tolist() == [item for _, item in retrieved] + [-1] * (
      keep - len(retrieved)
    )
    np.testing.assert_allclose(
      found.weight[n], [v for v, _ in retrieved] + [0.0] * (keep - len(retrieved)), rtol=1e-5
    )
    np.testing.assert_array_equal(
      found.codes[n, : len(retrieved)], codes[[item for _, item in retrieved]]
    )
