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
    if piece < rows and tokenizer.id_of(name) != piece:
      raise DataError(
        f'{where}: {name!r:.100} is piece {piece}, in {tokenizer.file} it is '
        f'{tokenizer.id_of(name)}; must be of the same tokenizer'
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
  """Yield (file, name, piece) of every piece that other files say was added to the tokenizer."""
  path = folder / 'tokenizer_config.json'
  listed: Any = read_json(path).get('added_tokens_decoder') if path.exists() else None
  for piece, token in (listed or {}).items() if isinstance(listed, dict) else ():
    name = token.get('content') if isinstance(token, dict) else token
    if not piece.isdecimal() or not isinstance(name, str):
      raise DataError(
        f'{path}: added_tokens_decoder has {piece!r:.50}: {shown(token)}; must be pieces by number'
      )
    yield path, name, int(piece)
  path = folder / 'added_tokens.json'
  for name, number in (read_json(path) if path.exists() else {}).items():
    if type(number) is not int:
      raise DataError(f'{path}: {name!r:.100} is {shown(number)}; must be the number of a piece')
    yield path, name, number
