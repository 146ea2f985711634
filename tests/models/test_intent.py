"""The structural equations against loops over their terms."""

import functools

import jax
import numpy as np
import pytest

from rolegen_jax.models import functional
from rolegen_jax.models import intent as lib
from rolegen_jax.models.evidence import FADE_DAYS, FADE_EVENTS, Evidence
from rolegen_jax.runtime.compile import jit
from tests import tiny


def intent(rngs):
  del rngs  # nothing is drawn
  return lib.Intent(tiny.CODES, tiny.LEVELS)


GRAPHDEF, PARAMS = functional.abstract(intent)[0], tiny.random_params(intent)
# Sequences, events, coarse codes and item transitions per event, and items.
N, EVENTS, COARSE, TRANSITIONS, ITEMS = 3, 5, 2, 3, 12


def evidence(seed: int = 0) -> Evidence:
  rng = np.random.default_rng(seed)

  def draw(high, *shape):
    return rng.integers(0, high, (N, EVENTS, *shape)).astype(np.int32)

  weight, shift = rng.random((2, N, EVENTS, COARSE)).astype(np.float32)
  present = rng.random((N, EVENTS)) < 0.7
  next_item = draw(ITEMS, TRANSITIONS)
  share = rng.random((N, EVENTS, TRANSITIONS)).astype(np.float32)
  return Evidence(
    code=draw(tiny.CODES, COARSE),
    weight=weight,
    shift=shift - 0.5,
    next_item=next_item,
    share=share,
    item=draw(ITEMS),
    age=draw(40 * tiny.DAY),
    event=draw(6),
    present=present,
    own_code=draw(tiny.CODES),
    role=draw(9) - 1,
    intent=np.full(N, -1, np.int32),
  )


@jit
def log_intent(params, e):
  return functional.bind(GRAPHDEF, params)(e)


def log_probs(e: Evidence) -> np.ndarray:
  return np.array(log_intent(PARAMS, e))


@functools.partial(jit, static_argnums=2)
def retrieve(params, e, keep, codes):
  return functional.bind(GRAPHDEF, params).retrieve(e, keep, codes)


@functools.partial(jit, static_argnums=1)
def next_code(params, level, retrieved, matches):
  return functional.bind(GRAPHDEF, params).next_code(level, retrieved, matches)


def mixture(name: str) -> np.ndarray:
  return np.exp(PARAMS[name]) / np.exp(PARAMS[name]).sum()


def fades(e: Evidence, n: int, i: int) -> np.ndarray:
  """The exponentials of an event's age."""
  days, events_since = e.age[n, i] / tiny.DAY, e.present[n, i + 1 :].sum()
  by_time = np.exp(-days / np.array(FADE_DAYS))
  return np.concatenate([by_time, np.exp(-events_since / np.array(FADE_EVENTS))])


def gain(e: Evidence, n: int, i: int) -> float:
  """role_gain * event_gain of an event."""
  of_role = PARAMS['role_gain'][e.role[n, i]] if e.role[n, i] >= 0 else 0.0
  return np.exp(PARAMS['event_gain'][e.event[n, i]] + of_role)


@pytest.mark.parametrize('seed', range(5))
def test_the_first_equation_term_by_term(seed):
  e = evidence(seed)
  opens, draws, satisfies = np.exp(PARAMS['strength'])
  base = lib.BASE / tiny.CODES * np.exp(PARAMS['base'])
  excited = np.tile(base, (N, 1)).astype(np.float64)
  damped = np.zeros((N, tiny.CODES))
  for n, i in np.argwhere(e.present):
    fade = mixture('fade') @ fades(e, n, i)
    damp_fade = mixture('damp_fade') @ fades(e, n, i)
    for code, weight, shift in zip(e.code[n, i], e.weight[n, i], e.shift[n, i]):
      excited[n, code] += fade * gain(e, n, i) * (weight + opens * max(shift, 0))
      damped[n, code] += damp_fade * draws * max(-shift, 0)
    if e.event[n, i] == tiny.PURCHASE:
      damped[n, e.own_code[n, i]] += damp_fade * satisfies
  expected = np.exp(PARAMS['focus'] * (np.log(excited) - damped))
  expected /= expected.sum(1, keepdims=True)
  np.testing.assert_allclose(log_probs(e), np.log(expected), atol=1e-5)


def test_removing_an_event_equals_never_having_seen_it():
  e = evidence(1)
  removed = e._replace(present=e.present & (np.arange(EVENTS) != 2))
  events = {name: x for name, x in e._asdict().items() if np.ndim(x) > 1}
  shorter = e._replace(**{name: np.delete(x, 2, axis=1) for name, x in events.items()})
  np.testing.assert_allclose(log_probs(removed), log_probs(shorter), atol=1e-6)


