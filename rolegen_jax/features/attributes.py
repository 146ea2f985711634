"""Attributes of items: the words that many items share, as small numbers.

`models/kinds.py` learns what contact with an item of an attribute leads to. Which words count is
decided once per run, and kept by its updates. Where no item has words, an item's only attribute is
its coarse code.
"""

from __future__ import annotations

import collections
import re

import numpy as np
import polars as pl

PER_ITEM = 8  # the rarest ones of an item
FEWEST = 20  # items that share a word, or it is none; and at most half of all
_WORD = re.compile(r'[^\W_]+')
_COLUMNS = ('title', 'text', 'category_code', 'brand')


def choose_words(items: pl.DataFrame, most: int) -> tuple[str, ...]:
  """Return the words of titles, category paths and brands that most items have, most first."""
  count = collections.Counter(word for words in _words(items) for word in words)
  shared = [w for w, n in count.items() if FEWEST <= n <= items.height / 2]
  return tuple(sorted(shared, key=lambda word: (-count[word], word))[:most])


def attributes_of(
  items: pl.DataFrame, words: tuple[str, ...], coarse_I: np.ndarray, most: int
) -> np.ndarray:
  """Return the attributes of items, numbers below `most`, int32 [I, A]; -1 = no more."""
  if not words:
    return np.where(coarse_I < most, coarse_I, -1).astype(np.int32)[:, None]
  number = {word: i for i, word in enumerate(words)}
  table = np.full((items.height, PER_ITEM), -1, np.int32)
  for row, of_item in zip(table, _words(items)):
    known = sorted((number[word] for word in of_item if word in number), reverse=True)[:PER_ITEM]
    row[: len(known)] = known
  return table


def _words(items: pl.DataFrame) -> list[set[str]]:
  columns = [items[name].cast(pl.String).to_list() for name in _COLUMNS if name in items.columns]
  texts = zip(*columns) if columns else [()] * items.height
  return [{w for text in of_item if text for w in _WORD.findall(text.lower())} for of_item in texts]
