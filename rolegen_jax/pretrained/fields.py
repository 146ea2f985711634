"""The fields of a config.json by name, each of its type.

A null field is an absent one. Every refusal names the field, what it says and what would be right.
"""

from __future__ import annotations

import math
from typing import Any

from rolegen_jax.config import ConfigError

MOST = 2**31 - 1


class Unsupported(ConfigError):
  """A config.json asks for something that is not supported. The message names the field."""


def get(hf_config: dict, name: str, default: Any = None) -> Any:
  """Return a field; `default` where it is absent or null."""
  value = hf_config.get(name)
  return default if value is None else value


def count(
  hf_config: dict, name: str, default: int | None = None, least: int = 1, most: int = MOST
) -> int:
  """Return a whole number from `least` to `most`; without a default it must be there."""
  value = _present(hf_config, name, default)
  if type(value) is not int or not least <= value <= most:
    raise refusal(name, value, f'must be a whole number from {least} to {most}')
  return value


def number(hf_config: dict, name: str, default: float | None = None) -> float:
  """Return a positive number; without a default it must be there."""
  value = _present(hf_config, name, default)
  is_number = type(value) in (int, float) and 0 < value <= 1e30  # false for nan
  if not is_number:
    raise refusal(name, value, 'must be a positive number')
  return float(value)


def flag(hf_config: dict, name: str, default: bool) -> bool:
  """Return true or false."""
  value = get(hf_config, name, default)
  if type(value) is not bool:
    raise refusal(name, value, 'must be true or false')
  return value


def mapping(hf_config: dict, name: str) -> dict:
  """Return an object; an empty one where the field is absent."""
  value = get(hf_config, name, {})
  if not isinstance(value, dict):
    raise refusal(name, value, 'must be an object')
  return value


def refusal(name: str, value: Any, reason: str) -> Unsupported:
  """Return the error about a field of this value."""
  return Unsupported(f'config.json: {name}={shown(value)}: {reason}')


def shown(value: Any) -> str:
  """Return a value as an error shows it: on one line, cut where it is long."""
  text = repr(value)
  return text if len(text) <= 200 else f'{text[:200]}...'


def same(one: Any, other: Any) -> bool:
  """Return whether two fields say the same; 1 and 1.0 do."""
  if isinstance(one, float) and isinstance(other, float):
    return math.isclose(one, other, rel_tol=1e-12)
  return one == other


def _present(hf_config: dict, name: str, default: Any) -> Any:
  value = get(hf_config, name, default)
  if value is None:
    raise Unsupported(f'config.json: {name} is missing')
  return value
