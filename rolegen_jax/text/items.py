"""The words of a catalogue: what is known of every item, and the tokenizer trained on it."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from rolegen_jax.runtime.progress import say
from rolegen_jax.text import prompts

if TYPE_CHECKING:
  from rolegen_jax.text.tokenizers import SentencePiece

NAMES = ('title', 'category', 'brand', 'price')  # in the order of a description
MAX_VALUE = 1000  # characters of a title, category or brand; longer ones are cut, which is said
_BREAKS = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029]+')
_SURROGATES = re.compile('[\ud800-\udfff]')


def one_line(text: str) -> str:
  """Return a text without line breaks, control characters, and halves of surrogate pairs."""
  return _SURROGATES.sub('\ufffd', _BREAKS.sub(' ', text)).strip()


@dataclasses.dataclass(frozen=True)
class ItemWords:
  """Words of I items, in the order of the log's items table; '' = not known."""

  words: dict[str, list[str]]  # attribute -> [I]

  @classmethod
  def of(cls, items: pl.DataFrame) -> ItemWords | None:
    """Read title (or text), category path, brand and price; None when the items have no words."""
    title_column = 'title' if 'title' in items.columns else 'text'
    words = {
      'title': _read_column(items, title_column),
      'category': [
        path.replace('.', ' ').replace('_', ' ') for path in _read_column(items, 'category_code')
      ],
      'brand': _read_column(items, 'brand'),
    }
    if not any(any(values) for values in words.values()):
      return None
    cut = sum(len(value) > MAX_VALUE for values in words.values() for value in values)
    if cut:
      say(f'items: {cut} titles, categories or brands are cut at {MAX_VALUE} characters')
    words = {name: [value[:MAX_VALUE] for value in values] for name, values in words.items()}
    prices = items['price'].to_list() if 'price' in items.columns else [None] * items.height
    words['price'] = [
      '' if price is None or not np.isfinite(price) else f'{price:.2f}' for price in prices
    ]
    return cls(words)

  def __len__(self) -> int:
    return len(self.words['title'])

  def known(self, attribute: str) -> np.ndarray:
    """Return bool [I]: whether the attribute of each item is known."""
    return np.array([bool(value) for value in self.words[attribute]])

  def say(self, item: int, attribute: str, otherwise: str = '') -> str:
    """Return an attribute of an item, or `otherwise` when it is not known."""
    return self.words[attribute][item] or otherwise

  def described(self, item: int, masked: str = '') -> str:
    """Return all that is known of an item, with the value of attribute `masked` hidden."""
    template = prompts.templates()['align']['described']
    parts = []
    for name in NAMES:
      value = self.words[name][item]
      if value:
        shown = template['masked'] if name == masked else value
        parts.append(template['attribute'].format(name=name, value=shown))
    return template['between'].join(parts)

  def tokenizer(self, pieces: int) -> SentencePiece:
    """Train a sentencepiece model on the descriptions of all items and the rationale templates.

    Raises DataError when there is too little text.
    """
    from rolegen_jax.text.tokenizers import train

    sentences = [
      template.format(title='', category='', wanted='')
      for section in prompts.templates()['rationale'].values()
      for template in section.values()
    ]
    descriptions = [self.described(item) for item in range(len(self))]
    repeats = 1 + len(self) // len(sentences)
    return train(descriptions + sentences * repeats, pieces)


def _read_column(items: pl.DataFrame, name: str) -> list[str]:
  """Return a column as stripped lines; '' where a value, or the column, is missing."""
  if name not in items.columns:
    return [''] * items.height
  values = items[name].cast(pl.String).fill_null('').str.strip_chars()
  return [one_line(value) for value in values]
