"""The context simulator: what context does, what a log tells, and roles by true effects."""

import dataclasses
import pathlib

import numpy as np
import polars as pl
import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError, SimulatorConfig, digest
from rolegen_jax.simulator import rules, world
from rolegen_jax.simulator.behavior import NOISE, PURCHASE, VIEW
from rolegen_jax.simulator.context.inference import Reader, best_lists, follow
from rolegen_jax.simulator.context.rules import ContextRules

CONFIG = SimulatorConfig(kind='context', users=300, items=240)
SIGNAL = 2


@pytest.fixture(scope='module')
def log():
  return world.simulate(CONFIG)


@pytest.fixture(scope='module')
def shop(log):
  return log.world


def history(shop, *events):
  """Return flat arrays of row 0: events are (item, day) or (item, day, code)."""
  items, days, codes = zip(*(event if len(event) == 3 else (*event, VIEW) for event in events))
  times = shop.rules.start + (np.array(days) * rules.DAY).astype(np.int64)
  return np.zeros(len(items), int), np.array(items), np.array(codes), times


def needs(shop, user, events, day):
  """Return the needs [C] of a user on a day after `events`."""
  state = shop.state_of_rows([user], *history(shop, *events))
  time = np.array([shop.rules.start + int(day * rules.DAY)])
  return shop.needs(state, time, shop.contacts(state, time)).total[0]


def cast(shop):
  """Return (a user who understands SIGNAL, its target, an item with it, one with its key)."""
  traits = shop.traits
  persona = np.flatnonzero(traits.target_SxP[SIGNAL] >= 0)[0]
  user = np.flatnonzero(traits.persona_U == persona)[0]
  carrier = np.flatnonzero(traits.signal_I == SIGNAL)[0]
  key = np.flatnonzero(traits.key_I == traits.key_S[SIGNAL])[0]
  return user, traits.target_SxP[SIGNAL, persona], carrier, key


def test_a_signal_opens_its_target_after_its_key_only_and_for_a_while(shop):
  user, target, carrier, key = cast(shop)

  def opened(*events, day=12.5):
    return needs(shop, user, events, day)[target] - needs(shop, user, [(key, 10)], day)[target]

  full = shop.rules.open_need
  assert opened((key, 10), (carrier, 12)) == pytest.approx(full)
  assert opened((carrier, 10), (key, 12)) == pytest.approx(0)  # in the other order
  assert opened((carrier, 12)) == pytest.approx(0)
  assert opened((key, 4), (carrier, 12)) == pytest.approx(0)  # too long after
  assert opened((key, 10), (carrier, 12), day=27) == pytest.approx(0)  # over
  # Met again without its key, it closes; a second time with it, nothing is added.
  assert opened((key, 2), (carrier, 3), (carrier, 12), day=12.5) == pytest.approx(0)
  assert opened((key, 10), (carrier, 11), (carrier, 12)) == pytest.approx(full)
  bought = np.flatnonzero(shop.traits.category_I == target)[0]
  assert opened((key, 10), (carrier, 11), (bought, 12, PURCHASE)) <= 0


def test_one_signal_means_different_things_to_different_shoppers(shop):
  _, _, carrier, key = cast(shop)
  traits = shop.traits
  targets = []
  for persona in range(shop.rules.personas):
    user = np.flatnonzero(traits.persona_U == persona)[0]
    after = needs(shop, user, [(key, 10), (carrier, 12)], 12.5)
    before = needs(shop, user, [(key, 10)], 12.5)
    raised = np.flatnonzero(after - before > 1)
    target = traits.target_SxP[SIGNAL, persona]
    assert raised.tolist() == ([] if target < 0 else [target])
    targets.append(target)
  assert targets.count(-1) == shop.rules.deaf_personas
  assert len(set(targets)) == shop.rules.personas - shop.rules.deaf_personas + 1


def test_a_second_item_makes_a_comparison_and_a_third_adds_nothing(shop):
  first, second, third = np.flatnonzero(shop.traits.category_I == 5)[:3]
  one, two, three, again = (
    needs(shop, 0, [(item, 20) for item in items], 21)[5]
    for items in ([first], [first, second], [first, second, third], [first, first])
  )
  assert two - one == pytest.approx(shop.rules.compare_need)
  assert three == pytest.approx(two) and again == pytest.approx(one)


