"""The page at `/`, in a real browser that clicks and types its way through it.

Whatever the browser reports as an error, a refusal of the page's policy among it, fails the test.
"""

import contextlib
import pathlib
import re
import shutil

import numpy as np
import pytest
from live import serving_shop
from test_lookups import ab_result

from rolegen_jax.pipeline import serving
from rolegen_jax.serving.http.app import App
from rolegen_jax.serving.http.batcher import Batcher
from rolegen_jax.serving.http.dispatch import Dispatcher
from rolegen_jax.serving.http.guard import Guard
from rolegen_jax.serving.http.metrics import Metrics

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
WIDE, PHONE = dict(width=1280, height=900), dict(width=390, height=844)
TOKEN = 'sesame-open-it-now'
ITEM_TITLES = '.list:first-child .rows .title'
HOSTILE = '<img src=x onerror="window.hit=1">{{7*7}}<script>window.hit=1</script>'


@pytest.fixture(scope='module')
def browser():
  """A headless browser: the system's Chromium, or the one that playwright installed."""
  playwright = pytest.importorskip('playwright.sync_api', reason='no playwright')
  with playwright.sync_playwright() as started:
    found = next(filter(None, map(shutil.which, BROWSERS)), started.chromium.executable_path)
    if not pathlib.Path(found).exists():
      pytest.skip('no browser: install Chromium, or run `playwright install chromium`')
    opened = started.chromium.launch(executable_path=found)
    yield opened
    opened.close()


@pytest.fixture
def visit(browser):
  """Opens a page of a server; at the end no visit has seen an error."""
  wrong = []
  with contextlib.ExitStack() as stack:

    def opened(shop, place='', is_ready='#user[aria-busy="false"]', expected='', **settings):
      context = browser.new_context(**dict(viewport=WIDE) | settings)
      stack.callback(context.close)
      page = context.new_page()
      page.set_default_timeout(20_000)

      def note(message):
        if message.type in ('error', 'warning') and not (expected and expected in message.text):
          wrong.append(message.text)

      page.on('console', note)
      page.on('pageerror', lambda error: wrong.append(str(error)))
      page.on('dialog', lambda dialog: wrong.append(dialog.message))
      page.goto(f'http://127.0.0.1:{shop.port}/{place}')
      page.wait_for_selector(is_ready)
      return page

    yield opened
  assert not wrong


def settled(page) -> None:
  """Wait until the page shows what it was asked for: requests begin 150 ms after a change."""
  page.wait_for_timeout(300)
  page.wait_for_selector('#user[aria-busy="false"]')


def texts(page, selector: str) -> list[str]:
  return page.locator(selector).all_text_contents()


def titles(shop, answer: dict) -> list[str]:
  """The titles of the items of an answer."""
  ids = [item['item_id'] for item in answer['items']]
  rows = shop.ask('/v1/items', dict(item_ids=ids))[1]['items']
  return [row['columns']['title'] for row in rows]


def test_a_user_is_found_by_keyboard_and_shown(shop, visit):
  page = visit(shop)
  user, keyboard = 27, page.keyboard
  keyboard.press('/')
  keyboard.type(str(user))
  page.wait_for_selector(f'#found li:first-child b:text-is("{user}")')
  keyboard.press('ArrowDown')
  assert page.locator('#find').get_attribute('aria-activedescendant') == 'found-0'
  keyboard.press('Enter')
  page.wait_for_selector(f'#name:text-is("User {user}")')
  settled(page)
  answer = shop.recommend(user, explain=True, worlds=True)
  reasoned = answer['reasoned']
  assert texts(page, ITEM_TITLES) == titles(shop, answer)
  assert texts(page, '.list:last-child .rows .title') == titles(
    shop, shop.recommend(user, reasoning='off')
  )
  events = shop.ask('/v1/history', dict(user_id=user))[1]['events']
  assert texts(page, '.track .kind') == [
    event['event'] + (f' ×{event["count"]}' if event['count'] > 1 else '') for event in events
  ]
  roles = [role and role.lower() for role in reasoned['worlds'][0]['roles']]
  assert [text.strip() or None for text in texts(page, '.slot-role')][-len(roles) :] == roles
  named = [item['item_id'] for world in reasoned['worlds'] for item in world['candidates']]
  assert len(texts(page, '.candidates li')) == len(named)
  # A row opens by keyboard and says what each expert adds.
  page.locator('.rows summary').first.focus()
  keyboard.press('Enter')
  shown = dict(
    zip(texts(page, '.why >> nth=0 >> tbody th'), texts(page, '.why >> nth=0 >> tbody td'))
  )
  terms = answer['items'][0]['reason']['terms']
  assert [name.strip() for name in shown] == [*terms]
  values = texts(page, '.why >> nth=0 >> tbody td:nth-child(2)')
  assert [float(text.replace('\N{MINUS SIGN}', '-')) for text in values] == pytest.approx(
    [*terms.values()], abs=0.006
  )
  # A link opens the same user.
  assert page.url.endswith(f'#user={user}')
  page.reload()
  page.wait_for_selector(f'#name:text-is("User {user}")')


