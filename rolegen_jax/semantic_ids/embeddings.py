"""Item embeddings: the points that are quantized to semantic IDs.

The collaborative part uses training events only, so it works on anonymous logs. Co-occurrence
within a user's trajectory is counted over items and the values of their attributes (category path,
brand) as nodes of ONE graph, turned into smoothed PPMI and factorized (Levy & Goldberg, NeurIPS
2014: word2vec as implicit matrix factorization). The vector of an item that was seen once is noisy,
so it is shrunk to that of the item's attributes.

The text part is a function texts -> matrix, chosen by name, see TEXT_EMBEDDERS. It is off by
default. The same matrix gives the text vectors (text_vectors.py).

Legend: N events, I items, A attribute columns, V nodes (items, then attribute values), D width.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy.sparse as sp

from rolegen_jax.config import ConfigError, SemanticIdConfig
from rolegen_jax.data.sparse_sums import Counts, SparseSum, largest_entries
from rolegen_jax.semantic_ids.minilm import minilm

# Events: two events further apart in one trajectory do not co-occur.
WINDOW = 30
# Pairs of events that are counted of a log, where a longer one has a smaller window, and of a part.
PAIRS, PART_PAIRS = 120_000_000, 30_000_000
# Entries of a PPMI matrix of counts that do not fit in memory.
ENTRIES = 32_000_000
ITEM_BLOCK = 65_536  # items whose vectors are mixed at a time
# Smooths the context distribution, which reduces the weight of rare contexts.
CONTEXT_POWER = 0.75
# An item with this many events lies half-way between its own vector and that of its attributes.
SHRINK_EVENTS = 4.0
# Extra columns of the randomized SVD.
OVERSAMPLE = 16
POWER_ITERATIONS = 4
# Length of an item of which nothing is known: near the origin, so that such items share codes.
UNKNOWN_NORM = 1e-3
ATTRIBUTE_COLUMNS = ('category_id', 'category_code', 'brand')
# Nodes of a dotted category path: a, a.b, a.b.c.
CATEGORY_DEPTH = 3
TEXT_COLUMNS = ('text', 'title')
TEXT_DIM = 128
TEXT_BUCKETS = 1 << 16
TEXT_NGRAMS = (3, 4, 5)  # bytes


class Events(NamedTuple):
  """Training events of some users."""

  user_N: np.ndarray  # int; the events of a user are contiguous
  item_N: np.ndarray  # int, in trajectory order
  weight_N: np.ndarray  # float >= 0, how much an event counts


def item_embeddings(
  parts: Iterable[Events],
  items: pl.DataFrame,
  text_IxD: np.ndarray | None,
  config: SemanticIdConfig,
  window: int = WINDOW,
) -> np.ndarray:
  """Return collaborative and text part side by side, as float32 [I, D].

  What is known of an item on both sides counts `config.collaborative_weight` to 1. text_IxD: of
  `text_embeddings`; None = no such part. For the others see `collaborative`.
  """
  sides, lengths = [], []
  if config.collaborative_dim:
    dim, weight = config.collaborative_dim, config.collaborative_weight
    found = collaborative(parts, items.height, dim, attribute_codes(items), config.seed, window)
    sides.append(np.float32(weight) * found)
    lengths.append(weight)
  if text_IxD is not None:
    sides.append(text_IxD)
    lengths.append(1.0)
  if not sides:
    raise ConfigError(
      'semantic_ids.collaborative_dim=0: must be positive when no text embedder is set'
    )
  return np.concatenate(sides, axis=1) / np.float32(np.linalg.norm(lengths))


# Collaborative


def attribute_codes(items: pl.DataFrame) -> np.ndarray | None:
  """Return the attribute columns of the items table as codes int32 [I, A]; -1 = missing value.

  A dotted category path gives one column per depth, so that items of sibling categories share the
  node of their parent. Returns None when the table has no attribute columns.
  """
  columns = []
  for name in ATTRIBUTE_COLUMNS:
    if name not in items.columns:
      continue
    values = items[name].cast(pl.String)
    if name != 'category_code':
      columns.append(_rank_codes(values))
      continue
    parts = values.str.split('.')
    deepest = typing.cast(int, parts.list.len().max() or 1)
    for depth in range(1, min(CATEGORY_DEPTH, deepest) + 1):
      ancestor = parts.list.head(depth).list.join('.')
      columns.append(
        _rank_codes(pl.select(pl.when(parts.list.len() >= depth).then(ancestor)).to_series())
      )
  return np.stack(columns, axis=1) if columns else None


def _rank_codes(values: pl.Series) -> np.ndarray:
  """Return int32 [I]: the rank of each value among the sorted distinct values; -1 = missing."""
  ranks = values.rank('dense').cast(pl.Int64) - 1
  return ranks.fill_null(-1).to_numpy().astype(np.int32)


def collaborative(
  parts: Iterable[Events],
  n_items: int,
  dim: int,
  attributes_IxA: np.ndarray | None = None,
  seed: int = 0,
  window: int = WINDOW,
) -> np.ndarray:
  """Return collaborative embeddings float32 [I, dim].

  Rows have unit length, except items of which nothing is known (UNKNOWN_NORM).

  Args:
    parts: the training events, all of a user in one part.
    n_items: I.
    dim: width of the embeddings.
    attributes_IxA: int codes per column, -1 = missing.
    seed: of the start vectors of the SVD and the directions of unknown items.
    window: events, see `window_of`.
  """
  nodes_IxV, attributes_IxV = _nodes(n_items, attributes_IxA)
  counts_VxV = SparseSum(nodes_IxV.shape[1], nodes_IxV.shape[1], np.float64)
  events_I = np.zeros(n_items, np.int64)
  for events in parts:
    counts_VxV.add(_cooccurrence(events, nodes_IxV, window))
    events_I += np.bincount(events.item_N, minlength=n_items)
  unit_VxD = unit(_factorize(_ppmi(Counts([counts_VxV])), dim, seed))
  share_Ix1 = (events_I / (events_I + SHRINK_EVENTS))[:, None]
  rng, result = np.random.default_rng(seed), np.empty((n_items, dim), np.float32)
  for first in range(0, n_items, ITEM_BLOCK):
    rows = slice(first, min(first + ITEM_BLOCK, n_items))
    shared = unit(attributes_IxV[rows] @ unit_VxD)
    mixed = unit(share_Ix1[rows] * unit_VxD[rows] + (1 - share_Ix1[rows]) * shared)
    noise = unit(rng.standard_normal(mixed.shape)) * UNKNOWN_NORM
    result[rows] = np.where(mixed.any(axis=1, keepdims=True), mixed, noise)
  return result


def _nodes(n_items: int, attributes_IxA: np.ndarray | None) -> tuple[sp.csr_array, sp.csr_array]:
  """Return indicator matrices of the nodes of items and of their attribute nodes, [I, V] each.

  The nodes of an item are itself and its attribute values.
  """
  if attributes_IxA is None:
    attributes_IxA = np.empty((n_items, 0), np.int32)
  sizes_A = attributes_IxA.max(axis=0, initial=-1) + 1
  starts = n_items + np.concatenate([[0], np.cumsum(sizes_A)]).astype(np.int64)
  item, column = np.nonzero(attributes_IxA >= 0)
  node = starts[column] + attributes_IxA[item, column]
  shape = (n_items, int(starts[-1]))
  attributes_IxV = sp.csr_array((np.ones(len(item)), (item, node)), shape=shape)
  return sp.eye_array(*shape, format='csr') + attributes_IxV, attributes_IxV


def window_of(rows: int) -> int:
  """Return how many events apart two may be to co-occur in a log of so many rows.

  WINDOW, or as many as make PAIRS pairs: nearer events tell more of each other.
  """
  return min(max(PAIRS // rows, 1), WINDOW)


def _cooccurrence(events: Events, nodes_IxV: sp.csr_array, window: int) -> sp.csr_array:
  """Return symmetric node counts [V, V] over pairs of different items within `window` events.

  Nearer pairs count more.
  """
  user_N, item_N, weight_N = events
  nodes_NxV = nodes_IxV[item_N]
  counts = sp.csr_array((nodes_NxV.shape[1],) * 2)
  for lag in range(1, min(window, len(item_N) - 1) + 1):
    is_pair = (user_N[lag:] == user_N[:-lag]) & (item_N[lag:] != item_N[:-lag])
    first = np.flatnonzero(is_pair)
    pair_weight = np.sqrt(weight_N[first] * weight_N[first + lag]) * (1 - (lag - 1) / window)
    counts = counts + nodes_NxV[first].T @ (sp.diags_array(pair_weight) @ nodes_NxV[first + lag])
  return sp.csr_array(counts + counts.T)


def _ppmi(counts_VxV: Counts) -> sp.csr_array:
  """Return positive pointwise mutual information with a smoothed context distribution.

  Small counts are discounted (Pantel & Lin 2002). Of counts that are not in memory, ENTRIES at
  most: the largest of each node, as many for all.
  """
  n_nodes = counts_VxV.shape[0]
  keep = n_nodes if counts_VxV.in_memory else max(ENTRIES // n_nodes, 1)
  total_V = counts_VxV.sum(axis=1)
  context_V = total_V**CONTEXT_POWER
  blocks = []
  for start, block in counts_VxV.blocks():
    counts = block.tocoo()
    row, column = counts.coords
    positive = counts.data > 0
    row, column, data = row[positive], column[positive], counts.data[positive]
    total = total_V[start + row]
    pmi = np.log(data * context_V.sum() / (total * context_V[column]))
    smaller_total = np.minimum(total, total_V[column])
    pmi *= data / (data + 1) * smaller_total / (smaller_total + 1)
    above = pmi > 0
    block = sp.csr_array((pmi[above], (row[above], column[above])), shape=block.shape)
    blocks.append(largest_entries(block, keep))
  return sp.csr_array(sp.vstack(blocks))


def _factorize(matrix_VxV: sp.csr_array, dim: int, seed: int) -> np.ndarray:
  """Return U sqrt(S) [V, dim] of a truncated SVD, with zero columns beyond the rank.

  Columns come in the order of falling S, with fixed signs. Randomized subspace iteration (Halko,
  Martinsson & Tropp 2011) works on blocks of columns, many times faster than Lanczos (scipy's
  svds), which takes one vector at a time.
  """
  n_nodes = matrix_VxV.shape[0]
  start_VxW = np.random.default_rng(seed).standard_normal((n_nodes, min(dim + OVERSAMPLE, n_nodes)))
  basis_VxW = _orthonormal(matrix_VxV @ start_VxW)[0]
  for _ in range(POWER_ITERATIONS):
    basis_VxW = _orthonormal(matrix_VxV @ (matrix_VxV.T @ basis_VxW))[0]
  _, s, rotation_WxW = _orthonormal(matrix_VxV.T @ basis_VxW)
  u, s = (basis_VxW @ rotation_WxW)[:, :dim], s[:dim]
  if u.size:
    # A singular pair is determined up to its sign only.
    u *= np.sign(u[np.abs(u).argmax(axis=0), np.arange(len(s))])
  return np.pad(u * np.sqrt(s), ((0, 0), (0, dim - len(s))))


def _orthonormal(x_VxW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return (U, s, R) of x = U diag(s) R^T within its numerical rank, by its Gram matrix.

  The singular values s fall.
  """
  squares, right_WxW = np.linalg.eigh(x_VxW.T @ x_VxW)
  keep = np.flatnonzero(squares > 1e-12 * max(squares.max(initial=0), 1e-30))[::-1]
  s, right = np.sqrt(squares[keep]), right_WxW[:, keep]
  return x_VxW @ right / s, s, right