def test_a_decoy_decides_between_alternatives(shop):
  category = int(np.argmax(shop.dominates_CxMxM.sum((1, 2))))
  items, dominates = shop.items_CxM[category], shop.dominates_CxMxM[category]
  better, decoy = np.argwhere(dominates)[0]
  rivals = ~dominates[:, better] & ~dominates[better] & ~dominates[:, decoy] & ~dominates[decoy]
  rival = np.flatnonzero(rivals & (items != items[better]) & (items != items[decoy]))[0]
  time = np.array([shop.rules.start + 21 * rules.DAY])

  def preference(*slots):
    state = shop.state_of_rows([0], *history(shop, *((items[slot], 20) for slot in slots)))
    log_p = shop.log_p_conversion(state, time)[0, items]
    return log_p[better] - log_p[rival], log_p[decoy] - log_p[rival]

  without, decoy_alone = preference(better, rival), preference(decoy, rival)
  both = preference(better, rival, decoy)
  assert both[0] - without[0] == pytest.approx(shop.rules.dominance)
  assert both[1] - decoy_alone[1] == pytest.approx(-shop.rules.dominance)


def test_without_strength_signals_and_decoys_do_nothing():
  shop = world.build(dataclasses.replace(CONFIG, strength=0.0))
  user, target, carrier, key = cast(shop)
  after = needs(shop, user, [(key, 10), (carrier, 12)], 12.5)
  assert after[target] == pytest.approx(needs(shop, user, [(key, 10)], 12.5)[target])
  category = int(np.argmax(shop.dominates_CxMxM.sum((1, 2))))
  met = shop.dominates_CxMxM[category].any(0).astype(np.int8)[None]
  met[0, np.argmax(shop.dominates_CxMxM[category].sum(1))] = 1
  shares = shop.choice_shares(met, np.array([category]), np.array([0]))[0]
  strong = world.build(CONFIG).choice_shares(met, np.array([category]), np.array([0]))[0]
  items = shop.items_CxM[category]
  utility = shop.attraction(0, items) + shop.fitted.consideration * np.log1p(met[0])
  np.testing.assert_allclose(shares, np.exp(utility) / np.exp(utility).sum())
  assert np.abs(strong - shares).max() > 0.05


def test_a_strength_or_preset_of_the_other_simulator_is_refused():
  with pytest.raises(ConfigError, match=r'simulator.strength=0.5: must be 1 unless'):
    SimulatorConfig(strength=0.5).validate('simulator')
  with pytest.raises(ConfigError, match="simulator.preset='held_back': must be one of"):
    SimulatorConfig(kind='context', preset='held_back').validate('simulator')


def test_likelihoods_of_all_possible_events_sum_to_one(log, shop):
  users = np.arange(3)
  reader = Reader(shop, users)
  cut = shop.rules.start + 60 * rules.DAY
  past = log.events.filter((pl.col('user_id') < 3) & (pl.col('timestamp') < cut))
  reader.state = shop.state(past, users)
  total = 0
  for code in range(len(EVENT_NAMES)):
    if EVENT_NAMES[code] in ('view', 'fav', 'cart', 'purchase'):
      for item in range(CONFIG.items):
        event = np.full(3, item), np.full(3, code), np.full(3, cut)
        total = total + reader._likelihood(users, *event)
  np.testing.assert_allclose(total, 1, rtol=1e-9)


def test_events_are_drawn_as_their_likelihood_says(log, shop):
  user, draws = 7, 40_000
  cut = shop.rules.start + 60 * rules.DAY
  past = log.events.filter((pl.col('user_id') == user) & (pl.col('timestamp') < cut))
  state = shop.state(past, np.array([user]))
  rows, time = np.zeros(draws, int), np.full(draws, cut)
  u = np.random.default_rng(0).random((draws, NOISE))
  items, codes = shop.draw_events(state, rows, time, u)
  reader = Reader(shop, np.array([user]))
  reader.state = state
  traits = shop.traits
  mine = traits.persona_U[user], traits.favorite_U[user], traits.taste_U[user]
  for code in (VIEW, PURCHASE):
    counts = np.bincount(items[codes == code], minlength=CONFIG.items)
    for item in np.argsort(-counts)[:4]:
      event = np.array([item]), np.array([code]), np.array([cut])
      p = reader._likelihood(np.array([0]), *event)[(0, *mine)]
      assert counts[item] == pytest.approx(draws * p, abs=4.5 * np.sqrt(draws * p) + 1)


