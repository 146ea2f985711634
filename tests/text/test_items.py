"""The words of items, and the templates that use them."""

import copy
import re

import polars as pl
import pytest

from rolegen_jax.config import ROLE_NAMES, ConfigError
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords

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
