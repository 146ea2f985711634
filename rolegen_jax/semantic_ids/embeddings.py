"""Item embeddings: what an item IS before it gets a semantic ID.

Collaborative part: training events only, so anonymous logs work. Co-occurrence within a user's trajectory, counted over
items and the values of their attributes (category path, brand) as nodes of ONE graph, turned into smoothed PPMI and
factorised (Levy & Goldberg, NeurIPS 2014: word2vec as implicit matrix factorisation). An item seen once has a noisy row of
its own, so its vector is shrunk to that of its attributes.

Text part (off by default): a named function texts -> matrix, see TEXT_EMBEDDERS.

Legend: N events, I items, A attribute columns, V nodes (items, then attribute values), D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import scipy.sparse as sp

from rolegen_jax.config import ConfigError, SemanticIdConfig

WINDOW = 30  # events: two events further apart in one trajectory do not co-occur
CONTEXT_POWER = 0.75  # smoothing of the context distribution, which takes weight off rare contexts
SHRINK_EVENTS = (
  4.0  # an item with this many events lies half-way between its own vector and its attributes'
)
OVERSAMPLE = 16  # extra columns of the randomised SVD
POWER_ITERATIONS = 4
UNKNOWN_NORM = 1e-3  # length of an item of which nothing is known: near the origin, so that such items share codes
ATTRIBUTE_COLUMNS = ('category_id', 'category_code', 'brand')
CATEGORY_DEPTH = 3  # nodes of a dotted category path: a, a.b, a.b.c
TEXT_COLUMNS = ('text', 'title')
TEXT_DIM = 128
TEXT_BUCKETS = 1 << 16
TEXT_NGRAMS = (3, 4, 5)  # bytes


def attribute_codes(items: pl.DataFrame) -> np.ndarray | None:
  """Attribute columns of the items table as codes int32 [I, A], -1 = missing; None when the table has none.

  A dotted category path gives one column per depth, so that items of sibling categories share their parent's node.
  """
  columns = []
  for name in ATTRIBUTE_COLUMNS:
    if name not in items.columns:
      continue
    values = items[name].cast(pl.String)
    parts = values.str.split('.')
    depths = min(CATEGORY_DEPTH, parts.list.len().max() or 1) if name == 'category_code' else 1
    for depth in range(1, depths + 1):
      if name == 'category_code':
        values = pl.select(
          pl.when(parts.list.len() >= depth).then(parts.list.head(depth).list.join('.'))
        ).to_series()
      ranks = values.rank('dense').cast(pl.Int64) - 1  # by sorted value: the same on every run
      columns.append(ranks.fill_null(-1).to_numpy().astype(np.int32))
  return np.stack(columns, axis=1) if columns else None


def collaborative(
  user_N: np.ndarray,
  item_N: np.ndarray,
  weight_N: np.ndarray,
  n_items: int,
  dim: int,
  attributes_IxA: np.ndarray | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Collaborative embeddings float32 [I, dim]: unit rows, except items of which nothing is known (UNKNOWN_NORM).

  Args:
    user_N, item_N: int, training events in trajectory order, each user's events contiguous.
    weight_N: float >= 0, how much an event counts.
    attributes_IxA: int codes per column, -1 = missing.
    seed: start vector of the SVD and the directions of unknown items.
  """
  nodes_NxV, attributes_IxV = _nodes(item_N, n_items, attributes_IxA)
  vectors_VxD = _factorise(_ppmi(_cooccurrence(user_N, item_N, weight_N, nodes_NxV)), dim, seed)
  own_IxD = _unit(vectors_VxD[:n_items])
  shared_IxD = _unit(attributes_IxV @ _unit(vectors_VxD))
  events_I = np.bincount(item_N, minlength=n_items)[:, None]
  share_I = events_I / (events_I + SHRINK_EVENTS)
  mixed_IxD = _unit(share_I * own_IxD + (1 - share_I) * shared_IxD)
  unknown_I = ~mixed_IxD.any(axis=1)
  noise_IxD = _unit(np.random.default_rng(seed).standard_normal(mixed_IxD.shape)) * UNKNOWN_NORM
  return np.where(unknown_I[:, None], noise_IxD, mixed_IxD).astype(np.float32)


