"""Where new items belong: the semantic IDs of items that no codebook was learned from.

A new item is placed amid the items that resemble it, by text and attributes: at the mean of the
points that their codes stand for, and from there by the rule of `catalogue.py`. The server places
one item at a time (`serving/http/placing.py`), an update all that came with its days.

Shapes: I present items, n new ones, D width of the points, E of the text vectors, L levels, K codes
per level.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.semantic_ids.embeddings import ATTRIBUTE_COLUMNS

NEAREST = 8  # items that a new one is placed amid
ATTRIBUTE = 0.5  # similarity of an equal attribute, beside the cosine of texts


def points(codebooks_LxKxD: np.ndarray, codes_nxL: np.ndarray) -> np.ndarray:
  """Return what codes stand for, fp32 [n, D]."""
  return sum(book[codes] for book, codes in zip(codebooks_LxKxD, codes_nxL.T))  # type: ignore


def point_amid(
  similarity_I: np.ndarray, codes_IxL: np.ndarray, codebooks_LxKxD: np.ndarray
) -> np.ndarray | None:
  """Return the place fp32 [D] amid the most similar items; None where none is similar at all."""
  nearest = np.argsort(-similarity_I, kind='stable')[:NEAREST]
  nearest = nearest[similarity_I[nearest] > 0]
  if not len(nearest):
    return None
  of_nearest = points(codebooks_LxKxD, codes_IxL[nearest])
  return np.average(of_nearest, axis=0, weights=similarity_I[nearest]).astype(np.float32)


def add_items(
  catalogue: Catalogue,
  present: pl.DataFrame,
  new: pl.DataFrame,
  text: tuple[np.ndarray, np.ndarray] | None,
) -> Catalogue:
  """Return the catalogue with the items `new` [n], placed in the order of that table.

  Those that have nothing in common with any other are placed in the middle of the catalogue.

  Args:
    catalogue: of the items `present` [I], in any order.
    present, new: tables of items with the same columns.
    text: the text vectors [I, E] and [n, E] of both; None where items have none.
  """
  codes_IxL = catalogue.codes_of(present['item_id'])
  books = catalogue.codebooks
  middle = points(books, codes_IxL).mean(axis=0)
  known_IxA, new_nxA = _attributes(present, new)
  placed = np.empty((new.height, books.shape[2]), np.float32)
  for i in range(new.height):
    equal_IxA = (known_IxA == new_nxA[i]) & (new_nxA[i] >= 0)
    similarity_I = ATTRIBUTE * equal_IxA.sum(axis=1)
    if text is not None:
      similarity_I = similarity_I + np.maximum(text[0] @ text[1][i], 0.0)
    point = point_amid(similarity_I, codes_IxL, books)
    placed[i] = middle if point is None else point
  return catalogue.add(placed, new['item_id'])


def _attributes(present: pl.DataFrame, new: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
  """Return the attributes of both tables as numbers, [I, A] and [n, A]; -1 = none is known."""
  columns = []
  for name in (name for name in ATTRIBUTE_COLUMNS if name in present.columns):
    values = pl.concat([present[name], new[name]]).rank('dense').cast(pl.Int64) - 1
    columns.append(values.fill_null(-1).to_numpy())
  rows = present.height + new.height
  numbers = np.stack(columns, axis=1) if columns else np.empty((rows, 0), np.int64)
  return numbers[: present.height], numbers[present.height :]
