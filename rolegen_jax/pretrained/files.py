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

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = ('F32', 'BF16', 'F16')


def read_json(path: str | os.PathLike) -> dict:
  """Return the JSON object of a file. Raises DataError."""
  path = pathlib.Path(path)
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise DataError(
      f'{path}: no such file; must be there in a folder of a pretrained model'
    ) from error
  except ValueError as error:
    raise DataError(f'{path}: cannot be read ({error}); must be JSON') from error
  if not isinstance(content, dict):
    raise DataError(f'{path}: must be a JSON object')
  return content


class TensorFiles:
  """Boxes of tensors, read straight from mapped files: only what a caller reads is loaded."""

  def __init__(self, folder: str | os.PathLike) -> None:
    """Open the files. Raises DataError when an index, a file or a header is missing or damaged."""
    self.folder = pathlib.Path(folder)
    weight_map = self._read_index()
    names = sorted(set(weight_map.values())) if weight_map else [SINGLE]
    self._files = {name: self._open(name) for name in names}
    self._file_of = weight_map or {tensor: SINGLE for tensor in self._files[SINGLE].keys()}
    tensors_of = {name: set(file.keys()) for name, file in self._files.items()}
    for tensor, name in self._file_of.items():
      if tensor not in tensors_of[name]:
        raise DataError(
          f'{self.folder / name}: has no tensor {tensor}, which {INDEX} says is there'
        )

  def _read_index(self) -> dict[str, str] | None:
    """Return tensor name -> file name; None when there is no index."""
    path = self.folder / INDEX
    if not path.exists():
      return None
    weight_map = read_json(path).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise DataError(f'{path}: must have a weight_map of tensor names and files')
    return weight_map

  def _open(self, name: str) -> Any:
    """Return an open safetensors file."""
    path = self.folder / name
    if not path.exists():
      named_by = '' if name == SINGLE else f', as {INDEX} names it'
      raise DataError(
        f'{path}: no such file; must be there with the weights of the model{named_by}'
      )
    try:
      return safe_open(path, framework='numpy')
    except (SafetensorError, OSError) as error:
      raise DataError(
        f'{path}: cannot be read ({error}); must be a whole safetensors file'
      ) from error

  @property
  def names(self) -> set[str]:
    """All tensors."""
    return set(self._file_of)

  def shape(self, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor."""
    return tuple(self._slice(name).get_shape())

  def dtype(self, name: str) -> str:
    """Return the type of a tensor: F32, BF16, F16."""
    return self._slice(name).get_dtype()

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the tensor exists, in this shape and a floating type."""
    if name not in self._file_of:
      raise DataError(f'{self.folder}: no tensor {name}; must be there, as config.json has it')
    path = self.folder / self._file_of[name]
    if self.shape(name) != tuple(shape):
      raise DataError(
        f'{path}: {name} has shape {list(self.shape(name))}; '
        f'must be {list(shape)}, as config.json has it'
      )
    if self.dtype(name) not in DTYPES:
      raise DataError(
        f'{path}: {name} is of type {self.dtype(name)}; must be one of {", ".join(DTYPES)}'
      )

  def read(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """Return a box of a tensor in the type of the file."""
    return self._slice(name)[box]

  def _slice(self, name: str) -> Any:
    return self._files[self._file_of[name]].get_slice(name)


def elements(box: tuple[slice, ...]) -> int:
  """Return the number of elements of a box."""
  return math.prod(axis.stop - axis.start for axis in box)