def test_without_any_event_the_base_decides():
  e = evidence()._replace(present=np.zeros((N, EVENTS), bool))
  expected = jax.nn.log_softmax(PARAMS['focus'] * PARAMS['base'])
  np.testing.assert_allclose(log_probs(e), np.tile(expected, (N, 1)), atol=1e-6)


def test_do_intent_lets_it_and_the_likeliest_change_places():
  e = evidence(2)
  plain = log_probs(e)
  first, last = plain.argmax(1), plain.argmin(1)
  in_one = np.where(np.arange(N) == 1, last, -1).astype(np.int32)
  done = log_probs(e._replace(intent=in_one))
  np.testing.assert_array_equal(done[[0, 2]], plain[[0, 2]])
  expected = plain[1].copy()
  expected[[first[1], last[1]]] = plain[1, [last[1], first[1]]]
  np.testing.assert_array_equal(done[1], expected)
  np.testing.assert_array_equal(log_probs(e._replace(intent=first.astype(np.int32))), plain)


def retrieved_by_loops(e: Evidence, n: int) -> dict[int, float]:
  """The weight with which each item is retrieved."""
  weights: dict[int, float] = {}
  self_transition = float(np.exp(PARAMS['self_transition'][0]))
  for i in np.flatnonzero(e.present[n]):
    fade = mixture('counted_fade') @ fades(e, n, i)
    items, shares = (e.item[n, i], *e.next_item[n, i]), (self_transition, *e.share[n, i])
    for item, share in zip(items, shares):
      weights[int(item)] = weights.get(int(item), 0.0) + fade * gain(e, n, i) * share
  return weights


def test_an_intent_starts_from_the_first_equation_and_an_item_from_both():
  e, item = evidence(1), np.arange(ITEMS)
  codes = np.stack([item // 6, item // 3 % 2, item % 3], axis=1).astype(np.int32)
  equation = functional.bind(GRAPHDEF, PARAMS)
  priors = equation.priors(e, 20, codes, levels=3)
  matches = np.ones((N, 1, 20), bool)
  intent, first = (equation.code_prior(0, priors, matches, is_item)[:, 0] for is_item in (0, 1))
  np.testing.assert_array_equal(intent, priors.intent)
  focus, prior = PARAMS['counted_focus'][0], np.exp(PARAMS['counted_prior'][0])
  for n in range(N):
    total = np.zeros(tiny.CODES)
    for i, weight in retrieved_by_loops(e, n).items():
      total[codes[i, 0]] += weight
    expected = np.asarray(priors.intent)[n] + focus * np.log(prior + total)
    np.testing.assert_allclose(first[n], expected, atol=1e-5)
  second = equation.next_code(1, priors.retrieved, matches)
  for is_item in (False, True):
    np.testing.assert_array_equal(equation.code_prior(1, priors, matches, is_item), second)


@pytest.mark.parametrize('seed', range(3))
def test_retrieved_items_as_logits_code_by_code(seed):
  """Items share codes: the logit of a code rests on all items below it."""
  e, item = evidence(seed), np.arange(ITEMS)
  codes = np.stack([item // 6, item // 3 % 2, item % 3], axis=1).astype(np.int32)
  retrieved = jax.device_get(retrieve(PARAMS, e, 20, codes))
  prefixes = [codes[5], codes[8]]
  for level in range(3):
    matches = [(retrieved.codes[..., :level] == p[:level]).all(-1) for p in prefixes]
    logits = np.array(next_code(PARAMS, level, retrieved, np.stack(matches, axis=1)))
    focus, prior = (PARAMS[f'counted_{name}'][level] for name in ('focus', 'prior'))
    for n in range(N):
      for p, prefix in enumerate(prefixes):
        total = np.zeros(tiny.CODES)
        for item, weight in retrieved_by_loops(e, n).items():
          if (codes[item, :level] == prefix[:level]).all():
            total[codes[item, level]] += weight
        expected = focus * np.log(np.exp(prior) + total)
        np.testing.assert_allclose(logits[n, p], expected, atol=1e-5)


@pytest.mark.parametrize('keep', [4, 20])
def test_the_most_strongly_retrieved_items_are_kept(keep):
  e, codes = evidence(4), np.arange(3 * ITEMS).reshape(ITEMS, 3)
  retrieved = jax.device_get(retrieve(PARAMS, e, keep, codes))
  assert retrieved.item.shape == retrieved.weight.shape == (N, keep)
  for n in range(N):
    by_weight = sorted(((w, item) for item, w in retrieved_by_loops(e, n).items()), reverse=True)
    items, weights = [i for _, i in by_weight[:keep]], [w for w, _ in by_weight[:keep]]
    missing = keep - len(items)
    assert retrieved.item[n].tolist() == items + [-1] * missing
    np.testing.assert_allclose(retrieved.weight[n], weights + [0.0] * missing, rtol=1e-5)
    np.testing.assert_array_equal(retrieved.codes[n, : len(items)], codes[items])
