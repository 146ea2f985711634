"""The words of items, and the templates that use them."""

import copy
import re

import polars as pl
import pytest

from rolegen_jax.config import ROLE_NAMES, ConfigError
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords, one_line

ITEMS = pl.DataFrame(
  dict(
    item_id=[3, 5, 9],
    title=['red lamp', None, ''],
    category_code=['home.lamp', 'home.floor_rug', None],
    brand=[' Arc ', None, None],
    price=[2.5, None, 9.0],
  )
)


def test_descriptions_hold_what_is_known():
  words = ItemWords.of(ITEMS)
  assert words.described(0) == 'title: red lamp, category: home lamp, brand: Arc, price: 2.50'
  masked = words.described(0, masked='brand')
  assert masked == 'title: red lamp, category: home lamp, brand: ?, price: 2.50'
  assert words.described(1) == 'category: home floor rug'
  assert words.described(2) == 'price: 9.00'
  assert words.known('title').tolist() == [True, False, False] and len(words) == 3
  assert words.say(1, 'title', 'an item') == 'an item'


def test_items_without_words():
  assert ItemWords.of(ITEMS.select('item_id')) is None
  assert ItemWords.of(ITEMS.select('item_id', 'price')) is None


def test_a_text_column_stands_in_for_titles():
  assert ItemWords.of(ITEMS.select('item_id', text='title')).say(0, 'title') == 'red lamp'


ODD = {
  'a\u2028b\x85c\nd\x00e\t f': 'a b c d e  f',
  '\u200fשלום\u200e 裙子 👩‍👩‍👧': '\u200fשלום\u200e 裙子 👩‍👩‍👧',
  'x{title}%s<b>&amp;': 'x{title}%s<b>&amp;',
  '\x00\n': '',
}


def test_words_are_single_lines_of_at_most_a_stated_length(capsys):
  titles = [*ODD, 'w' * 100_000]
  words = ItemWords.of(pl.DataFrame(dict(item_id=range(len(titles)), title=titles)))
  assert words.words['title'] == [*ODD.values(), 'w' * 1000]
  assert 'items: 1 titles, categories or brands are cut at 1000' in capsys.readouterr().err
  assert one_line('half \ud83d a pair') == 'half \ufffd a pair'


def test_a_tokenizer_learns_of_long_texts_too():
  titles = [f'{"kettle lamp " * 80}{i}' for i in range(50)]
  brands, paths = ['裙子衬衫' * 240] * 50, ['home lamp ' * 90] * 50
  table = pl.DataFrame(dict(item_id=range(50), title=titles, brand=brands, category_code=paths))
  words = ItemWords.of(table)
  assert len(words.described(0).encode()) > 4192
  tokenizer = words.tokenizer(400)
  assert len(tokenizer.encode('kettle lamp')) < 4
  for title in [*ODD.values(), 'w' * 1000]:
    # Its normalization leaves out marks of direction, and all but one of several spaces.
    expected = ' '.join(title.replace('\u200f', '').replace('\u200e', '').split())
    assert tokenizer.decode(tokenizer.encode(title)) == expected


def test_missing_templates_and_unknown_values_are_refused():
  templates = prompts.templates()
  assert set(templates['rationale']['role']) == set(ROLE_NAMES)
  assert set(templates['annotate']['roles']) == set(ROLE_NAMES)
  broken = copy.deepcopy(templates)
  broken['rationale']['role']['TRIGGER'] = '{titel} opens'
  message = (
    'prompts.toml: rationale.role.TRIGGER uses {titel}; must be some of category, title, wanted'
  )
  with pytest.raises(ConfigError, match=re.escape(message)):
    prompts.check(broken)
  del broken['rationale']['role']['TRIGGER']
  with pytest.raises(ConfigError, match='rationale.role.TRIGGER is missing'):
    prompts.check(broken)