def unit(x_NxD: np.ndarray) -> np.ndarray:
  """Return rows scaled to unit length; rows of zeros stay."""
  norm = np.linalg.norm(x_NxD, axis=-1, keepdims=True)
  return np.divide(x_NxD, norm, out=np.zeros_like(x_NxD), where=norm > 1e-9)


# Text


def hashed_ngrams(
  texts: list[str], seed: int = 0, inverse_frequency: np.ndarray | None = None
) -> np.ndarray:
  """Return float32 [I, TEXT_DIM]: TF-IDF of hashed byte n-grams, randomly projected.

  Rows have unit length (zero for empty text). Needs no download and no fitting beyond the document
  frequencies, by default those of `texts`. Near-duplicates come out close; synonyms do not.
  """
  counts = _ngram_counts(texts)
  if inverse_frequency is None:
    inverse_frequency = _inverse_frequency(counts)
  # By the rows of the projection that are read: the product copies all that it is given.
  used, bucket = np.unique(counts.indices, return_inverse=True)
  weight = np.log1p(counts.data) * inverse_frequency[counts.indices]
  weights = sp.csr_array((weight, bucket, counts.indptr), shape=(len(texts), len(used)))
  return unit(weights @ _projection(seed)[used]).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _projection(seed: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal((TEXT_BUCKETS, TEXT_DIM), dtype=np.float32)


def _inverse_frequency(counts: sp.csr_array) -> np.ndarray:
  document_frequency = np.bincount(counts.indices, minlength=TEXT_BUCKETS)
  return np.log((1 + counts.shape[0]) / (1 + document_frequency))


def _ngram_counts(texts: list[str]) -> sp.csr_array:
  """Return how often each text has an n-gram of each bucket, [texts, TEXT_BUCKETS]."""
  text_of_gram, buckets = _ngram_buckets(texts)
  counts = sp.csr_array(
    (np.ones(len(text_of_gram)), (text_of_gram, buckets)), shape=(len(texts), TEXT_BUCKETS)
  )
  counts.sum_duplicates()
  return counts


def _ngram_buckets(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Return (index of the text, hash bucket), int64 [n], of every byte n-gram of the texts."""
  encoded = [
    f' {text.lower().strip()} '.encode() if text and text.strip() else b'' for text in texts
  ]
  lengths = np.array([len(text) for text in encoded], np.int64)
  stream = np.frombuffer(b''.join(encoded), np.uint8).astype(np.uint64)
  text_of_byte = np.repeat(np.arange(len(texts)), lengths)
  text_indices, buckets = [], []
  for n in TEXT_NGRAMS:
    count = max(len(stream) - n + 1, 0)
    hashed = np.full(count, n, np.uint64)
    for j in range(n):
      # FNV-1a, which wraps modulo 2**64.
      hashed = (hashed ^ stream[j : j + count]) * np.uint64(0x100000001B3)
    folded = (hashed ^ (hashed >> np.uint64(32))) % np.uint64(TEXT_BUCKETS)
    inside = text_of_byte[:count] == text_of_byte[n - 1 : n - 1 + count]
    text_indices.append(text_of_byte[:count][inside])
    buckets.append(folded.astype(np.int64)[inside])
  return np.concatenate(text_indices), np.concatenate(buckets)


# Name -> (texts -> [I, D]).
TEXT_EMBEDDERS: dict[str, Callable[[list[str]], np.ndarray]] = {
  'hashed_ngrams': hashed_ngrams,
  'minilm': minilm,
}


def text_embeddings(items: pl.DataFrame, name: str) -> np.ndarray | None:
  """Return unit rows float32 [I, D] of the items' text by the embedder `name`; None for ''.

  For name='column', of their `embedding` column. A row without text is zero. Raises ConfigError
  naming the known embedders, or what the items table or the environment lacks.
  """
  if not name:
    return None
  if name == 'column':
    if 'embedding' not in items.columns:
      raise ConfigError(
        "semantic_ids.text='column': the items table has no `embedding` list column, "
        f'only {items.columns}'
      )
    return unit(np.array(items['embedding'].to_list(), np.float32))
  if name not in TEXT_EMBEDDERS:
    known = ', '.join(['column', *TEXT_EMBEDDERS])
    raise ConfigError(f'semantic_ids.text={name!r}: unknown text embedder, known are: {known}')
  return unit(np.asarray(TEXT_EMBEDDERS[name](texts(items, name)), np.float32))


def embedder_of_more(items: pl.DataFrame, name: str) -> Callable[[list[str]], np.ndarray] | None:
  """Return what embeds the texts of further items as `text_embeddings` did those of `items`.

  None where there is no such embedder: none was named, or vectors come from elsewhere.
  """
  if name == 'hashed_ngrams':
    frequency = _inverse_frequency(_ngram_counts(texts(items, name)))
    return functools.partial(hashed_ngrams, inverse_frequency=frequency)
  return TEXT_EMBEDDERS.get(name)


def texts(items: pl.DataFrame, name: str) -> list[str]:
  """Return the items' text for the embedder `name`. Raises ConfigError where there is none."""
  column = next((column for column in TEXT_COLUMNS if column in items.columns), None)
  if column is None:
    raise ConfigError(
      f'semantic_ids.text={name!r}: the items table has none of the columns {TEXT_COLUMNS}, '
      f'only {items.columns}'
    )
  return items[column].fill_null('').to_list()
