"""What a stage read, kept beside its result, so that a difference can be named."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rolegen_jax.config import digest
from rolegen_jax.data.files import DataError
from rolegen_jax.data.folders import is_same


class Difference(NamedTuple):
  """Why a stage that is there cannot be used."""

  what: str  # follows the name of the stage
  way_back: str = ''  # what would undo it, if anything would


@dataclasses.dataclass(frozen=True)
class Record:
  """What a stage reads, by name; all of it JSON."""

  stage: str
  # By the full names of the fields; of `max(FIELD)` it is enough that the old value is no smaller.
  settings: Mapping[str, Any]
  files: Mapping[str, Any]  # from outside the run folder: what is in them
  inputs: Mapping[str, Any]  # hashes and keys of what earlier stages left

  @functools.cached_property
  def key(self) -> str:
    """16 hex digits over all of it."""
    return digest(self.stage, self.settings, self.files, self.inputs)

  def to_json(self) -> dict[str, Any]:
    """Return what is written to a file: the key and all that it is made of."""
    return dict(key=self.key, **dataclasses.asdict(self))

  def difference(self, now: Record, with_inputs: bool = True) -> Difference | None:
    """Return the first kind of thing that is another one now; None = nothing is.

    with_inputs: whether what earlier stages left counts.
    """
    if changes := _changes(self.settings, now.settings):
      pairs = (f'{name}={_shown(old)}, now {_shown(new)}' for name, (old, new) in changes.items())
      return Difference(f'was trained with {", and ".join(pairs)}', 'give the old value, ')
    if changes := _changes(self.files, now.files, _is_same_file):
      fates = (f'{name} {_fate(*pair)}' for name, pair in changes.items())
      return Difference(f'was made from other files: {", ".join(fates)}', 'put them back, ')
    if with_inputs and (changes := _changes(self.inputs, now.inputs)):
      return Difference(f'was trained on another {", ".join(changes)}')
    return None


def read(path: pathlib.Path, otherwise: Record | None = None) -> Record | None:
  """Return the record in a file; `otherwise` where there is none, or it is not what was written.

  Raises KeyError when another version wrote it, and DataError when there is something else.
  """
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
    record = Record(*(values[field.name] for field in dataclasses.fields(Record)))
    return record if record.key == values['key'] else otherwise
  except (FileNotFoundError, ValueError, TypeError, RecursionError):
    return otherwise
  except OSError as error:
    raise DataError(
      f'{path}: cannot be read ({error.strerror}); must be a file that its stage wrote'
    ) from error


def _changes(
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  serves: Callable[[str, Any, Any], bool] | None = None,
) -> dict[str, tuple[Any, Any]]:
  """Return name -> (value in `old`, value in `new`) where they differ; None = not there."""
  pairs = {name: (old.get(name), new.get(name)) for name in [*old, *new]}
  return {name: pair for name, pair in pairs.items() if not (serves or _serves)(name, *pair)}


def _is_same_file(name: str, old: Any, new: Any) -> bool:
  """Return whether a file is what a stage read, of which older versions kept size and time."""
  return is_same(new, old)


def _serves(name: str, old: Any, new: Any) -> bool:
  """Return whether what was made with `old` is what `new` asks for."""
  if name.startswith('max(') and None not in (old, new):
    return old >= new  # what holds more holds less
  return old == new


def _shown(value: Any) -> str:
  return 'nothing' if value is None else repr(tuple(value) if isinstance(value, list) else value)


def _fate(old: Any, new: Any) -> str:
  return 'is new' if old is None else 'is gone' if new is None else 'has changed'