def _nodes(item_N, n_items, attributes_IxA):
  """Indicator matrices: nodes of every event [N, V] (the item and its attribute values), attribute nodes of every item [I, V]."""
  attributes_IxA = np.empty((n_items, 0), np.int32) if attributes_IxA is None else attributes_IxA
  sizes = attributes_IxA.max(axis=0, initial=-1) + 1
  starts = n_items + np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
  row, column = np.nonzero(attributes_IxA >= 0)
  shape = (n_items, int(starts[-1]))
  attributes_IxV = sp.csr_array(
    (np.ones(len(row)), (row, starts[column] + attributes_IxA[row, column])), shape=shape
  )
  return (sp.eye_array(*shape, format='csr') + attributes_IxV)[item_N], attributes_IxV


def _cooccurrence(user_N, item_N, weight_N, nodes_NxV) -> sp.csr_array:
  """Symmetric node counts [V, V] over pairs of different items at most WINDOW events apart, nearer pairs count more."""
  counts = sp.csr_array((nodes_NxV.shape[1],) * 2)
  for lag in range(1, min(WINDOW, len(item_N) - 1) + 1):
    near = np.flatnonzero((user_N[lag:] == user_N[:-lag]) & (item_N[lag:] != item_N[:-lag]))
    pair_weight = np.sqrt(weight_N[near] * weight_N[near + lag]) * (1 - (lag - 1) / WINDOW)
    counts = counts + nodes_NxV[near].T @ (sp.diags_array(pair_weight) @ nodes_NxV[near + lag])
  return sp.csr_array(counts + counts.T)


def _ppmi(counts_VxV: sp.csr_array) -> sp.csr_array:
  """Positive pointwise mutual information, discounted for small counts (Pantel & Lin 2002), context smoothed."""
  counts = counts_VxV.tocoo()
  total_V = counts_VxV.sum(axis=1)
  context_V = total_V**CONTEXT_POWER
  row, column = counts.coords
  ok = counts.data > 0
  row, column, data = row[ok], column[ok], counts.data[ok]
  pmi = np.log(data * context_V.sum() / (total_V[row] * context_V[column]))
  least = np.minimum(total_V[row], total_V[column])
  pmi *= data / (data + 1) * least / (least + 1)
  keep = pmi > 0
  return sp.csr_array((pmi[keep], (row[keep], column[keep])), shape=counts.shape)


def _factorise(matrix_VxV: sp.csr_array, dim: int, seed: int) -> np.ndarray:
  """U sqrt(S) [V, dim] of a truncated SVD, columns of falling S, signs fixed; zero columns beyond the rank.

  Randomised subspace iteration (Halko, Martinsson & Tropp 2011): blocks of columns, many times faster than Lanczos
  (scipy's svds), which takes one vector at a time.
  """
  n_nodes = matrix_VxV.shape[0]
  start_VxW = np.random.default_rng(seed).standard_normal((n_nodes, min(dim + OVERSAMPLE, n_nodes)))
  basis_VxW = _orthonormal(matrix_VxV @ start_VxW)[0]
  for _ in range(POWER_ITERATIONS):
    basis_VxW = _orthonormal(matrix_VxV @ (matrix_VxV.T @ basis_VxW))[0]
  _, s, rotation_WxW = _orthonormal(matrix_VxV.T @ basis_VxW)
  u, s = (basis_VxW @ rotation_WxW)[:, :dim], s[:dim]
  if u.size:
    u *= np.sign(
      u[np.abs(u).argmax(axis=0), np.arange(len(s))]
    )  # a singular pair is known up to its sign only
  return np.pad(u * np.sqrt(s), ((0, 0), (0, dim - len(s))))


