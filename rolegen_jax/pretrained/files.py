"""The tensors of a folder of safetensors by name, whatever files they lie in. Headers are checked before a number is read."""

from __future__ import annotations

import json
import math
import os
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open

from rolegen_jax.data.files import DataError

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = ('F32', 'BF16', 'F16')


def read_json(path: str | os.PathLike) -> dict:
  """Raises DataError."""
  path = pathlib.Path(path)
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise DataError(
      f'{path}: no such file; must be there in a folder of a pretrained model'
    ) from error
  except ValueError as error:
    raise DataError(f'{path}: cannot be read ({error}); must be JSON') from error
  if not isinstance(found, dict):
    raise DataError(f'{path}: must be a JSON object')
  return found


class TensorFiles:
  """Boxes of tensors, read straight from mapped files: what is not asked for is not read.

  Raises DataError when an index, a file or a header is missing or damaged.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    if (self.folder / INDEX).exists():
      where = read_json(self.folder / INDEX).get('weight_map')
      if not isinstance(where, dict) or not where:
        raise DataError(f'{self.folder / INDEX}: must have a weight_map of tensor names and files')
    else:
      where = None
    files = sorted(set(where.values())) if where else [SINGLE]
    self._open = {name: self._header(name) for name in files}
    self._file = where or {name: SINGLE for name in self._open[SINGLE].keys()}
    held = {name: set(file.keys()) for name, file in self._open.items()}
    for tensor, name in self._file.items():
      if tensor not in held[name]:
        raise DataError(
          f'{self.folder / name}: has no tensor {tensor}, which {INDEX} says is there'
        )

  def _header(self, name: str):
    path = self.folder / name
    if not path.exists():
      raise DataError(
        f'{path}: no such file; must be there with the weights of the model'
        + ('' if name == SINGLE else f', as {INDEX} names it')
      )
    try:
      return safe_open(path, framework='numpy')
    except (SafetensorError, OSError) as error:
      raise DataError(
        f'{path}: cannot be read ({error}); must be a whole safetensors file'
      ) from error

  @property
  def names(self) -> set[str]:
    return set(self._file)

  @property
  def largest(self) -> int:
    """Bytes of the largest file."""
    return max((self.folder / name).stat().st_size for name in self._open)

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._slice(name).get_shape())

  def dtype(self, name: str) -> str:
    """F32, BF16, F16."""
    return self._slice(name).get_dtype()

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Raises DataError unless the tensor is there, in this shape and a floating type."""
    if name not in self._file:
      raise DataError(f'{self.folder}: no tensor {name}; must be there, as config.json has it')
    path = self.folder / self._file[name]
    if self.shape(name) != tuple(shape):
      raise DataError(
        f'{path}: {name} has shape {list(self.shape(name))}; must be {list(shape)}, as config.json has it'
      )
    if self.dtype(name) not in DTYPES:
      raise DataError(
        f'{path}: {name} is of type {self.dtype(name)}; must be one of {", ".join(DTYPES)}'
      )

  def read(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """A box of a tensor in the type of the file."""
    return self._slice(name)[box]

  def _slice(self, name: str):
    return self._open[self._file[name]].get_slice(name)


def elements(box: tuple[slice, ...]) -> int:
  return math.prod(s.stop - s.start for s in box)
