"""The catalogue: a unique semantic ID for every item, as an artifact with a content hash.

Two items may quantize to the same codes. They are told apart by one rule, applied level by level
from the first: under a prefix, a code holds at most as many items as there are IDs below it
(K ** levels below; one at the last level). The items nearest to its centroid stay, the others move
to the nearest code with room. So a collision is resolved at the last level, and only a prefix whose
leaves are all taken sends items to a neighboring prefix.

Legend: I items, L levels, K codes, D width of the points that the codebooks approximate.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from rolegen_jax.config import ConfigError, SemanticIdConfig
from rolegen_jax.data.files import as_data_error, write_npz
from rolegen_jax.fields import Refusal
from rolegen_jax.runtime import storage
from rolegen_jax.semantic_ids.residual_kmeans import Quantized, residual_kmeans
from rolegen_jax.semantic_ids.rqvae import rqvae

FILE = 'catalogue.npz'
QUANTIZERS = {'residual_kmeans': residual_kmeans, 'rqvae': rqvae}


class ArtifactError(Refusal):
  """A stored artifact is damaged or is not the expected one. The message names both hashes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
  """The semantic IDs of I items and what is needed to add more."""

  # int64 or str [I], all different: the log's own ids, whatever their index in a later log.
  item_ids: np.ndarray
  # int32 [I, L], all rows different.
  codes: np.ndarray
  # float32 [L, K, D].
  codebooks: np.ndarray
  # See Quantized.encoder.
  encoder: tuple[np.ndarray, ...] = ()
  # See `build`; not part of the hash.
  report: dict = dataclasses.field(default_factory=dict)
  # The digest of the catalogue that items were added to; '' = none was.
  parent: str = ''

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over item ids, codes, codebooks, encoder and parent."""
    sha = hashlib.sha256(self.parent.encode())
    for array in (self.item_ids, self.codes, self.codebooks, *self.encoder):
      sha.update(f'{array.dtype}{array.shape}'.encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]

  @property
  def codes_per_level(self) -> int:
    """K."""
    return self.codebooks.shape[1]

  def codes_of(self, item_ids: Iterable) -> np.ndarray:
    """Return the codes int32 [n, L] of `item_ids` [n] (list, array or Series), in that order.

    Raises ArtifactError naming the first item that has none.
    """
    item_ids = np.array(list(item_ids))
    order = np.argsort(self.item_ids, kind='stable')
    place = np.searchsorted(self.item_ids, item_ids, sorter=order).clip(max=len(order) - 1)
    index = order[place]
    missing = np.flatnonzero(self.item_ids[index] != item_ids)
    if len(missing):
      raise ArtifactError(
        f'catalogue {self.digest}: {len(missing)} of {len(item_ids)} items have no semantic ID, '
        f'the first is {item_ids[missing[0]]!r}: add them to the catalogue'
      )
    return self.codes[index]

  def add(self, points: np.ndarray, item_ids: Iterable) -> Catalogue:
    """Return a catalogue with more items and this one as its parent; no item changes its codes.

    Args:
      points: float32 [n, D], of `encode`, or of what codes stand for (`placing.py`).
      item_ids: [n].

    Raises ConfigError when too few IDs are free, ValueError when an item is present already.
    """
    all_ids = np.concatenate([self.item_ids, np.array(list(item_ids))])
    _check_distinct(all_ids)
    codes = assign(points, self.codebooks, taken=self.codes)
    counts = {
      'items': len(self.codes) + len(codes),
      'items_added': self.report.get('items_added', 0) + len(codes),
    }
    return dataclasses.replace(
      self,
      item_ids=all_ids,
      codes=np.concatenate([self.codes, codes]),
      parent=self.digest,
      report=self.report | counts,
    )

  def save(self, folder: str | os.PathLike) -> pathlib.Path:
    """Write `folder`/catalogue.npz, whole or not at all, and return its path."""
    path = storage.path(folder) / FILE
    arrays = {
      'item_ids': self.item_ids,
      'codes': self.codes,
      'codebooks': self.codebooks,
      'digest': np.array(self.digest),
      'parent': np.array(self.parent),
      'report': np.array(json.dumps(self.report)),
    }
    arrays |= {f'encoder{i}': array for i, array in enumerate(self.encoder)}
    write_npz(arrays, path)
    return path

  @classmethod
  def load(cls, folder: str | os.PathLike, expected_digest: str | None = None) -> Catalogue:
    """Read what `save` wrote.

    Raises DataError when it cannot be read, and ArtifactError when the content does not have the
    stored hash, or not `expected_digest`.
    """
    path = storage.path(folder) / FILE
    expected = 'a catalogue; remove the DONE.json beside it to make it again'
    with as_data_error(path, expected), np.load(storage.local(path), allow_pickle=False) as file:
      n_encoder = sum(name.startswith('encoder') for name in file.files)
      catalogue = cls(
        item_ids=file['item_ids'],
        codes=file['codes'],
        codebooks=file['codebooks'],
        encoder=tuple(file[f'encoder{i}'] for i in range(n_encoder)),
        parent=str(file['parent']) if 'parent' in file else '',
        report=json.loads(str(file['report'])),
      )
      stored = str(file['digest'])
    if catalogue.digest != stored:
      raise ArtifactError(
        f'{path}: content hash {catalogue.digest}, the file says {stored}: '
        'it was changed after it was written'
      )
    if expected_digest is not None and expected_digest != stored:
      raise ArtifactError(
        f'{path}: catalogue {stored}, but {expected_digest} is needed: '
        'build it from the same data and config'
      )
    return catalogue


def build(
  embeddings: np.ndarray, item_ids: Iterable, config: SemanticIdConfig, mesh: Mesh
) -> Catalogue:
  """Quantize embeddings float32 [I, D] of the items `item_ids` [I] and give each item its own ID.

  The report has: items; collision_rate (share of items that shared their codes with another before
  resolution); moved_by_level (items whose code at that level changed); and per level, before and
  after: perplexity of the codes, share of the codes used, reconstruction error of the points as a
  share of their mean squared norm.

  Raises ConfigError when there are more items than IDs.
  """
  is_finite = np.isfinite(embeddings).all(axis=1)
  if not is_finite.all():
    raise ValueError(f'embeddings: item {int(np.flatnonzero(~is_finite)[0])} is not finite')
  # An array of strings has a fixed width and no objects, so it hashes and saves as it is.
  ids = np.array(list(item_ids))
  _check_distinct(ids)
  check_room(len(embeddings), config.codes, config.levels)
  quantize = QUANTIZERS[config.method]
  result = quantize(embeddings, config.levels, config.codes, config.iterations, config.seed, mesh)
  codes = assign(result.points, result.codebooks, preferred=result.codes)
  return Catalogue(ids, codes, result.codebooks, result.encoder, _report(result, codes))


def check_room(items: int, codes: int, levels: int) -> None:
  """Raise ConfigError when there are more items than IDs."""
  if items > codes**levels:
    raise ConfigError(
      f'semantic_ids.codes={codes}: {items} items need their own IDs, '
      f'codes ** levels = {codes**levels} exist: '
      'raise semantic_ids.codes or semantic_ids.levels'
    )


def _check_distinct(item_ids: np.ndarray) -> None:
  values, counts = np.unique(item_ids, return_counts=True)
  if len(values) < len(item_ids):
    raise ValueError(f'catalogue: item {values[counts > 1][0]!r} is there twice')


def encode(encoder: tuple[np.ndarray, ...], embeddings: np.ndarray) -> np.ndarray:
  """Return the points float32 [n, D] of embeddings [n, D_in] (see Quantized.encoder)."""
  x = np.asarray(embeddings, np.float32)
  for i in range(0, len(encoder), 2):
    x = (x if i == 0 else np.maximum(x, 0)) @ encoder[i] + encoder[i + 1]
  return x


# Resolving collisions


def assign(
  points: np.ndarray,
  codebooks: np.ndarray,
  preferred: np.ndarray | None = None,
  taken: np.ndarray | None = None,
) -> np.ndarray:
  """Assign IDs int32 [n, L] by the rule of the module docstring.

  All are different and none is in `taken`.

  Args:
    points: float32 [n, D].
    codebooks: float32 [L, K, D].
    preferred: int [n, L], the codes wanted, used for as long as an item has received all of them.
      Default: the nearest, level by level.
    taken: int32 [m, L], IDs that are not free.
  """
  n, (levels, codes, _) = len(points), codebooks.shape
  taken = np.empty((0, levels), np.int32) if taken is None else taken
  check_room(n + len(taken), codes, levels)
  result = np.empty((n, levels), np.int32)
  residual = np.array(points, np.float32)
  on_path = np.full(n, preferred is not None)
  prefix = np.zeros(len(taken) + n, np.int64)  # index of the prefix so far; taken items first
  for level, codebook in enumerate(codebooks):
    choice = _nearest(residual, codebook)
    if preferred is not None:
      choice = np.where(on_path, preferred[:, level], choice)
    room = min(codes ** (levels - level - 1), n + len(taken))
    choice = _spill(choice, prefix, taken[:, level], residual, codebook, room)
    result[:, level] = choice
    residual -= codebook[choice]
    if preferred is not None:
      on_path &= choice == preferred[:, level]
    all_codes = np.concatenate([taken[:, level], choice])
    prefix = np.unique(prefix * codes + all_codes, return_inverse=True)[1]
  return result


def _spill(
  choice: np.ndarray,
  prefix: np.ndarray,
  taken_code: np.ndarray,
  residual: np.ndarray,
  codebook: np.ndarray,
  room: int,
) -> np.ndarray:
  """Move items that find no room under (prefix, code) to the nearest code of the prefix with room.

  Args:
    choice: int [n], the code wanted by each item.
    prefix: int64 [m + n], of the m taken IDs and the items.
    taken_code: int [m].
    residual: float32 [n, D].
    codebook: float32 [K, D].
    room: IDs below each (prefix, code).

  Returns `choice` with the movers' codes replaced.
  """
  codes, m = len(codebook), len(taken_code)
  # A cell is a pair (prefix, code).
  cells, cell_of = np.unique(
    prefix * codes + np.concatenate([taken_code, choice]), return_inverse=True
  )
  free = room - np.bincount(cell_of[:m], minlength=len(cells))
  distance_to_choice = np.square(residual - codebook[choice]).sum(axis=1)
  order = np.lexsort((distance_to_choice, cell_of[m:]))  # by cell, nearest first, then by item
  cell = cell_of[m:][order]
  rank = np.arange(len(order)) - np.searchsorted(cell, cell)
  stays = rank < free[cell]
  movers = order[~stays]
  if not len(movers):
    return choice
  choice = choice.copy()
  room_left = {}  # prefix with movers -> room left per code [K]
  filled = np.minimum(np.bincount(cell, minlength=len(cells)), free) + room - free
  for key in np.unique(prefix[m:][movers]):
    first, last = np.searchsorted(cells, [key * codes, (key + 1) * codes])
    room_left[key] = np.full(codes, room)
    room_left[key][cells[first:last] - key * codes] -= filled[first:last]
  # In order of cell and distance, so that the outcome does not depend on anything else.
  for item in movers:
    left_per_code = room_left[prefix[m + item]]
    distance = np.square(codebook - residual[item]).sum(axis=1)
    choice[item] = np.argmin(np.where(left_per_code > 0, distance, np.inf))
    left_per_code[choice[item]] -= 1
  return choice


def _nearest(x: np.ndarray, codebook: np.ndarray, block: int = 1 << 16) -> np.ndarray:
  """Return the index int64 [n] of the centroid nearest to each row of x [n, D]."""
  norm = np.square(codebook).sum(axis=1)
  parts = [
    (norm - 2 * x[i : i + block] @ codebook.T).argmin(axis=1) for i in range(0, len(x), block)
  ]
  return np.concatenate(parts) if parts else np.empty(0, np.int64)


# Reporting


def _report(result: Quantized, codes: np.ndarray) -> dict:
  """Return the report that `build` describes."""
  _, inverse, counts = np.unique(result.codes, axis=0, return_inverse=True, return_counts=True)
  return {
    'items': len(codes),
    'collision_rate': float((counts[inverse] > 1).mean()) if len(codes) else 0.0,
    'moved_by_level': (codes != result.codes).sum(axis=0).tolist(),
    'quantizer_error': [float(error) for error in result.error],
    'before': _quality(result.points, result.codebooks, result.codes),
    'after': _quality(result.points, result.codebooks, codes),
  }


def _quality(
  points: np.ndarray, codebooks: np.ndarray, codes: np.ndarray
) -> dict[str, list[float]]:
  residual = points.astype(np.float64)
  scale = max(float(np.square(points, dtype=np.float64).sum()), 1e-30)
  quality: dict[str, list[float]] = {'perplexity': [], 'used_share': [], 'error': []}
  for level, codebook in enumerate(codebooks):
    share = np.bincount(codes[:, level], minlength=len(codebook)) / max(len(codes), 1)
    positive = share[share > 0]
    residual = residual - codebook[codes[:, level]]
    quality['perplexity'].append(float(np.exp(-(positive * np.log(positive)).sum())))
    quality['used_share'].append(float((share > 0).mean()))
    quality['error'].append(float(np.square(residual).sum()) / scale)
  return quality
