"""`--set a.b=c`: replace one field of a frozen config.

An unknown field is an error that names the nearest one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import typing
from typing import Any

from rolegen_jax import fields
from rolegen_jax.config import Config
from rolegen_jax.fields import ConfigError


def field_paths(config: Any, prefix: str = '') -> list[str]:
  """Return the dotted paths of all leaf fields."""
  paths = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    path = prefix + field.name
    paths += field_paths(value, path + '.') if dataclasses.is_dataclass(value) else [path]
  return paths


def apply(config: Config, assignments: list[str]) -> Config:
  """Return the validated config after `a.b=c` assignments, in order.

  Raises ConfigError on an unknown field, a wrong type or a wrong value.
  """
  for assignment in assignments:
    path, separator, text = assignment.partition('=')
    if not separator:
      raise ConfigError(f'--set {assignment!r}: must be field=value')
    known = field_paths(config)
    if path not in known:
      nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.0)[0]
      raise ConfigError(f'--set {path}: no such field; the nearest is {nearest}')
    config = _replace(config, path.split('.'), path, text)
  return config.validated()


def _replace(section: Any, parts: list[str], path: str, text: str) -> Any:
  name, *inner = parts
  old = getattr(section, name)
  if inner:
    new = _replace(old, inner, path, text)
  else:
    new = _parse(fields.types(type(section))[name], old, path, text)
  return dataclasses.replace(section, **{name: new})


def _parse(kind: Any, old: Any, path: str, text: str) -> Any:
  """Return `text` as a value of type `kind`; `old` is an example of it."""
  if kind is str:
    return text
  try:
    return fields.coerced(_literal(text), kind)
  except TypeError as error:
    if old == ():
      old = (1, 10) if int in typing.get_args(kind) else ('name',)
    raise ConfigError(
      f'--set {path}={text}: must be of type {fields.named(kind)}, like {old!r}'
    ) from error


def _literal(text: str) -> Any:
  """Return what `text` stands for in Python; None where it is no literal."""
  literal = {'true': 'True', 'false': 'False'}.get(text, text)
  try:
    return ast.literal_eval(literal)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None
