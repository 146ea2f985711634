"""A pretrained folder straight into the reasoner's sharded parameters.

Every process reads the boxes that its own devices hold, each once, from mapped files, and a box in pieces of at most PIECE bytes: the
host holds one piece beside what the devices hold. All names, shapes and types are checked first, against headers alone.

Rows of tokens that the checkpoint does not know start as the mean of the text tokens that describe them (`vocab.Token.says`), with
NOISE times that row's root mean square added, or codes that differ in the order of their digits only would start as one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from rolegen_jax.config import ReasonerConfig, TransformerConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional, lora
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.models.transformer import Transformer
from rolegen_jax.pretrained import families
from rolegen_jax.pretrained.files import TensorFiles, elements
from rolegen_jax.vocab import Vocabulary

PIECE = 128 << 20  # bytes of a box that are on the host at a time, as fp32
NOISE = 0.1

Box = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class TokenRows:
  """Where the rows of the one vocabulary stand in a checkpoint's tables."""

  vocab: Vocabulary
  rows: int  # of each table, at least the text pieces
  row: np.ndarray  # int [tokens before the text block]: the row of a token that the checkpoint knows; -1 = it does not
  says: list[list[int]]  # of each of those tokens: rows of the text tokens that describe it


def parameters(files: TensorFiles, config: ReasonerConfig, rows: TokenRows, mesh) -> dict:
  """Parameters of `Reasoner(config, rows.vocab)`, fp32, born in their shards. Without the equation of intent and what is added to a frozen
  base, which are no tensors of a decoder. Raises DataError before memory is spent; ConfigError where the mesh does not divide an array."""
  make = functional.Part(lambda rngs: Reasoner(config, rows.vocab, rngs=rngs), lora.frozen)
  wanted, layout = functional.abstract(make)[1], functional.shardings(make, mesh)
  check(files, config, rows)
  readers = readers_of(files, config, rows)

  leaf = lambda path, shape, sharding: _assemble(
    shape.shape, sharding, readers[tuple(p.key for p in path)]
  )
  return jax.tree_util.tree_map_with_path(leaf, wanted, layout)


def check(files: TensorFiles, config: ReasonerConfig, rows: TokenRows) -> None:
  """Raises DataError on a tensor that is missing, of another shape or type, or not known."""
  expected = shapes(config.transformer, rows.rows)
  for name, shape in expected.items():
    files.check(name, shape)
  spare = {'lm_head.weight'} if config.transformer.tied else set()
  unknown = sorted(
    n for n in files.names - set(expected) - spare if not n.endswith(families.UNUSED)
  )
  if unknown:
    raise DataError(
      f'{files.folder}: {len(unknown)} tensors that a model of its config.json does not have, first {unknown[0]}'
    )


def shapes(config: TransformerConfig, rows: int) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every tensor of a checkpoint with tables of so many rows."""
  found, sizes = (
    {name: (rows, config.width) for name in families.tables(config).values()},
    _sizes(config),
  )
  for path, tensor in families.layer_tensors(config).items():
    theirs = tuple(math.prod(sizes[path][axis] for axis in group) for group in tensor.groups)
    found |= {families.layer_name(layer, tensor): theirs for layer in range(config.layers)}
  return found | {families.FINAL_NORM.name: (config.width,)}


def _sizes(config: TransformerConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Path inside `blocks` -> shape of one layer."""
  blocks = functional.abstract(lambda rngs: Transformer(config, rngs=rngs))[1]['blocks']
  return {
    tuple(p.key for p in path): leaf.shape[1:]
    for path, leaf in jax.tree_util.tree_flatten_with_path(blocks)[0]
  }


def readers_of(
  files: TensorFiles, config: ReasonerConfig, rows: TokenRows
) -> dict[tuple[str, ...], Callable[[Box], np.ndarray]]:
  """Path of a parameter -> what reads a box of it."""
  sizes = _sizes(config.transformer)
  found = {('transformer', 'norm', 'scale'): lambda box: files.read(families.FINAL_NORM.name, box)}
  found |= {
    (ours,): Table(files, theirs, rows).read
    for ours, theirs in families.tables(config.transformer).items()
  }
  for path, tensor in families.layer_tensors(config.transformer).items():
    found[('transformer', 'blocks', *path)] = lambda box, tensor=tensor, size=sizes[path]: _layers(
      files, tensor, size, box
    )
  return found