def test_a_world_is_chosen_and_models_are_compared(shop, visit):
  page = visit(shop, '#user=30')
  worlds = shop.recommend(30, worlds=True)['reasoned']['worlds']
  page.locator('.card button').nth(1).press('Enter')
  assert page.locator('.card button').nth(1).get_attribute('aria-pressed') == 'true'
  assert 'Roles of world 1' in page.locator('.note').text_content()
  assert page.evaluate('document.activeElement.textContent') == 'World 1'
  shown = [text.strip() for text in texts(page, '.slot-role')][-len(worlds[1]['roles']) :]
  removed = (
    worlds[1]['intervention']['event'] if worlds[1]['intervention']['kind'] == 'remove' else -1
  )
  assert shown == [
    'removed' if place == removed else (role or '').lower()
    for place, role in enumerate(worlds[1]['roles'])
  ]
  assert page.locator('.list').count() == 2 and page.locator('.move').count() == 20
  page.get_by_role('switch').press('Space')
  settled(page)
  assert page.locator('.list').count() == 1 and page.locator('.move').count() == 0


@pytest.mark.slow
def test_the_events_that_carried_the_rows_that_are_open_light_up(shop, visit):
  def carried(item) -> set:
    return {(by['item_id'], by['event']) for by in item['reason']['carried_by']}

  def both(user) -> list[set]:
    return [carried(item) for item in shop.recommend(user, explain=True)['items'][:2]]

  def differ(one: set, other: set) -> bool:
    return bool(one and other) and one != other

  user = next(user for user in range(40) if differ(*both(user)))
  events = shop.ask('/v1/history', dict(user_id=user))[1]['events']
  page = visit(shop, f'#user={user}')

  def lit() -> set:
    are_lit = "all => all.map(li => li.matches('.lit'))"
    places = np.flatnonzero(page.locator('.track li').evaluate_all(are_lit))
    return {(events[place]['item_id'], events[place]['event']) for place in places}

  rows = page.locator('.list:first-child .rows summary')
  expected = both(user)
  for row in (0, 1):  # the second closes the first
    rows.nth(row).click()
    page.wait_for_timeout(100)
    assert lit() == expected[row]
  page.locator('.card button').nth(1).click()
  assert lit() == expected[1]
  rows.nth(1).click()
  page.wait_for_timeout(100)
  assert lit() == set()


@pytest.mark.slow
def test_events_that_were_appended_since_are_drawn_with_their_roles(shop, visit):
  user, last = 4 * 10**6, int(shop.inputs.log.timestamp.max())

  def append(*items):
    events = [dict(item_id=item, event='view', timestamp=last - 90 + item) for item in items]
    assert shop.ask('/v1/events', dict(user_id=user, events=events))[0] == 200

  append(1, 2, 3)
  page = visit(shop, f'#user={user}')
  append(4)
  page.get_by_role('switch').press('Space')  # asks again
  settled(page)
  roles = shop.recommend(user, worlds=True)['reasoned']['worlds'][0]['roles']
  shown = [text.strip() or None for text in texts(page, '.slot-role')]
  assert shown == [role and role.lower() for role in roles] and any(shown) and len(shown) == 4
  # Even where the answer knows more than the history that was asked for at the same time.
  places = """async () => {
    const { Timeline } = await import('/static/timeline.js');
    const events = [7, 8, 8].map((item_id, timestamp) => ({ item_id, event: 'view', timestamp }));
    const more = [...events.slice(1), { item_id: 9, event: 'cart', timestamp: 3 }];
    return Timeline.prototype.places.call({ events }, more, 3);
  }"""
  assert page.evaluate(places) == [1, 2, -1]


