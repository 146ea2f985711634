"""Where an item that is added to a server belongs, by the rule of `semantic_ids/placing.py`.

Shapes: I listed items, D width of the points, E of the text vectors, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rolegen_jax.semantic_ids import placing
from rolegen_jax.semantic_ids.catalogue import assign
from rolegen_jax.semantic_ids.embeddings import ATTRIBUTE_COLUMNS, TEXT_COLUMNS
from rolegen_jax.semantic_ids.text_vectors import TextVectors
from rolegen_jax.serving.http.columns import Columns
from rolegen_jax.serving.http.items import Rows
from rolegen_jax.serving.http.schema import Refused, Value

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

  def vectors(self, items: Sequence[Mapping[str, Value | None]]) -> np.ndarray:
    """Return the text vectors fp32 [n, E] of items with these columns; 0 where nothing is known.

    They are of the column that the run read: `text` where there is one, else `title`. An embedder
    may take long, and needs nothing that changes.
    """
    vectors = np.zeros((len(items), self.text_width), np.float32)
    said = [next((str(v[name]) for name in TEXT_COLUMNS if v.get(name)), '') for v in items]
    has_text = [row for row, text in enumerate(said) if text]
    if self._text is not None and self._embed is not None and has_text:
      vectors[has_text] = self._text.of(self._embed([said[row] for row in has_text]))
    return vectors

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
        similarity = similarity + placing.ATTRIBUTE * columns.same(name, value, size)[listed.number]
    return similarity

  def point(self, similarity_I: np.ndarray, codes_IxL: np.ndarray, field: str) -> np.ndarray:
    """Return the place fp32 [D] amid the most similar items. Raises Refused where none is."""
    point = placing.point_amid(similarity_I, codes_IxL, self._codebooks)
    if point is None:
      said = ', '.join((*TEXT_COLUMNS, *ATTRIBUTE_COLUMNS))
      raise Refused(
        422,
        field,
        'does not say where the item belongs: must have something in common with another item in '
        f'one of {said}; or give `like`, an item, or `codes`',
      )
    return point

  def points(self, codes_nxL: np.ndarray) -> np.ndarray:
    """Return what codes stand for, fp32 [n, D]."""
    return placing.points(self._codebooks, codes_nxL)

  def assign(self, points_nxD: np.ndarray, taken_mxL: np.ndarray) -> np.ndarray:
    """Return an ID int32 [n, L] for each point, none of which is taken."""
    return assign(points_nxD, self._codebooks, taken=taken_mxL)
