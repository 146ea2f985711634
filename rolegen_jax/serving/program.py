"""The recommend program as files that run without this package: StableHLO and its tables.

A folder that `rolegen export --what=decoder` writes holds

  manifest.json        what each file is: hashes, inputs, outputs, versions, promises
  decoder.PLATFORM.B   a serialized `jax.export.Exported`, for each platform and batch size
  tables.npz           its first argument, by name: parameters, trie, what was counted
  items.npz            the id of each item index

A program takes (tables, rows) and returns lists, as dicts of arrays. It holds no weights: tables of
the same shapes, from a later training of the same settings, run with it too.

Shapes: B rows, n events of a history, k items of a list, E experts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.batches import Examples, Excites, Trajectories
from rolegen_jax.data.files import DataError, renamed, write_json, write_npz
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.models.functional import Params
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.provenance import machine
from rolegen_jax.semantic_ids.trie import Trie

FORMAT = 1  # of the folder
COUNTED = (
  'code',
  'weight',
  'shift',
  'next_item',
  'share',
  'attribute',
)  # the fields of Excitation that are read
OURS = re.compile(r'manifest\.json|(tables|items)\.npz|decoder\.[a-z]+\.\d+')  # of a folder
PROMISES = (
  'jax.export promises that a program runs with releases of jax up to 6 months newer than the one '
  'that wrote it, and up to 3 weeks older, on the platform that it is for; these, on one device'
)

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Decoder:
  """What of a trained run recommends."""

  rolegen: RoleGen
  params: dict[str, Params]  # of both models
  trie: Trie
  excitation: Excitation
  item_ids: Sequence[int | str]

  def tables(self) -> tuple[Arrays, Any]:
    """Return the tables by name, and how they nest."""
    counted = {name: getattr(self.excitation, name) for name in COUNTED}
    counted = {name: table for name, table in counted.items() if table is not None}
    tree = dict(parameters=self.params, trie=self.trie, counted=counted)
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator='/'): x for path, x in paths}
    return {name: np.asarray(jax.device_get(x)) for name, x in named.items()}, structure

  def program(self, names: Sequence[str], structure: Any) -> Callable[[Arrays, Arrays], Arrays]:
    """Return the function (tables, rows) -> lists; names: of the tables, in order."""
    rolegen = self.rolegen

    def recommend(tables: Arrays, rows: Arrays) -> Arrays:
      tree = jax.tree.unflatten(structure, [tables[name] for name in names])
      examples = _examples(rows, tree['counted'])
      beams = rolegen.config.backbone.beam
      ranking = rolegen.recommend(tree['parameters'], examples, tree['trie'], beams).ranking
      return ranking._asdict()

    return recommend

  def rows(self, batch: int) -> Arrays:
    """Return the shapes of the second argument; batch: B."""
    width = self.rolegen.config.backbone.context
    shapes: dict[str, tuple[int, ...]] = dict(time=(batch,), fold=(batch,))
    shapes |= dict.fromkeys(('item', 'event', 'count', 'timestamp'), (batch, width))
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}


def _examples(rows: Arrays, counted: Arrays) -> Examples:
  """Return rows as the models read them; what events lead to is looked up as `Excitation.of`."""
  item, fold = rows['item'], rows['fold'][:, None]
  index, is_event = jnp.maximum(item, 0), (item >= 0)[..., None]
  found = {name: table[fold, index] for name, table in counted.items()}
  for name in ('weight', 'shift', 'share'):
    found[name] = jnp.where(is_event, found[name], 0.0)
  if 'attribute' in found:
    found['attribute'] = jnp.where(is_event, found['attribute'], -1)
  segment = (item >= 0).astype(jnp.int32)
  history = Trajectories(item, rows['event'], rows['count'], rows['timestamp'], segment)
  return Examples(history, rows['time'], Excites(**found), None, None, None)


def write(
  decoder: Decoder,
  folder: str | os.PathLike,
  platforms: Sequence[str],
  batch_sizes: Sequence[int],
) -> dict:
  """Write the folder and return its manifest.

  platforms: some of cpu, cuda and tpu. batch_sizes: B of the programs, one each, as the models read
  it as a number.
  """
  path = storage.path(folder)
  tables, structure = decoder.tables()
  jitted = jax.jit(decoder.program(list(tables), structure))
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tables.items()}
  programs, files = [], {}
  for old in (path / 'manifest.json', *path.glob('decoder.*')):  # of an export before this one
    old.unlink(missing_ok=True)
  for platform in platforms:
    for size in batch_sizes:
      exported = export.export(jitted, platforms=[platform])(shapes, decoder.rows(size))
      name = f'decoder.{platform}.{size}'
      with renamed(path / name) as temporary:
        temporary.write_bytes(exported.serialize())
      calling = exported.calling_convention_version
      programs.append(dict(file=name, platform=platform, batch=size, calling_convention=calling))
      files[name] = _file(path / name)
  ids = np.array(decoder.item_ids)
  for name, arrays in (('tables.npz', tables), ('items.npz', dict(item_id=ids))):
    write_npz(arrays, path / name)
    files[name] = _file(path / name)
  manifest = _manifest(decoder, tables) | dict(programs=programs, files=files)
  write_json(manifest, path / 'manifest.json')
  return manifest


def _manifest(decoder: Decoder, tables: Arrays) -> dict:
  """Return what the files do not say themselves."""
  config, provenance = decoder.rolegen.config, machine()
  inputs = {
    'item': 'int32 [B, n]: indices of the latest items, oldest first, at the right; -1 = none',
    'event': 'int32 [B, n]: index in `events`',
    'count': 'int32 [B, n]: equal events at one time are one, with a count',
    'timestamp': 'int32 [B, n]: seconds UTC; events of one time by event, then by item',
    'time': 'int32 [B]: when the list is for; all events are before it',
    'fold': 'int32 [B]: index of the user in the log modulo `folds`; of somebody else 0',
  }
  outputs = {
    'item': 'int32 [B, k]: item indices, best first; -1 = no more',
    'score': 'fp32 [B, k]: log p among all items that were scored, nats',
    'found': 'int32 [B]: how many items there are',
    'terms': f'fp32 [B, k, {len(EXPERTS)}]: what each of `experts` adds to the score',
  }
  return dict(
    format=FORMAT,
    what='lists by the product of experts, with reasons rolled out: (tables, rows) -> lists',
    written=provenance['when'],
    commit=provenance['commit'],
    versions=provenance['versions'],
    promises=PROMISES,
    inputs=inputs,
    outputs=outputs,
    width=config.backbone.context,
    beams=config.backbone.beam,
    folds=len(decoder.excitation.code),
    events=list(EVENT_NAMES),
    experts=list(EXPERTS),
    tables={name: dict(shape=list(x.shape), dtype=str(x.dtype)) for name, x in tables.items()},
  )


def _file(path: pathlib.Path) -> dict:
  content = path.read_bytes()
  return dict(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def require_folder(folder: str | os.PathLike) -> None:
  """Raise DataError unless a folder is empty, absent, or one that `write` wrote before."""
  path = storage.path(folder)
  names = {file.name for file in path.iterdir()} if path.is_dir() else set()
  manifest = path / 'manifest.json'
  is_ours = not manifest.is_file() or b'"programs"' in manifest.read_bytes()
  if not is_ours or not all(OURS.fullmatch(name) for name in names):
    raise DataError(f'{path}: holds other files; must be a new or empty folder, or an older export')
