"""The catalogue: every item's own semantic ID, as an artifact with a content hash.

Two items may quantise to the same codes. They are told apart by one rule, applied level by level from the first: under a
prefix, a code holds at most as many items as there are IDs below it (K ** levels below; one at the last level). The items
nearest to its centroid stay, the others go to the nearest code with room. So a collision is settled at the last level, and
only a prefix whose leaves are all taken sends items to a neighbouring prefix.

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
from rolegen_jax.semantic_ids.residual_kmeans import Quantised, residual_kmeans
from rolegen_jax.semantic_ids.rqvae import rqvae

FILE = 'catalogue.npz'


class ArtifactError(ValueError):
  """A stored artifact is not what it says, or not what was asked for. The message names both hashes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
  item_ids: (
    np.ndarray
  )  # int64 or str [I], all different: the log's own ids, whatever their index in a later log
  codes: np.ndarray  # int32 [I, L], all rows different
  codebooks: np.ndarray  # float32 [L, K, D]
  encoder: tuple[np.ndarray, ...] = ()  # see Quantised.encoder
  report: dict = dataclasses.field(default_factory=dict)  # see `build`; not part of the hash

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over item ids, codes, codebooks and encoder."""
    sha = hashlib.sha256()
    for array in (self.item_ids, self.codes, self.codebooks, *self.encoder):
      sha.update(f'{array.dtype}{array.shape}'.encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]

  @property
  def codes_per_level(self) -> int:
    return self.codebooks.shape[1]

  def codes_of(self, item_ids: Iterable) -> np.ndarray:
    """int32 [n, L]: codes in the order of `item_ids` [n] (list, array or Series).

    Raises ArtefactError naming the first item that has none.
    """
    item_ids = np.array(list(item_ids))
    order = np.argsort(self.item_ids, kind='stable')
    at = order[np.searchsorted(self.item_ids, item_ids, sorter=order).clip(max=len(order) - 1)]
    missing = np.flatnonzero(self.item_ids[at] != item_ids)
    if len(missing):
      raise ArtifactError(
        f'catalogue {self.digest}: {len(missing)} of {len(item_ids)} items have no semantic ID, the first is '
        f'{item_ids[missing[0]]!r}: add them to the catalogue'
      )
    return self.codes[at]

  def add(self, embeddings: np.ndarray, item_ids: Iterable) -> 'Catalogue':
    """A catalogue with items of embeddings [n, D_in] and ids [n] appended; no old item changes its codes.

    The embeddings must be of the space that the catalogue was built in. Raises ConfigError when not enough IDs are free,
    ValueError when an item is there already.
    """
    both = np.concatenate([self.item_ids, np.array(list(item_ids))])
    _check_distinct(both)
    points = encode(self.encoder, embeddings)
    codes = assign(points, self.codebooks, taken=self.codes)
    report = self.report | {
      'items': len(self.codes) + len(codes),
      'items_added': self.report.get('items_added', 0) + len(codes),
    }
    return dataclasses.replace(
      self, item_ids=both, codes=np.concatenate([self.codes, codes]), report=report
    )

  def save(self, folder: str | os.PathLike) -> pathlib.Path:
    """Writes `folder`/catalogue.npz under a temporary name and renames it. Returns its path."""
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f'.{os.getpid()}.tmp')
    arrays = {f'encoder{i}': a for i, a in enumerate(self.encoder)}
    with open(draft, 'wb') as f:
      np.savez(
        f,
        item_ids=self.item_ids,
        codes=self.codes,
        codebooks=self.codebooks,
        digest=self.digest,
        report=json.dumps(self.report),
        **arrays,
      )
    os.replace(draft, path)
    return path

  @classmethod
  def load(cls, folder: str | os.PathLike, expected_digest: str | None = None) -> 'Catalogue':
    """Reads what `save` wrote. Raises ArtefactError when the content, or `expected_digest`, is of another hash."""
    path = pathlib.Path(folder) / FILE
    with np.load(path, allow_pickle=False) as f:
      encoder = tuple(
        f[f'encoder{i}'] for i in range(sum(name.startswith('encoder') for name in f.files))
      )
      catalogue = cls(
        f['item_ids'], f['codes'], f['codebooks'], encoder, json.loads(str(f['report']))
      )
      stored = str(f['digest'])
    if catalogue.digest != stored:
      raise ArtifactError(
        f'{path}: content hash {catalogue.digest}, the file says {stored}: it was changed after it was written'
      )
    if expected_digest is not None and expected_digest != stored:
      raise ArtifactError(
        f'{path}: catalogue {stored}, but {expected_digest} is needed: build it from the same data and config'
      )
    return catalogue


def build(
  embeddings: np.ndarray, item_ids: Iterable, config: SemanticIdConfig, mesh: Mesh
) -> Catalogue:
  """Quantises embeddings float32 [I, D] of the items `item_ids` [I] and gives every item its own ID.

  `report`: items; collision_rate (share of items that had to share their codes with another before resolution);
  moved_by_level (items whose code at that level changed); per level, before and after: perplexity of the codes, share of
  the codes used, reconstruction error of the points as share of their mean squared norm.
  Raises ConfigError when there are more items than IDs.
  """
  if not np.isfinite(embeddings).all():
    raise ValueError(
      f'embeddings: item {int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])} is not finite'
    )
  item_ids = np.array(
    list(item_ids)
  )  # of strings: fixed width, not objects, so it hashes and saves as it is
  _check_distinct(item_ids)
  check_room(len(embeddings), config.codes, config.levels)
  quantise = {'residual_kmeans': residual_kmeans, 'rqvae': rqvae}[config.method]
  found = quantise(embeddings, config.levels, config.codes, config.iterations, config.seed, mesh)
  codes = assign(found.points, found.codebooks, preferred=found.codes)
  return Catalogue(item_ids, codes, found.codebooks, found.encoder, _report(found, codes))


def check_room(items: int, codes: int, levels: int) -> None:
  if items > codes**levels:
    raise ConfigError(
      f'semantic_ids.codes={codes}: {items} items need their own IDs, codes ** levels = {codes**levels} exist: '
      'raise semantic_ids.codes or semantic_ids.levels'
    )


def _check_distinct(item_ids: np.ndarray) -> None:
  values, counts = np.unique(item_ids, return_counts=True)
  if len(values) < len(item_ids):
    raise ValueError(f'catalogue: item {values[counts > 1][0]!r} is there twice')


def encode(encoder: tuple[np.ndarray, ...], embeddings: np.ndarray) -> np.ndarray:
  """Points float32 [n, D] of embeddings [n, D_in] (see Quantised.encoder)."""
  x = np.asarray(embeddings, np.float32)
  for i in range(0, len(encoder), 2):
    x = (x if i == 0 else np.maximum(x, 0)) @ encoder[i] + encoder[i + 1]
  return x


def assign(
  points: np.ndarray,
  codebooks: np.ndarray,
  preferred: np.ndarray | None = None,
  taken: np.ndarray | None = None,
) -> np.ndarray:
  """IDs int32 [n, L], all different and none in `taken` [m, L], by the rule in the module's first lines.

  `preferred` [n, L]: the codes wanted, used for as long as an item is on their path; default: the nearest, level by level.
  """
  n, (levels, codes, _) = len(points), codebooks.shape
  taken = np.empty((0, levels), np.int32) if taken is None else taken
  check_room(n + len(taken), codes, levels)
  result = np.empty((n, levels), np.int32)
  residual = np.array(points, np.float32)
  on_path = np.full(n, preferred is not None)
  group = np.zeros(len(taken) + n, np.int64)  # dense id of the prefix so far; taken items first
  for level, codebook in enumerate(codebooks):
    choice = _nearest(residual, codebook)
    if preferred is not None:
      choice = np.where(on_path, preferred[:, level], choice)
    room = min(codes ** (levels - level - 1), n + len(taken))
    choice = _spill(choice, group, taken[:, level], residual, codebook, room)
    result[:, level] = choice
    residual -= codebook[choice]
    if preferred is not None:
      on_path &= choice == preferred[:, level]
    group = np.unique(
      group * codes + np.concatenate([taken[:, level], choice]), return_inverse=True
    )[1]
  return result


def _spill(choice, group, taken_code, residual, codebook, room) -> np.ndarray:
  """`choice` [n] with the items that find no room under (prefix, code) moved to the nearest code of the prefix that has room."""
  codes, m = len(codebook), len(taken_code)
  key = group * codes + np.concatenate([taken_code, choice])
  cells, cell_of = np.unique(key, return_inverse=True)
  free = room - np.bincount(cell_of[:m], minlength=len(cells))
  near = np.square(residual - codebook[choice]).sum(axis=1)
  order = np.lexsort((near, cell_of[m:]))  # by cell, nearest first, then by item
  cell = cell_of[m:][order]
  rank = np.arange(len(order)) - np.searchsorted(cell, cell)
  stay = rank < free[cell]
  movers = order[~stay]
  if not len(movers):
    return choice
  choice = choice.copy()
  left = {}  # prefix with movers -> room left per code [K]
  filled = np.minimum(np.bincount(cell, minlength=len(cells)), free) + room - free
  for prefix in np.unique(group[m:][movers]):
    first, last = np.searchsorted(cells, [prefix * codes, (prefix + 1) * codes])
    left[prefix] = np.full(codes, room)
    left[prefix][cells[first:last] - prefix * codes] -= filled[first:last]
  for (
    item
  ) in movers:  # in order of cell and distance, so the outcome does not depend on anything else
    rooms = left[group[m + item]]
    distance = np.square(codebook - residual[item]).sum(axis=1)
    choice[item] = np.where(rooms > 0, distance, np.inf).argmin()
    rooms[choice[item]] -= 1
  return choice


def _nearest(x: np.ndarray, codebook: np.ndarray, block: int = 1 << 16) -> np.ndarray:
  norm = np.square(codebook).sum(axis=1)
  parts = [
    (norm - 2 * x[i : i + block] @ codebook.T).argmin(axis=1) for i in range(0, len(x), block)
  ]
  return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _report(found: Quantised, codes: np.ndarray) -> dict:
  """See `build`."""
  _, inverse, counts = np.unique(found.codes, axis=0, return_inverse=True, return_counts=True)
  return {
    'items': len(codes),
    'collision_rate': float((counts[inverse] > 1).mean()) if len(codes) else 0.0,
    'moved_by_level': (codes != found.codes).sum(axis=0).tolist(),
    'quantiser_error': [float(e) for e in found.error],
    'before': _quality(found.points, found.codebooks, found.codes),
    'after': _quality(found.points, found.codebooks, codes),
  }


def _quality(points, codebooks, codes) -> dict:
  residual, scale = (
    points.astype(np.float64),
    max(float(np.square(points, dtype=np.float64).sum()), 1e-30),
  )
  out = {'perplexity': [], 'used_share': [], 'error': []}
  for level, codebook in enumerate(codebooks):
    share = np.bincount(codes[:, level], minlength=len(codebook)) / max(len(codes), 1)
    positive = share[share > 0]
    residual = residual - codebook[codes[:, level]]
    out['perplexity'].append(float(np.exp(-(positive * np.log(positive)).sum())))
    out['used_share'].append(float((share > 0).mean()))
    out['error'].append(float(np.square(residual).sum()) / scale)
  return out
