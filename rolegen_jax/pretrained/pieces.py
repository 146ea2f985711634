"""Whether a folder's tokenizer is the one that its weights were trained with."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained.fields import shown
from rolegen_jax.pretrained.files import read_json, refuse_pointer
from rolegen_jax.text.tokenizers import JSON, MODEL, Tokenizer, open_tokenizer

_DELIMITERS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
_CONFIGS = ('config.json', 'generation_config.json')


def open_checked(folder: pathlib.Path, rows: int) -> Tokenizer:
  """Return the tokenizer of a folder whose token table has so many rows.

  Delimiters may lie beyond the rows: Gemma's text models share the tokenizer of those that read
  images, whose delimiter has no row. A text that holds one is refused when it is encoded. Raises
  DataError.
  """
  for name in (JSON, MODEL):
    refuse_pointer(folder / name)
  tokenizer = open_tokenizer(folder)
  path = folder / tokenizer.file
  if not all(tokenizer.is_delimiter(piece) for piece in range(rows, tokenizer.size)):
    raise DataError(
      f'{path}: has {tokenizer.size} pieces, the weights have {rows} rows; '
      'must be the tokenizer of these weights'
    )
  for config in _CONFIGS:
    if config == 'config.json' or (folder / config).exists():
      _check_delimiters(tokenizer, path, config, read_json(folder / config))
  for where, name, piece in _added(folder):
    known = tokenizer.id_of(name)
    if known != piece and (known is not None or piece < rows):
      raise DataError(
        f'{where}: added token {name!r:.100} is piece {piece}, {tokenizer.file} is read with it as '
        f'{known}; must be of one tokenizer'
      )
  return tokenizer


def _check_delimiters(tokenizer: Tokenizer, path: pathlib.Path, config: str, content: dict) -> None:
  """Raise DataError where a config names a delimiter that the tokenizer does not have."""
  for name in _DELIMITERS:
    value = content.get(name)
    pieces = value if isinstance(value, list) else [] if value is None else [value]
    for piece in pieces:
      if type(piece) is not int:
        raise DataError(
          f'{path.with_name(config)}: {name}={shown(value)}; must be the number of a piece'
        )
      if piece >= 0 and not tokenizer.is_delimiter(piece):
        raise DataError(
          f'{path}: piece {piece}, which is {name} in {config}, is not a delimiter '
          'there; must be the tokenizer of these weights'
        )


def _added(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, str, int]]:
  """Yield (file, name, piece) of every piece that a file says was added to the tokenizer.

  The library numbers the pieces of tokenizer.json anew where their numbers leave a gap.
  """
  entries: list[tuple[pathlib.Path, Any, Any]] = []
  path = folder / JSON
  for token in _content(path, 'added_tokens', list):
    entries.append((path, token, token.get('id') if isinstance(token, dict) else None))
  path = folder / 'tokenizer_config.json'
  for piece, token in _content(path, 'added_tokens_decoder', dict).items():
    entries.append((path, token, int(piece) if piece.isdecimal() else piece))
  path = folder / 'added_tokens.json'
  for name, piece in (read_json(path) if path.exists() else {}).items():
    entries.append((path, name, piece))
  for path, token, piece in entries:
    name = token.get('content') if isinstance(token, dict) else token
    if type(piece) is not int or not isinstance(name, str):
      raise DataError(
        f'{path}: added token {shown(token)} is piece {shown(piece)}; must be a number'
      )
    yield path, name, piece


def _content(path: pathlib.Path, name: str, kind: type) -> Any:
  """Return a field of a file; an empty one where file or field is absent."""
  content = (read_json(path) if path.exists() else {}).get(name)
  if content is not None and not isinstance(content, kind):
    raise DataError(f'{path}: {name}={shown(content)}; must be a {kind.__name__}')
  return content or kind()
