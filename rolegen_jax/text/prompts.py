"""The templates of prompts.toml, checked once: every section is there, and no template asks for a value that nobody has."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import string
import tomllib

from rolegen_jax.config import ROLE_NAMES, ConfigError

FILE = pathlib.Path(__file__).with_name('prompts.toml')
ATTRIBUTES = ('title', 'category', 'brand')  # that may be asked for
ITEM, QUESTION = {'title', 'category', 'brand', 'item'}, {'item', 'described'}


@functools.cache
def templates() -> dict:
  return check(tomllib.loads(FILE.read_text(encoding='utf-8')))


@functools.cache
def digest() -> str:
  """16 hex digits over the file: what was trained with other words is trained again."""
  return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]


def check(said: dict) -> dict:
  """The parsed file as it is. Raises ConfigError naming the template that is missing or asks for an unknown value."""

  def need(path: str, values: set[str]):
    found = said
    for part in path.split('.'):
      if not isinstance(found, dict) or part not in found:
        raise ConfigError(f'{FILE.name}: {path} is missing')
      found = found[part]
    unknown = {
      name for _, name, _, _ in string.Formatter().parse(found) if name is not None
    } - values
    if unknown:
      raise ConfigError(
        f'{FILE.name}: {path} asks for {{{sorted(unknown)[0]}}}; must be some of {", ".join(sorted(values))}'
      )

  for attribute in ATTRIBUTES:
    for task in ('sid_to_text', 'masked_attribute'):
      need(f'align.{task}.{attribute}.question', QUESTION)
      need(f'align.{task}.{attribute}.answer', ITEM)
  need('align.text_to_sid.item.question', QUESTION - {'item'})
  need('align.text_to_sid.item.answer', {'item'})
  need('align.described.attribute', {'name', 'value'})
  for name in ('between', 'masked'):
    need(f'align.described.{name}', set())
  for role in ROLE_NAMES:
    need(f'rationale.role.{role}', {'title', 'category', 'wanted'})
    need(f'annotate.roles.{role}', set())
  need('rationale.intent.intent', {'category'})
  need('annotate.prompt', {'events', 'roles', 'when', 'bought'})
  need('annotate.event', {'number', 'when', 'event', 'item'})
  need('annotate.role', {'name', 'meaning'})
  return said