def test_filters_change_the_lists_at_once(shop, visit):
  page = visit(shop, '#user=31')
  columns = shop.ask('/v1/columns')[1]['columns']
  path = next(column for column in columns if column['name'] == 'category_code')['values'][0]
  page.locator('.menu summary', has_text='category code').click()
  page.locator('.sheet label', has_text=path['value']).first.click()
  settled(page)
  answer = shop.recommend(31, where=dict(category_code=[path['value']]))
  assert texts(page, ITEM_TITLES) == titles(shop, answer) != []
  page.keyboard.press('Escape')
  assert page.locator('.menu[open]').count() == 0
  page.locator('.menu summary', has_text='price').click()
  page.get_by_label('price, to').fill('0.001')
  settled(page)
  assert 'No item of the catalogue' in page.locator('.nothing').first.text_content()
  page.get_by_role('button', name='Clear').click()
  settled(page)
  assert texts(page, ITEM_TITLES) == titles(shop, shop.recommend(31))


@pytest.mark.slow
def test_an_earlier_moment_is_looked_at(shop, visit):
  page = visit(shop, '#user=32')
  events = shop.ask('/v1/history', dict(user_id=32))[1]['events']
  page.locator('.track button').nth(-3).press('Enter')
  settled(page)
  time = events[-3]['timestamp']
  assert texts(page, ITEM_TITLES) == titles(shop, shop.recommend(32, time=time))
  assert page.locator('.track .later').count() == sum(e['timestamp'] >= time for e in events)
  page.get_by_role('button', name='Back to now').click()
  settled(page)
  assert texts(page, ITEM_TITLES) == titles(shop, shop.recommend(32))


def test_titles_are_text_whatever_they_contain(shop, visit):
  ids = shop.listed(33) + [
    e['item_id'] for e in shop.ask('/v1/history', dict(user_id=33))[1]['events']
  ]
  columns = dict(title=HOSTILE, brand=HOSTILE, category_code=HOSTILE)
  shop.change(tag=[dict(item_id=item, columns=columns) for item in sorted(set(ids))])
  page = visit(shop, '#user=33')
  assert HOSTILE in texts(page, ITEM_TITLES)
  page.locator('.rows summary').first.click()
  page.locator('.menu summary').first.click()
  settled(page)
  assert page.evaluate('window.hit') is None
  assert page.locator('main img, main script').count() == 0


@pytest.mark.slow
def test_ids_that_javascript_has_no_number_for(shop, visit):
  user, item = 2**60 + 1, shop.inputs.log.items['item_id'][3]
  event = dict(item_id=item, event='cart', timestamp=int(shop.inputs.log.timestamp.max()))
  assert shop.ask('/v1/events', dict(user_id=user, events=[event]))[0] == 200
  page = visit(shop, f'#user={user}')
  assert page.locator('#name').text_content() == f'User {user}'
  assert texts(page, ITEM_TITLES) == titles(shop, shop.recommend(user))


@pytest.mark.slow
def test_dark_light_and_a_phone(shop, visit):
  dark = visit(shop, '#user=5', color_scheme='dark')
  background = 'getComputedStyle(document.body).backgroundColor'
  seen = dark.evaluate(background)
  for _ in range(2):
    dark.locator('#theme').click()
  assert dark.locator('#theme').text_content() == 'Theme: dark'
  assert dark.evaluate(background) == seen
  light = visit(shop, '#user=5', color_scheme='light')
  assert light.evaluate(background) == 'rgb(255, 255, 255)' != seen
  phone = visit(shop, '#user=5', viewport=PHONE, has_touch=True, is_mobile=True)
  assert phone.evaluate('document.documentElement.scrollWidth') == PHONE['width']
  assert not phone.locator('#found').is_visible()
  phone.locator('#find').tap()
  phone.locator('#found li').nth(1).tap()
  settled(phone)
  assert not phone.locator('#found').is_visible()
  picked = phone.locator('#found .id b').nth(1).text_content()
  assert phone.locator('#name').text_content() == f'User {picked}'


