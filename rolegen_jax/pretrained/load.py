"""A pretrained folder straight into the reasoner's sharded parameters.

Every process reads the boxes that its own devices hold, each once, from mapped files, and a box in
pieces of at most PIECE bytes: beside the arrays on the devices, the host holds one piece. All
names, shapes and types are checked first, against headers alone.

Rows of tokens that the checkpoint does not know start as the mean of the text tokens that describe
them (`vocab.Vocabulary.named`), plus noise of NOISE times that row's root mean square. Without
noise, tokens whose descriptions differ only in the order of their digits would start equal.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from rolegen_jax.config import ReasonerConfig, TransformerConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional, lora
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.pretrained import families
from rolegen_jax.pretrained.files import Tensors, elements
from rolegen_jax.vocab import Vocabulary

PIECE = 128 << 20  # bytes of a box that are on the host at a time, as fp32
NOISE = 0.1

Box = tuple[slice, ...]
BoxReader = Callable[[Box], np.ndarray]
Path = tuple[str, ...]  # names of a parameter


@dataclasses.dataclass(frozen=True)
class TokenRows:
  """Where the rows of the one vocabulary are in a checkpoint's tables."""

  vocab: Vocabulary
  # Of each table, at least the text pieces.
  rows: int
  # int [tokens before the text block]: the row of a token that the checkpoint knows; -1 = it does
  # not know the token.
  row: np.ndarray
  # For each of those tokens, the rows of the text tokens that describe it.
  descriptions: list[list[int]]