def test_a_history_tells_who_the_shopper_is(log, shop):
  """Of users with long histories, the posterior finds the hidden traits, and is calibrated."""
  lengths = log.events['user_id'].value_counts().sort('count', descending=True)
  users = np.sort(lengths['user_id'].to_numpy()[:60])
  end = np.full(len(users), shop.rules.start + 60 * rules.DAY)
  posterior = np.zeros((len(users), shop.rules.personas))
  for part, reader, rows in follow(shop, log.events, users, end):
    posterior[part] = reader.posterior(rows).sum((2, 3))
  n, persona = np.arange(len(users)), shop.traits.persona_U[users]
  right = posterior.argmax(1) == persona
  assert right.mean() > 0.7
  assert abs(posterior.max(1).mean() - right.mean()) < 0.15
  assert np.log(posterior[n, persona]).mean() > np.log(1 / shop.rules.personas) + 1


def test_the_best_lists_know_the_past_alone(log, shop):
  occasions = log.events.filter(pl.col('event') == 'purchase').sample(40, seed=1)
  users, times = occasions['user_id'].to_numpy(), occasions['timestamp'].to_numpy()
  lists = best_lists(shop, log.events, users, times, 10)
  known = pl.DataFrame(dict(user_id=users, cut=times)).group_by('user_id').agg(pl.col('cut').max())
  past = log.events.join(known, on='user_id').filter(pl.col('timestamp') < pl.col('cut'))
  for name, items in best_lists(shop, past.drop('cut'), users, times, 10).items():
    assert np.array_equal(items, lists[name])
  bought = occasions['item_id'].to_numpy()
  hits = {name: (items == bought[:, None]).any(1).mean() for name, items in lists.items()}
  popular = np.argsort(-np.bincount(log.events['item_id'], minlength=CONFIG.items))[:10]
  assert min(hits.values()) > np.isin(bought, popular).mean()


def test_roles_follow_from_effects_and_one_item_has_many(log, shop):
  planted = log.planted
  assert set(planted['role']) == set(ROLE_NAMES)
  helps = planted.filter(pl.col('role').is_in(['TRIGGER', 'COMPLEMENT']))
  assert helps['effect'].min() >= 0.05
  assert planted.filter(pl.col('role') == 'DISTRACT')['effect'].max() <= -0.05
  assert planted.filter(pl.col('role') == 'EXPLORE')['effect'].abs().max() < 0.05
  triggers = planted.filter(pl.col('role') == 'TRIGGER')['item_id']
  assert (shop.traits.signal_I[triggers.unique().to_numpy()] >= 0).all()
  of_triggers = planted.filter(pl.col('item_id').is_in(triggers.unique().implode()))
  share = (of_triggers['role'] == 'TRIGGER').mean()
  assert share < 0.5  # the same items are mostly something else


def test_titles_mislead_for_some_items(log, shop):
  words = log.items['category_code'].str.split('.').list.get(1)
  names = np.array([rules.category_names(CONFIG.categories)[c].split('.')[1]
                    for c in shop.traits.category_I])  # fmt: skip
  wrong = (words.to_numpy() != names).mean()
  assert 0.05 < wrong < 0.25


def test_the_constants_are_those_of_the_page():
  """Numbers measured on other constants would not compare: the page names their digest."""
  fitted = {name: preset['context']['fitted'] for name, preset in rules.load_presets().items()}
  page = pathlib.Path(__file__).parents[2] / 'docs/context_simulator.md'
  value = digest(dataclasses.asdict(ContextRules()), fitted)
  assert f'`{value}`' in page.read_text(encoding='utf-8')
