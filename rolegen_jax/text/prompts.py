"""The templates of prompts.toml, checked when they are read.

Every section must be present, and no template may use a value that its caller does not provide.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import string
import tomllib
from typing import Any

from rolegen_jax.config import ROLE_NAMES, ConfigError

FILE = pathlib.Path(__file__).with_name('prompts.toml')
# The attributes of an item that a question may be about.
ATTRIBUTES = ('title', 'category', 'brand')
ANSWER_VALUES = {'title', 'category', 'brand', 'item'}
QUESTION_VALUES = {'item', 'described'}


@functools.cache
def templates() -> dict:
  """Return the content of prompts.toml."""
  return check(tomllib.loads(FILE.read_text(encoding='utf-8')))


@functools.cache
def digest() -> str:
  """Return 16 hex digits over the file: what was trained with other words is trained again."""
  return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]


def check(content: dict) -> dict:
  """Return the parsed file unchanged.

  Raises ConfigError naming the template that is missing or uses an unknown value.
  """
  for path, values in _required().items():
    _check_template(content, path, values)
  return content


def _required() -> dict[str, set[str]]:
  """Return the path of every template -> the values that it may use."""
  required: dict[str, set[str]] = {}
  for attribute in ATTRIBUTES:
    for task in ('sid_to_text', 'masked_attribute'):
      required[f'align.{task}.{attribute}.question'] = QUESTION_VALUES
      required[f'align.{task}.{attribute}.answer'] = ANSWER_VALUES
  required |= {
    'align.text_to_sid.item.question': QUESTION_VALUES - {'item'},
    'align.text_to_sid.item.answer': {'item'},
    'align.described.attribute': {'name', 'value'},
    'align.described.between': set(),
    'align.described.masked': set(),
  }
  for role in ROLE_NAMES:
    required[f'rationale.role.{role}'] = {'title', 'category', 'wanted'}
    required[f'annotate.roles.{role}'] = set()
  return required | {
    'rationale.intent.intent': {'category'},
    'annotate.prompt': {'events', 'roles', 'when', 'bought'},
    'annotate.event': {'number', 'when', 'event', 'item'},
    'annotate.role': {'name', 'meaning'},
  }


def _check_template(content: dict, path: str, values: set[str]) -> None:
  node: Any = content
  for part in path.split('.'):
    if not isinstance(node, dict) or part not in node:
      raise ConfigError(f'{FILE.name}: {path} is missing')
    node = node[part]
  used = {name for _, name, _, _ in string.Formatter().parse(node) if name is not None}
  unknown = sorted(used - values)
  if unknown:
    raise ConfigError(
      f'{FILE.name}: {path} uses {{{unknown[0]}}}; must be some of {", ".join(sorted(values))}'
    )
