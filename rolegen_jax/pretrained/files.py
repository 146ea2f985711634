"""The tensors of a folder of safetensors by name, whichever files they are in.

Headers are checked before a weight is read.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained.names import standard

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# The structural equations, which no decoder has; beside the weights in a folder that we exported.
EQUATIONS_FILE = 'rolegen_equations.safetensors'
# A copy of the weights in their publisher's own layout, which transformers does not read either.
COPY = 'consolidated*.safetensors'
DTYPES = ('F32', 'BF16', 'F16')
# Large files as a clone without Git LFS has them begin with this.
POINTER = b'version https://git-lfs'
PIECE = 64 << 20  # bytes of two tensors that are compared at a time


def read_json(path: str | os.PathLike) -> dict:
  """Return the JSON object of a file. Raises DataError."""
  path = pathlib.Path(path)
  refuse_pointer(path)
  try:
    content = json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=_without_repeats)
  except FileNotFoundError as error:
    raise DataError(
      f'{path}: no such file; must be there in a folder of a pretrained model'
    ) from error
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f'{path}: cannot be read ({error}); must be JSON') from error
  if not isinstance(content, dict):
    raise DataError(f'{path}: must be a JSON object')
  return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
  content = dict(pairs)
  for name, value in pairs:
    if content[name] != value:
      raise ValueError(f'{name!r} is there twice, with different values')
  return content


def refuse_pointer(path: pathlib.Path) -> None:
  """Raise DataError where Git LFS left a pointer in place of the file."""
  if not path.is_file():
    return
  with path.open('rb') as file:
    if file.read(len(POINTER)) == POINTER:
      raise DataError(
        f'{path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder '
        '(once `git lfs install` was run), or download it again'
      )


class Tensors:
  """Tensors by their published names (names.py), whatever they are called in their files.

  Only what a caller reads is loaded.
  """

  folder: pathlib.Path  # where they come from, for errors

  @property
  def names(self) -> set[str]:
    """All tensors."""
    raise NotImplementedError

  def where(self, name: str) -> str:
    """Return the path of a tensor's file and its name there, as an error has them."""
    raise NotImplementedError

  def shape(self, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor."""
    raise NotImplementedError

  def dtype(self, name: str) -> str:
    """Return the type of a tensor: F32, BF16, F16."""
    raise NotImplementedError

  def read(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """Return a box of a tensor."""
    raise NotImplementedError

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the tensor exists, in this shape and a floating type."""
    if name not in self.names:
      raise DataError(f'{self.folder}: no tensor {name}; must be there, as config.json has it')
    if self.shape(name) != tuple(shape):
      raise DataError(
        f'{self.where(name)} has shape {list(self.shape(name))}; '
        f'must be {list(shape)}, as config.json has it'
      )
    if self.dtype(name) not in DTYPES:
      raise DataError(
        f'{self.where(name)} is of type {self.dtype(name)}; must be one of {", ".join(DTYPES)}'
      )

  def equal(self, one: str, other: str) -> bool:
    """Return whether two matrices hold the same numbers."""
    rows, width = self.shape(one)
    if self.shape(other) != (rows, width):
      return False
    step = max(1, PIECE // (8 * width))
    boxes = ((slice(i, min(i + step, rows)), slice(0, width)) for i in range(0, rows, step))
    return all(np.array_equal(self._fp32(one, box), self._fp32(other, box)) for box in boxes)

  def _fp32(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
    return self.read(name, box).astype(np.float32)


class TensorFiles(Tensors):
  """The tensors of a folder of safetensors, in mapped files."""

  def __init__(self, folder: str | os.PathLike) -> None:
    """Open the files.

    Raises DataError when an index, a file or a header is missing or damaged, when index and files
    disagree, and when there are two sets of weights.
    """
    self.folder = pathlib.Path(folder)
    weight_map = self._read_index()
    used = sorted(set(weight_map.values())) if weight_map else [SINGLE]
    self._refuse_other_weights(used)
    self._files = {name: self._open(name) for name in used}
    file_of = self._file_of_each()
    for tensor, name in (weight_map or {}).items():
      if file_of.get(tensor) != name:
        raise DataError(
          f'{self.folder / name}: has no tensor {tensor}, which {INDEX} says is there'
        )
    for tensor, name in file_of.items():
      if weight_map and tensor not in weight_map:
        raise DataError(
          f'{self.folder / name}: has a tensor {tensor}, which {INDEX} does not name; '
          'must be the files that the index was written with'
        )
    paths = {tensor: str(self.folder / name) for tensor, name in file_of.items()}
    # Published name -> (file, name in it).
    self._place = {
      published: (file_of[tensor], tensor) for published, tensor in standard(paths).items()
    }

  def _read_index(self) -> dict[str, str] | None:
    """Return tensor name -> file name; None when there is no index."""
    path = self.folder / INDEX
    if not path.exists():
      return None
    weight_map = read_json(path).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise DataError(f'{path}: must have a weight_map of tensor names and files')
    for tensor, name in weight_map.items():
      if not isinstance(name, str) or not name or pathlib.Path(name).name != name:
        raise DataError(
          f'{path}: {tensor} is in {name!r:.100}; must be the name of a file in the folder'
        )
    return weight_map

  def _refuse_other_weights(self, used: list[str]) -> None:
    """Raise DataError on weights in the folder that would be ignored."""
    for path in sorted(self.folder.glob('*.safetensors')):
      is_known = (
        path.name in (*used, EQUATIONS_FILE) or path.match(COPY) or path.name.startswith('.')
      )
      if not is_known:
        named_by = INDEX if used != [SINGLE] else SINGLE
        raise DataError(
          f'{path}: weights beside those of {named_by}; must be one set of weights, '
          'so move the others away'
        )

  def _open(self, name: str) -> Any:
    """Return an open safetensors file."""
    path = self.folder / name
    if not path.is_file():
      named_by = '' if name == SINGLE else f', as {INDEX} names it'
      raise DataError(
        f'{path}: no such file; must be there with the weights of the model{named_by} '
        '(was the download interrupted? run it again)'
      )
    refuse_pointer(path)
    try:
      return safe_open(path, framework='numpy')
    except (SafetensorError, OSError) as error:
      raise DataError(
        f'{path}: cannot be read ({error}); must be a whole safetensors file'
      ) from error

  def _file_of_each(self) -> dict[str, str]:
    """Return tensor name -> the only file that has it."""
    file_of: dict[str, str] = {}
    for name, file in self._files.items():
      for tensor in file.keys():
        if tensor in file_of:
          raise DataError(
            f'{self.folder / name}: has {tensor}, which {file_of[tensor]} has too; '
            'must be in one file'
          )
        file_of[tensor] = name
    return file_of

  @property
  def names(self) -> set[str]:
    return set(self._place)

  def where(self, name: str) -> str:
    file, tensor = self._place[name]
    return f'{self.folder / file}: {tensor}'

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._slice(name).get_shape())

  def dtype(self, name: str) -> str:
    return self._slice(name).get_dtype()

  def read(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """Return a box of a tensor in the type of the file."""
    return self._slice(name)[box]

  def _slice(self, name: str) -> Any:
    file, tensor = self._place[name]
    return self._files[file].get_slice(tensor)


def elements(box: tuple[slice, ...]) -> int:
  """Return the number of elements of a box."""
  return math.prod(axis.stop - axis.start for axis in box)
