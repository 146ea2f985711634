"""The words of a catalogue: what can be said of every item, and the tokenizer that is trained on it."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from rolegen_jax.text import prompts

NAMES = ('title', 'category', 'brand', 'price')  # in the order of a description


@dataclasses.dataclass(frozen=True)
class ItemWords:
  """Of I items, in the order of the log's items table; '' = not known."""

  words: dict[str, list[str]]  # attribute -> [I]

  @classmethod
  def of(cls, items: pl.DataFrame) -> ItemWords | None:
    """Title (or text), category path, brand and price as they are to be read; None when the items have no words."""
    columns = dict(
      title=next((c for c in ('title', 'text') if c in items.columns), None),
      category='category_code',
      brand='brand',
    )
    read = lambda name: (
      items[name].cast(pl.String).fill_null('').str.strip_chars().to_list()
      if name in items.columns
      else [''] * items.height
    )
    words = {attribute: read(column) for attribute, column in columns.items()}
    words['category'] = [value.replace('.', ' ').replace('_', ' ') for value in words['category']]
    if not any(any(values) for values in words.values()):
      return None
    price = items['price'].to_list() if 'price' in items.columns else [None] * items.height
    return cls(
      words
      | dict(
        price=['' if value is None or not np.isfinite(value) else f'{value:.2f}' for value in price]
      )
    )

  def __len__(self) -> int:
    return len(self.words['title'])

  def known(self, attribute: str) -> np.ndarray:
    """bool [I]."""
    return np.array([bool(value) for value in self.words[attribute]])

  def say(self, item: int, attribute: str, otherwise: str = '') -> str:
    return self.words[attribute][item] or otherwise

  def described(self, item: int, masked: str = '') -> str:
    """All that is known of an item, the attribute `masked` hidden."""
    how = prompts.templates()['align']['described']
    value = lambda name: how['masked'] if name == masked else self.words[name][item]
    return how['between'].join(
      how['attribute'].format(name=name, value=value(name))
      for name in NAMES
      if self.words[name][item]
    )

  def tokenizer(self, pieces: int):
    """sentencepiece, trained on the descriptions of all items and on the words of the rationales. Raises DataError on too little text."""
    from rolegen_jax.text.tokenizers import train

    said = prompts.templates()['rationale']
    sentences = [
      template.format(title='', category='', wanted='')
      for part in said.values()
      for template in part.values()
    ]
    return train(
      [self.described(item) for item in range(len(self))]
      + sentences * (1 + len(self) // len(sentences)),
      pieces,
    )