def _orthonormal(x_VxW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(columns U, singular values s falling, right vectors R) of x = U diag(s) R^T within its numerical rank, by its Gram matrix."""
  squares, right_WxW = np.linalg.eigh(x_VxW.T @ x_VxW)
  keep = np.flatnonzero(squares > 1e-12 * max(squares.max(initial=0), 1e-30))[::-1]
  s, right = np.sqrt(squares[keep]), right_WxW[:, keep]
  return x_VxW @ right / s, s, right


def _unit(x_NxD: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(x_NxD, axis=-1, keepdims=True)
  return np.divide(x_NxD, norm, out=np.zeros_like(x_NxD), where=norm > 1e-9)


def hashed_ngrams(texts: list[str], seed: int = 0) -> np.ndarray:
  """float32 [I, TEXT_DIM] unit rows (zero for empty text): TF-IDF of hashed byte n-grams, random projection.

  Needs no download and no fitting beyond the document frequencies of `texts`. Near-duplicates come close; synonyms do not.
  """
  encoded = [
    f' {text.lower().strip()} '.encode() if text and text.strip() else b'' for text in texts
  ]
  lengths = np.array([len(e) for e in encoded], np.int64)
  stream = np.frombuffer(b''.join(encoded), np.uint8).astype(np.uint64)
  owner = np.repeat(np.arange(len(texts)), lengths)
  rows, buckets = [], []
  for n in TEXT_NGRAMS:
    count = max(len(stream) - n + 1, 0)
    hashed = np.full(count, n, np.uint64)
    for j in range(n):
      hashed = (hashed ^ stream[j : j + count]) * np.uint64(
        0x100000001B3
      )  # FNV-1a, wraps modulo 2**64
    inside = owner[:count] == owner[n - 1 : n - 1 + count]
    rows.append(owner[:count][inside])
    buckets.append(
      ((hashed ^ (hashed >> np.uint64(32))) % np.uint64(TEXT_BUCKETS)).astype(np.int64)[inside]
    )
  rows, buckets = np.concatenate(rows), np.concatenate(buckets)
  counts = sp.csr_array((np.ones(len(rows)), (rows, buckets)), shape=(len(texts), TEXT_BUCKETS))
  counts.sum_duplicates()
  document_frequency = np.bincount(counts.indices, minlength=TEXT_BUCKETS)
  counts.data = (
    np.log1p(counts.data) * np.log((1 + len(texts)) / (1 + document_frequency))[counts.indices]
  )
  projection = np.random.default_rng(seed).standard_normal(
    (TEXT_BUCKETS, TEXT_DIM), dtype=np.float32
  )
  return _unit(counts @ projection).astype(np.float32)


TEXT_EMBEDDERS: dict[str, Callable[[list[str]], np.ndarray]] = {
  'hashed_ngrams': hashed_ngrams
}  # name -> (texts -> [I, D])


def text_embeddings(items: pl.DataFrame, name: str) -> np.ndarray:
  """float32 [I, D] unit rows of the items' text by the embedder `name`, or of their `embedding` column when name='column'.

  Raises ConfigError naming the known embedders, or the column that the items table lacks.
  """
  if name == 'column':
    if 'embedding' not in items.columns:
      raise ConfigError(
        f"semantic_ids.text='column': the items table has no `embedding` list column, only {items.columns}"
      )
    return _unit(np.array(items['embedding'].to_list(), np.float32))
  if name not in TEXT_EMBEDDERS:
    known = ', '.join(['column', *TEXT_EMBEDDERS])
    raise ConfigError(f'semantic_ids.text={name!r}: unknown text embedder, known are: {known}')
  column = next((c for c in TEXT_COLUMNS if c in items.columns), None)
  if column is None:
    raise ConfigError(
      f'semantic_ids.text={name!r}: the items table has none of the columns {TEXT_COLUMNS}, only {items.columns}'
    )
  return _unit(np.asarray(TEXT_EMBEDDERS[name](items[column].fill_null('').to_list()), np.float32))


def item_embeddings(
  user_N: np.ndarray,
  item_N: np.ndarray,
  weight_N: np.ndarray,
  items: pl.DataFrame,
  config: SemanticIdConfig,
) -> np.ndarray:
  """float32 [I, D]: collaborative and text parts that `config` asks for, side by side with equal weight. See `collaborative`."""
  parts = []
  if config.collaborative_dim:
    attributes = attribute_codes(items)
    parts.append(
      collaborative(
        user_N, item_N, weight_N, items.height, config.collaborative_dim, attributes, config.seed
      )
    )
  if config.text:
    parts.append(text_embeddings(items, config.text))
  if not parts:
    raise ConfigError(
      'semantic_ids.collaborative_dim=0: must be positive when no text embedder is set'
    )
  return np.concatenate(parts, axis=1) / np.float32(np.sqrt(len(parts)))
