"""`--set a.b=c`: replace one field of a frozen config; an unknown field is an error that names the nearest one."""

from __future__ import annotations

import ast
import dataclasses
import difflib

from rolegen_jax.config import Config, ConfigError, validate


def field_paths(config, prefix: str = '') -> list[str]:
  """Dotted paths of all leaf fields."""
  paths = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    path = prefix + field.name
    paths += field_paths(value, path + '.') if dataclasses.is_dataclass(value) else [path]
  return paths


def apply(config: Config, assignments: list[str]) -> Config:
  """The validated config after `a.b=c` assignments, in order. Raises ConfigError on an unknown field or a wrong type."""
  for assignment in assignments:
    path, separator, text = assignment.partition('=')
    if not separator:
      raise ConfigError(f'--set {assignment!r}: must be field=value')
    known = field_paths(config)
    if path not in known:
      near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)[0]
      raise ConfigError(f'--set {path}: no such field; the nearest is {near}')
    config = _replace(config, path.split('.'), path, text)
  return validate(config)


def _replace(section, parts: list[str], path: str, text: str):
  old = getattr(section, parts[0])
  new = _replace(old, parts[1:], path, text) if len(parts) > 1 else _parse(old, path, text)
  return dataclasses.replace(section, **{parts[0]: new})


def _parse(old, path: str, text: str):
  if isinstance(old, str):
    return text
  literal = {'true': 'True', 'false': 'False'}.get(text, text)
  try:
    value = ast.literal_eval(literal)
  except (ValueError, SyntaxError):
    value = None
  if isinstance(old, bool) and isinstance(value, bool):
    return value
  if isinstance(old, int) and not isinstance(old, bool) and type(value) is int:
    return value
  if isinstance(old, float) and type(value) in (int, float):
    return float(value)
  if (
    isinstance(old, tuple)
    and isinstance(value, (tuple, list))
    and all(type(v) is type(old[0]) for v in value)
  ):
    return tuple(value)
  raise ConfigError(f'--set {path}={text}: must be of type {type(old).__name__}, like {old!r}')