def test_nothing_shifts_and_everything_has_a_name(shop, visit):
  page = visit(shop)
  shift = page.evaluate("""() => new Promise((done) => new PerformanceObserver((list) =>
    done(list.getEntries().reduce((sum, each) => sum + each.value, 0)))
    .observe({ type: 'layout-shift', buffered: true }) || setTimeout(() => done(0), 500))""")
  assert shift < 0.02
  seen = page.locator('body').aria_snapshot()
  kinds = 'button|link|textbox|searchbox|combobox|checkbox|switch|option|listbox|region|list'
  controls = re.findall(rf'- (?:{kinds})(?= )(.*)', seen)
  assert len(controls) > 50 and all('"' in said for said in controls)
  assert not re.search(
    r'- (?:button|link|searchbox|combobox|checkbox|switch|option):?$', seen, re.M
  )


def test_an_unknown_user_is_said_to_be(shop, visit):
  page = visit(shop, '#user=999999999', '#problem:not([hidden])', expected='404')
  assert 'unknown user' in page.locator('#problem').text_content()


@contextlib.contextmanager
def another(shop, **settings):
  """A further server of the same engine."""
  metrics = Metrics()
  dispatcher = Dispatcher(shop.app.engine, Batcher(2, 0.001, 8), metrics)
  app = App(shop.app.engine, shop.app._placer, dispatcher, metrics, 'online', **settings)
  with serving_shop(shop, app) as served:
    yield served


def test_the_token_is_asked_for_and_kept_out_of_urls(shop, visit):
  with another(shop, guard=Guard(TOKEN)) as guarded:
    page = visit(guarded, '', '#token[open]', expected='401')
    assert page.evaluate('document.activeElement.id') == 'token-input'
    page.keyboard.type('not the right one')
    page.keyboard.press('Enter')
    page.wait_for_selector('#token-wrong:not([hidden])')
    urls = []
    page.on('request', lambda request: urls.append(request.url))
    page.locator('#token-input').fill(TOKEN)
    page.get_by_role('button', name='Continue').click()
    page.wait_for_selector('.rows li')
    page.reload()
    page.wait_for_selector('.rows li')
    assert urls and not any(TOKEN in url for url in [*urls, page.url])
    assert page.context.cookies() == [] and page.evaluate('localStorage.length') == 0


@pytest.mark.slow
def test_the_ab_test_is_shown(shop, visit):
  result = ab_result(shop.run.workdir)
  try:
    tested = serving._ab_test(shop.run)
  finally:
    (shop.run.workdir / 'ab.json').unlink()
  with another(shop, ab_test=tested) as served:
    page = visit(served)
    page.get_by_role('link', name='A/B test').click()
    page.wait_for_selector('.arms tbody tr')
    by_orders = sorted(result['arms'], key=lambda name: -result['arms'][name]['orders']['mean'])
    arms = [name.replace('_', ' ') for name in by_orders]
    assert texts(page, '.arms tbody th') == arms
    lift = 100 * result['lifts']['no_reasoner']['orders']['mean']
    row = page.locator('.arms tbody tr', has_text='no reasoner').text_content()
    assert f'{lift:+.1f} %'.replace('-', '\N{MINUS SIGN}') in row
    page.get_by_role('button', name='GMV').press('Enter')
    assert page.locator('#arms-title').text_content() == 'GMV by arm'
    assert page.evaluate('document.activeElement.id') == 'measure-gmv'
    page.locator('#against').select_option('popularity')
    assert 'over popularity' in page.locator('figcaption').text_content()
    page.get_by_role('link', name='Users').click()
    page.wait_for_selector('#users-page:not([hidden])')
