"""`--set a.b=c`: replace one field of a frozen config.

An unknown field is an error that names the nearest one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from typing import Any

from rolegen_jax.config import Config, ConfigError


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
  old = getattr(section, parts[0])
  new = _replace(old, parts[1:], path, text) if len(parts) > 1 else _parse(old, path, text)
  return dataclasses.replace(section, **{parts[0]: new})


def _parse(old: Any, path: str, text: str) -> Any:
  """Return `text` as a value of the type of `old`."""
  if isinstance(old, str):
    return text
  literal = {'true': 'True', 'false': 'False'}.get(text, text)
  try:
    value = ast.literal_eval(literal)
  except (ValueError, SyntaxError):
    value = None
  if isinstance(old, bool):
    if isinstance(value, bool):
      return value
  elif isinstance(old, int):
    if type(value) is int:
      return value
  elif isinstance(old, float):
    if type(value) in (int, float):
      return float(value)
  elif isinstance(old, tuple) and isinstance(value, (tuple, list)):
    if all(type(item) is type(old[0]) for item in value):
      return tuple(value)
  raise ConfigError(f'--set {path}={text}: must be of type {type(old).__name__}, like {old!r}')
