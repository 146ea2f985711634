"""What a field of the configuration may hold: its type, the range of its kind, a local path.

`Section` is the base of every section of `config.py`, which says the range of each field. No jax
here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Iterable
from typing import Any

# Whole numbers end up in int32 arrays and as seeds of 32 bits, the others in float32.
LARGEST_INT = 2**31 - 1
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-12, 1e12
# A URL, or a path of another system. Taken as a path of this one, it is a folder of that name.
NOT_LOCAL = re.compile(r'://|^[A-Za-z][\w+.-]*:[/\\]|^\\')
# A folder or object of an object store; all of them want names of 3 to 63 characters.
BUCKET = re.compile(
  r'(?P<scheme>gs|s3)://(?P<bucket>[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(/[^/]+)*/?$'
)
VARIABLE = re.compile(r'\$(\w+|\{[^}]*\})')


# Folders of this machine that hold copies -> the URL of what they are copies of.
COPIES: dict[str, str] = {}


def as_given(text: str) -> str:
  """Return a message with the URLs of files in place of the names of their copies."""
  for copy, url in COPIES.items():
    text = text.replace(copy, url)
  return text


class Refusal(ValueError):
  """Input is wrong. The message is one line, whatever text from outside it quotes."""

  def __str__(self) -> str:
    text = as_given(super().__str__())
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ConfigError(Refusal):
  """A field of the configuration is wrong. The message names it and what would be right."""


class Section:
  """What the sections share: each validates its fields, and says which one is wrong."""

  def validate(self, name: str) -> None:
    """Raise ConfigError naming the first wrong field of this section, whose path is `name`."""

  def _need(self, ok: bool, path: str, right: str) -> None:
    """Raise ConfigError unless `ok`; the last part of `path` is the field's name."""
    if not ok:
      value = getattr(self, path.rpartition('.')[2])
      raise ConfigError(f'{path}={value!r}: must be {right}')

  def _at_least(self, least: float, prefix: str, *names: str) -> None:
    for name in names:
      self._need(getattr(self, name) >= least, f'{prefix}.{name}', f'at least {least:g}')

  def _at_most(self, most: float, prefix: str, *names: str) -> None:
    for name in names:
      self._need(getattr(self, name) <= most, f'{prefix}.{name}', f'at most {most}')

  def _positive(self, prefix: str, *names: str) -> None:
    for name in names:
      self._need(getattr(self, name) > 0, f'{prefix}.{name}', 'positive')

  def _share(self, prefix: str, *names: str) -> None:
    for name in names:
      self._need(0 <= getattr(self, name) <= 1, f'{prefix}.{name}', '0 to 1')

  def _one_of(self, options: Iterable[str], path: str) -> None:
    value = getattr(self, path.rpartition('.')[2])
    self._need(value in options, path, 'one of ' + ', '.join(map(repr, options)))

  def _some_of(self, options: Iterable[str], path: str) -> None:
    values = getattr(self, path.rpartition('.')[2])
    ok = len(values) > 0 and set(values) <= set(options) and len(set(values)) == len(values)
    self._need(ok, path, 'different ones of ' + ', '.join(options))


_hints = functools.cache(typing.get_type_hints)


def types(section: Any) -> dict[str, Any]:
  """Return the declared type of each field of a section."""
  return _hints(section)


def named(kind: Any) -> str:
  """Return the name of a field's type, such as 'int' or 'tuple of str'."""
  items = typing.get_args(kind)
  return f'tuple of {items[0].__name__}' if items else kind.__name__


def coerced(value: Any, kind: Any) -> Any:
  """Return a value, of the command line or of JSON, as the type of its field.

  Raises TypeError where it is of another type. A whole number is a fine float.
  """
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (tuple, list)):
      raise TypeError
    return tuple(coerced(item, typing.get_args(kind)[0]) for item in value)
  if kind is float and type(value) is int:
    too_large = math.inf if value > 0 else -math.inf  # float() would raise OverflowError
    return float(value) if abs(value) <= LARGEST_FLOAT else too_large
  if type(value) is not kind:
    raise TypeError
  return value


def check_types(section: Section, prefix: str = '') -> None:
  """Raise ConfigError naming the first field whose type is wrong, or whose value no run can use.

  `prefix` is the path of the section, with a dot at its end.
  """
  for name, kind in types(type(section)).items():
    value, path = getattr(section, name), prefix + name
    if dataclasses.is_dataclass(kind):
      if not isinstance(value, typing.cast(type, kind)):
        raise ConfigError(f'{path}={value!r}: must be a {named(kind)}')
      check_types(typing.cast(Section, value), f'{path}.')
      continue
    try:
      is_right = type(coerced(value, kind)) in (type(value), float)
    except TypeError:
      is_right = False
    if not is_right:
      raise ConfigError(f'{path}={value!r}: must be of type {named(kind)}')
    for item in value if isinstance(value, tuple) else (value,):
      if wrong := _out_of_range(item):
        raise ConfigError(f'{path}={value!r}: must be {wrong}')


def _out_of_range(value: Any) -> str:
  """Return what a number or a text must be; '' where it is."""
  if isinstance(value, str):
    return '' if value.isprintable() else 'printable text on one line'
  size = abs(value)
  if isinstance(value, int):
    return '' if size <= LARGEST_INT else f'at most {LARGEST_INT} in size'
  if not size or SMALLEST_FLOAT <= size <= LARGEST_FLOAT:
    return ''
  return f'finite: 0, or {SMALLEST_FLOAT:g} to {LARGEST_FLOAT:g} in size'


def local_path(text: str, name: str, urls: bool = False) -> str:
  """Return the path of a flag or field, as `expanded` does. Raises ConfigError naming it."""
  try:
    return expanded(text, urls)
  except ValueError as error:
    raise ConfigError(f'{name}={text}: {error}') from error


def expanded(text: str, urls: bool = False) -> str:
  """Return a path of this machine with `~` and $VARIABLES expanded.

  urls: whether it may be a URL of a bucket too. Raises ValueError, saying what would be right, on
  another URL, on an unknown user or variable, and on nothing at all.
  """
  path = os.path.expanduser(os.path.expandvars(text))
  right = 'must be a file system path'
  if urls and path.isprintable() and BUCKET.match(path):
    return path.rstrip('/')
  if NOT_LOCAL.search(path):
    if urls:
      raise ValueError(f'{right}, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER; not other URLs')
    refused = 'URLs (gs://, s3://, file://) are not supported'
    raise ValueError(f'{right}, such as one of a mounted bucket; {refused}')
  if unknown := VARIABLE.search(path):
    raise ValueError(f'{right}; the variable {unknown.group()} is not set')
  if path.startswith('~'):
    raise ValueError(f'{right}; there is no user {path.partition("/")[0]}')
  if not path.strip() or not path.isprintable():
    raise ValueError(f'{right} of printable characters')
  return path