def parameters(files: Tensors, config: ReasonerConfig, rows: TokenRows, mesh: Mesh) -> dict:
  """Load the parameters of `Reasoner(config, rows.vocab)`, fp32, born in their shards.

  The structural equations and what is added to a frozen base are left out: they are no tensors of a
  decoder. Raises DataError before memory is spent; ConfigError where the mesh does not divide an
  array.
  """
  make = functional.Part(lambda rngs: Reasoner(config, rows.vocab, rngs=rngs), lora.frozen)
  shapes_of_params = functional.abstract(make)[1]
  shardings = functional.shardings(make, mesh)
  check(files, config.transformer, rows.rows)
  readers = box_readers(files, config, rows)

  def load_array(path: tuple, shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    return _assemble(shape.shape, sharding, readers[_names(path)])

  return jax.tree_util.tree_map_with_path(load_array, shapes_of_params, shardings)


def _names(path: tuple) -> Path:
  return tuple(entry.key for entry in path)


# Shapes


def check(files: Tensors, config: TransformerConfig, rows: int) -> None:
  """Raise DataError on a tensor that is missing, unknown, or of another shape or type.

  rows: of the tables.
  """
  expected = shapes(config, rows)
  for name, shape in expected.items():
    files.check(name, shape)
  allowed = set(expected) | ({families.HEAD} if config.tied else set())
  unknown = sorted(files.names - allowed)
  if unknown:
    raise DataError(
      f'{files.where(unknown[0])} is one of {len(unknown)} tensors that a model of its '
      'config.json does not have; must be none'
    )


def shapes(config: TransformerConfig, rows: int) -> dict[str, tuple[int, ...]]:
  """Return the shape of every tensor of a checkpoint with tables of so many rows, by name."""
  layer_shape = layer_shapes(config)
  result: dict[str, tuple[int, ...]] = {
    name: (rows, config.width) for name in families.tables(config).values()
  }
  for path, tensor in families.layer_tensors(config).items():
    shape = tuple(math.prod(layer_shape[path][axis] for axis in group) for group in tensor.groups)
    result |= {families.layer_name(layer, tensor): shape for layer in range(config.layers)}
  return result | {families.FINAL_NORM.name: (config.width,)}


def layer_shapes(config: TransformerConfig) -> dict[Path, tuple[int, ...]]:
  """Return the shape of each parameter of one layer, by its path inside `blocks`."""
  blocks = functional.abstract(lambda rngs: Transformer(config, rngs=rngs))[1]['blocks']
  leaves = jax.tree_util.tree_flatten_with_path(blocks)[0]
  return {_names(path): leaf.shape[1:] for path, leaf in leaves}


# Reading boxes


def box_readers(files: Tensors, config: ReasonerConfig, rows: TokenRows) -> dict[Path, BoxReader]:
  """Return what reads a box of each parameter, by its path."""
  layer_shape = layer_shapes(config.transformer)
  readers: dict[Path, BoxReader] = {
    ('transformer', 'norm', 'scale'): functools.partial(files.read, families.FINAL_NORM.name)
  }
  for ours, theirs in families.tables(config.transformer).items():
    readers[(ours,)] = TokenTable(files, theirs, rows).read
  for path, tensor in families.layer_tensors(config.transformer).items():
    readers[('transformer', 'blocks', *path)] = functools.partial(
      _read_layers, files, tensor, layer_shape[path]
    )
  return readers


def _read_layers(
  files: Tensors, tensor: families.Tensor, shape: tuple[int, ...], box: Box
) -> np.ndarray:
  """Return a box of a stacked parameter, fp32; the files have one tensor per layer.

  shape: of one layer of the parameter.
  """
  layers, layer_box = box[0], box[1:]
  order = [axis for group in tensor.groups for axis in group]
  file_box = tuple(_file_slice(group, shape, layer_box) for group in tensor.groups)
  out = np.empty([axis.stop - axis.start for axis in box], np.float32)
  for place, layer in enumerate(range(layers.start, layers.stop)):
    part = files.read(families.layer_name(layer, tensor), file_box)
    part = part.reshape([layer_box[axis].stop - layer_box[axis].start for axis in order])
    out[place] = part.transpose(np.argsort(order))
  return out


def _file_slice(group: tuple[int, ...], shape: tuple[int, ...], box: Box) -> slice:
  """Return the slice of a file's dimension that several of our axes make up.

  The first axis may be cut, the others are whole.
  """
  inner = math.prod(shape[axis] for axis in group[1:])
  assert all(box[axis] == slice(0, shape[axis]) for axis in group[1:])
  return slice(box[group[0]].start * inner, box[group[0]].stop * inner)


class TokenTable:
  """Our table of token rows: our own tokens, then the checkpoint's rows as text, then zeros."""

  def __init__(self, files: Tensors, name: str, rows: TokenRows) -> None:
    """Read the rows of the text tokens that describe unknown tokens.

    name: the tensor of the checkpoint.
    """
    self.files = files
    self.name = name
    self.rows = rows
    self.width = files.shape(name)[1]
    described_by = {
      row
      for token, description in enumerate(rows.descriptions)
      if rows.row[token] < 0
      for row in description
    }
    every_column = slice(0, self.width)
    self._text_rows = {
      row: self._read_rows(row, row + 1, every_column)[0] for row in sorted(described_by)
    }

  def read(self, box: Box) -> np.ndarray:
    """Return a box of our table, fp32."""
    rows, columns = box
    first_text, text_size = self.rows.vocab.blocks['text']
    out = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    start, stop = max(rows.start, first_text), min(rows.stop, first_text + text_size)
    if start < stop:
      text = self._read_rows(start - first_text, stop - first_text, columns)
      out[start - rows.start : stop - rows.start] = text
    own = np.arange(rows.start, min(rows.stop, first_text))
    known = self.rows.row[own]
    # Rows that follow each other in the file are read at once.
    run_starts = 1 + np.flatnonzero(np.diff(known) != 1)
    for run in np.split(np.arange(len(own)), run_starts):
      if len(run) and known[run[0]] >= 0:
        out[run] = self._read_rows(known[run[0]], known[run[-1]] + 1, columns)
    for place in np.flatnonzero(known < 0):
      out[place] = self.initial_row(int(own[place]))[columns]
    return out

  def initial_row(self, token: int) -> np.ndarray:
    """Return the row that a token unknown to the checkpoint starts with, fp32 [width]."""
    mean = np.mean([self._text_rows[row] for row in self.rows.descriptions[token]], axis=0)
    noise = np.random.default_rng(token).normal(size=self.width)
    return (mean + NOISE * np.sqrt(np.mean(mean**2)) * noise).astype(np.float32)

  def _read_rows(self, start: int, stop: int, columns: slice) -> np.ndarray:
    box = slice(int(start), int(stop)), columns
    return self.files.read(self.name, box).astype(np.float32)


# Arrays on devices


def _assemble(shape: tuple[int, ...], sharding: Sharding, read: BoxReader) -> jax.Array:
  """Return the global array of this process's boxes; one that several devices hold is read once."""
  holders_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    assert index is not None
    box = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape))
    holders_of.setdefault(box, []).append(device)
  shards: list[jax.Array] = []
  for box, holders in holders_of.items():
    first = _put_box(holders[0], tuple(slice(start, stop) for start, stop in box), read)
    shards += [first, *(jax.device_put(first, other) for other in holders[1:])]
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _put_box(device: jax.Device, box: Box, read: BoxReader) -> jax.Array:
  """Return a box on its device, sent piece by piece along its first axis."""
  first_axis = box[0]
  length = first_axis.stop - first_axis.start
  rows = max(1, PIECE // max(1, 4 * elements(box) // length))
  pieces = [
    slice(start, min(start + rows, first_axis.stop))
    for start in range(first_axis.start, first_axis.stop, rows)
  ]

  def put(piece: slice) -> jax.Array:
    return jax.device_put(np.asarray(read((piece, *box[1:])), np.float32), device)

  if len(pieces) == 1:
    return put(pieces[0])
  with jax.default_device(device):
    array = jax.numpy.zeros([axis.stop - axis.start for axis in box], np.float32)
  for piece in pieces:
    array = _write_piece(array, put(piece), piece.start - first_axis.start)
    array.block_until_ready()  # otherwise all pieces would queue on the host
  return array


@functools.partial(jax.jit, donate_argnums=0)
def _write_piece(array: jax.Array, piece: jax.Array, start: Any) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(array, piece, start, 0)
