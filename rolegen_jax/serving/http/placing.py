"""Where a new item belongs: the semantic ID of an item that nobody has touched yet.

It is placed amid the listed items that resemble it, by text and attributes: at the mean of the
points that their codes stand for, and from there by the rule of `semantic_ids/catalogue.py`.

Shapes: I listed items, D width of the points, E of the text vectors, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rolegen_jax.semantic_ids.catalogue import assign
from rolegen_jax.semantic_ids.embeddings import ATTRIBUTE_COLUMNS, TEXT_COLUMNS
from rolegen_jax.semantic_ids.text_vectors import TextVectors
from rolegen_jax.serving.http.columns import Columns
from rolegen_jax.serving.http.items import Rows
from rolegen_jax.serving.http.schema import Refused, Value

NEAREST = 8  # items that a new one is placed amid
ATTRIBUTE = 0.5  # similarity of an equal attribute, beside the cosine of texts

Embed = Callable[[list[str]], np.ndarray]


class Placer:
  """Finds codes for new items."""

  def __init__(
    self, codebooks: np.ndarray, text: TextVectors | None = None, embed: Embed | None = None
  ):
    """codebooks: float32 [L, K, D]. text, embed: the text vectors of the run and their embedder."""
    self._codebooks, self._text, self._embed = codebooks, text, embed

  @property
  def text_width(self) -> int:
    """E; 0 where items have no text vectors."""
    return 0 if self._text is None else self._text.vectors.shape[1]

  def vector(self, values: Mapping[str, Value | None]) -> np.ndarray:
    """Return the text vector fp32 [E] of an item with these columns; zeros where nothing is known.

    It is of the column that the run read: `text` where there is one, else `title`.
    """
    column = next((name for name in TEXT_COLUMNS if values.get(name)), None)
    if self._text is None or self._embed is None or column is None:
      return np.zeros(self.text_width, np.float32)
    return self._text.of(self._embed([str(values[column])]))[0]

  def similarity(
    self,
    values: Mapping[str, Value | None],
    vector: np.ndarray,
    columns: Columns,
    listed: Rows,
  ) -> np.ndarray:
    """Return how much an item with these columns resembles each listed one, fp [I].

    vector: the item's text vector.
    """
    similarity = np.maximum(listed.text @ vector, 0.0)
    for name in ATTRIBUTE_COLUMNS:
      value = values.get(name)
      if value is not None:
        size = int(listed.number.max(initial=-1)) + 1
        similarity = similarity + ATTRIBUTE * columns.same(name, value, size)[listed.number]
    return similarity

  def point(self, similarity_I: np.ndarray, codes_IxL: np.ndarray, field: str) -> np.ndarray:
    """Return the place fp32 [D] amid the most similar items. Raises Refused where none is."""
    nearest = np.argsort(-similarity_I, kind='stable')[:NEAREST]
    nearest = nearest[similarity_I[nearest] > 0]
    if not len(nearest):
      said = ', '.join((*TEXT_COLUMNS, *ATTRIBUTE_COLUMNS))
      raise Refused(
        422,
        field,
        'does not say where the item belongs: must have something in common with another item in '
        f'one of {said}; or give `like`, an item, or `codes`',
      )
    points = self.points(codes_IxL[nearest])
    return np.average(points, axis=0, weights=similarity_I[nearest]).astype(np.float32)

  def points(self, codes_nxL: np.ndarray) -> np.ndarray:
    """Return what codes stand for, fp32 [n, D]."""
    return sum(book[codes] for book, codes in zip(self._codebooks, codes_nxL.T))  # type: ignore

  def assign(self, points_nxD: np.ndarray, taken_mxL: np.ndarray) -> np.ndarray:
    """Return an ID int32 [n, L] for each point, none of which is taken."""
    return assign(points_nxD, self._codebooks, taken=taken_mxL)
