"""The equation of roles, against histories in which it is plain what an event is to an intent."""

import functools

import numpy as np

from rolegen_jax.models import functional
from rolegen_jax.models import role_equation as lib
from rolegen_jax.models.evidence import FADE_DAYS, FADE_EVENTS, FADES, Evidence
from rolegen_jax.runtime.compile import jit
from tests import tiny

VIEW, PURCHASE = 1, 5
DAYS = (20, 13, 12, 6, 5, 1)  # before the occasion
ITEMS = (3, 3, 4, 4, 3, 9)
CODES = (1, 1, 1, 1, 1, 2)
EVENTS = (VIEW, VIEW, VIEW, PURCHASE, VIEW, VIEW)


def make(rngs):
  return lib.RoleEquation(tiny.CODES, rngs=rngs)


def evidence(**changes) -> Evidence:
  n = len(DAYS)

  def row(values, dtype=np.int32):
    return np.array([values], dtype)

  fields = dict(
    code=np.full((1, n, 1), 2, np.int32),
    weight=np.full((1, n, 1), 0.1, np.float32),
    shift=np.full((1, n, 1), -0.1, np.float32),
    next_item=np.zeros((1, n, 1), np.int32),
    share=np.zeros((1, n, 1), np.float32),
    item=row(ITEMS),
    age=row(DAYS) * tiny.DAY,
    event=row(EVENTS),
    present=np.ones((1, n), bool),
    own_code=row(CODES),
    role=np.full((1, n), -1, np.int32),
    intent=np.full(1, -1, np.int32),
  )
  return Evidence(**fields | changes)


@functools.partial(jit, static_argnums=2)
def features(e, intent, last):
  return lib.features(e, intent, last)


def parts(e: Evidence, intent: int, last: int = len(DAYS)) -> dict[str, np.ndarray]:
  """The features of each event by their names in the file."""
  x = np.asarray(features(e, np.array([intent]), last))[0]
  sizes = dict(
    one=1, inside=1, met=3, met_item=3, weight=2, shift=2, event=6, event_inside=6, fades=FADES
  )
  assert x.shape == (last, lib.FEATURES) and sum(sizes.values()) == lib.FEATURES
  return dict(zip(sizes, np.split(x, np.cumsum(list(sizes.values()))[:-1], axis=1), strict=True))


def test_features_by_hand():
  x = parts(evidence(), intent=1)
  np.testing.assert_array_equal(x['inside'][:, 0], [1, 1, 1, 1, 1, 0])

  def since(*days):
    return [np.exp(-d / np.array(lib.SINCE_DAYS)) if d is not None else np.zeros(3) for d in days]

  # The purchase of item 4 ended the intent: what comes after it met nothing yet.
  np.testing.assert_allclose(x['met'], since(None, 7, 1, 6, None, None), atol=1e-6)
  np.testing.assert_allclose(x['met_item'], since(None, 7, None, 6, None, None), atol=1e-6)
  np.testing.assert_array_equal(x['event'].argmax(1), EVENTS)
  np.testing.assert_array_equal(x['event_inside'], x['event'] * x['inside'])
  by_days = np.exp(-np.array(DAYS)[:, None] / np.array(FADE_DAYS))
  by_events = np.exp(-np.arange(len(DAYS))[::-1, None] / np.array(FADE_EVENTS))
  np.testing.assert_allclose(x['fades'], np.concatenate([by_days, by_events], 1), atol=1e-6)
  towards_2 = parts(evidence(), intent=2)
  np.testing.assert_array_equal(towards_2['inside'][:, 0], [0, 0, 0, 0, 0, 1])
  outside = np.array([1, 1, 1, 1, 1, 0])[:, None]
  np.testing.assert_allclose(towards_2['weight'], outside * np.tanh(0.1 / np.array(lib.BENDS)))
  np.testing.assert_allclose(towards_2['shift'], -towards_2['weight'], atol=1e-6)


def test_the_latest_events_alone_get_logits_and_the_others_still_count():
  x, latest = parts(evidence(), intent=1), parts(evidence(), intent=1, last=3)
  for name, values in latest.items():
    np.testing.assert_allclose(values, x[name][-3:], atol=1e-6, err_msg=name)


def test_a_removed_event_is_nothing_to_those_after_it():
  """Without the purchase the intent goes on; without the first view the second one opens it."""
  present = np.ones((1, len(DAYS)), bool)
  present[0, 3] = False
  without = parts(evidence(present=present), intent=1)
  np.testing.assert_allclose(without['met'][4], np.exp(-7 / np.array(lib.SINCE_DAYS)), atol=1e-6)
  present[0, :2] = False
  assert (parts(evidence(present=present), intent=1)['met'][2] == 0).all()


def test_another_intent_gives_other_logits_by_complements_too():
  graphdef, params = functional.abstract(make)[0], tiny.random_params(make)

  @jit
  def logits(params, e, intent):
    return functional.bind(graphdef, params)(e, intent, 2)

  by_intent = np.stack([logits(params, evidence(), np.array([k])) for k in range(tiny.CODES)])
  assert by_intent.shape == (tiny.CODES, 1, 2, 8)
  assert np.abs(by_intent[1] - by_intent[2]).max() > 1e-3
  alone = {name: np.zeros_like(p) for name, p in params.items()}
  alone |= {name: params[name] for name in ('own', 'towards', 'pair')}
  got = np.asarray(logits(alone, evidence(), np.array([3])))[0]
  expected = (params['own'][[1, 2]] * params['towards'][3]) @ params['pair']
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