def _layers(
  files: TensorFiles, tensor: families.Tensor, size: tuple[int, ...], box: Box
) -> np.ndarray:
  """A box of the stacked parameter, one file tensor a layer."""
  out, own = None, box[1:]
  for place, layer in enumerate(range(box[0].start, box[0].stop)):
    part = files.read(
      families.layer_name(layer, tensor), tuple(_flat(group, size, own) for group in tensor.groups)
    )
    order = [axis for group in tensor.groups for axis in group]
    part = part.reshape([own[axis].stop - own[axis].start for axis in order]).transpose(
      np.argsort(order)
    )
    if out is None:
      out = np.empty([s.stop - s.start for s in box], np.float32)
    out[place] = part
  return out


def _flat(group: tuple[int, ...], size: tuple[int, ...], box: Box) -> slice:
  """The slice of a dimension that is made of several axes: the first may be cut, the others are whole."""
  inner = math.prod(size[axis] for axis in group[1:])
  assert all(box[axis] == slice(0, size[axis]) for axis in group[1:])
  return slice(box[group[0]].start * inner, box[group[0]].stop * inner)


class Table:
  """Our table of token rows over the checkpoint's: our blocks, then its rows as the text block, then zeros."""

  def __init__(self, files: TensorFiles, name: str, rows: TokenRows):
    self.files, self.name, self.rows = files, name, rows
    self.width = files.shape(name)[1]
    used = sorted(
      {row for token, said in enumerate(rows.says) if rows.row[token] < 0 for row in said}
    )
    self._words = {row: self._rows(row, row + 1, slice(0, self.width))[0] for row in used}

  def read(self, box: Box) -> np.ndarray:
    (rows, columns), (first, size) = box, self.rows.vocab.blocks['text']
    out = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    start, stop = max(rows.start, first), min(rows.stop, first + size)
    if start < stop:
      out[start - rows.start : stop - rows.start] = self._rows(start - first, stop - first, columns)
    own = np.arange(rows.start, min(rows.stop, first))
    known = self.rows.row[own]
    for run in np.split(
      np.arange(len(own)), 1 + np.flatnonzero(np.diff(known) != 1)
    ):  # rows that follow each other are read at once
      if len(run) and known[run[0]] >= 0:
        out[run] = self._rows(known[run[0]], known[run[-1]] + 1, columns)
    for place in np.flatnonzero(known < 0):
      out[place] = self.described(int(own[place]))[columns]
    return out

  def described(self, token: int) -> np.ndarray:
    """The row that a token unknown to the checkpoint starts with, fp32 [width]."""
    mean = np.mean([self._words[row] for row in self.rows.says[token]], axis=0)
    noise = np.random.default_rng(token).normal(size=self.width)
    return (mean + NOISE * np.sqrt(np.mean(mean**2)) * noise).astype(np.float32)

  def _rows(self, start: int, stop: int, columns: slice) -> np.ndarray:
    return self.files.read(self.name, (slice(int(start), int(stop)), columns)).astype(np.float32)


def _assemble(shape: tuple[int, ...], sharding, read: Callable[[Box], np.ndarray]) -> jax.Array:
  """The global array of this process's boxes; a box that several devices hold is read once."""
  devices = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    devices.setdefault(tuple(s.indices(n)[:2] for s, n in zip(index, shape)), []).append(device)
  shards = []
  for corners, holders in devices.items():
    first = _onto(holders[0], tuple(slice(*c) for c in corners), read)
    shards += [first, *(jax.device_put(first, other) for other in holders[1:])]
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _onto(device, box: Box, read: Callable[[Box], np.ndarray]) -> jax.Array:
  """A box on its device, piece by piece along its first axis."""
  length = box[0].stop - box[0].start
  rows = max(1, PIECE // max(1, 4 * elements(box) // length))
  pieces = [
    slice(start, min(start + rows, box[0].stop)) for start in range(box[0].start, box[0].stop, rows)
  ]
  put = lambda piece: jax.device_put(np.asarray(read((piece, *box[1:])), np.float32), device)
  if len(pieces) == 1:
    return put(pieces[0])
  with jax.default_device(device):
    whole = jax.numpy.zeros([s.stop - s.start for s in box], np.float32)
  for piece in pieces:
    whole = _write(whole, put(piece), piece.start - box[0].start)
    whole.block_until_ready()  # or pieces would wait in line, all of them on the host
  return whole


_write = jax.jit(
  lambda whole, piece, start: jax.lax.dynamic_update_slice_in_dim(whole, piece, start, 0),
  donate_argnums=0,
)
