"""Files of JSON objects: one a line, several lines each, or an array; plain or in a code fence."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

from rolegen_jax.data.files import DataError, renamed
from rolegen_jax.data.lines import decoded, read_bytes
from rolegen_jax.runtime import storage

EXPECTED = 'JSON objects, one per line or as an array'
# Control characters inside strings are kept; JSON wants them escaped, many writers do not.
DECODER = json.JSONDecoder(strict=False)
_STRICT = json.JSONDecoder()
_BEGINNING = b'{"'  # of a line by `json_line`
_BETWEEN = re.compile(r'[\s,\[\]]*')  # what may stand between two objects
# What JSON allows in a string, but tools that read line by line, or UTF-8 itself, do not.
_UNSAFE = re.compile('[\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def read_records(path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
  """Return (line number, object) of every JSON object of a file.

  Where the file is no JSON but has a Markdown code fence, prose outside of the fence is skipped.
  Raises DataError naming the line.
  """
  return _read(read_bytes(path, EXPECTED), path)


def read_begun(path: str | os.PathLike) -> tuple[list[tuple[int, dict[str, Any]]], int]:
  """Return what `read_records` does of a file that `json_line` is appended to, and its bytes.

  A last line that a killed process left unfinished is in neither. No file is an empty one.
  """
  if not storage.path(path).exists():
    return [], 0
  content = read_bytes(path, EXPECTED)
  try:
    return _read(content, path), len(content)
  except DataError:
    whole = content.rfind(b'\n') + 1
    start = content[whole : whole + len(_BEGINNING)]
    if not start or not _BEGINNING.startswith(start):
      raise  # no line of ours
    return _read(content[:whole], path), whole


def _read(content: bytes, path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
  text = decoded(content, path, EXPECTED)
  fenced = _inside_fences(text)
  try:
    try:
      return list(_objects(text))
    except ValueError:
      if fenced is None:
        raise
    return list(_objects(fenced))
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path}, {error}; must be {EXPECTED}') from error


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield (line number, object). Raises ValueError that begins with the number of the line."""
  line, counted, position = 1, 0, _end_of_gap(text, 0)
  while position < len(text):
    line, counted = line + text.count('\n', counted, position), position
    try:
      value, position = _decode(text, position)
    except json.JSONDecodeError as error:
      raise ValueError(f'line {error.lineno}: {error.msg}') from error
    except (ValueError, RecursionError) as error:  # too many digits, nested too deeply
      raise ValueError(f'line {line}: {error}') from error
    if not isinstance(value, dict):
      raise ValueError(f'line {line}: {reprlib.repr(value)}')
    yield line, value
    position = _end_of_gap(text, position)


def _decode(text: str, start: int) -> tuple[Any, int]:
  try:
    return DECODER.raw_decode(text, start)
  except json.JSONDecodeError:
    # A string that is not closed fails at its own line here, not at a quote further down.
    return _STRICT.raw_decode(text, start)


def _end_of_gap(text: str, start: int) -> int:
  gap = _BETWEEN.match(text, start)
  assert gap is not None  # it matches nothing, too
  return gap.end()


def _inside_fences(text: str) -> str | None:
  """Return the text with prose outside of code fences blanked; None where there is no fence.

  Line numbers stay, and so do lines outside that look like JSON.
  """
  inside, has_fence = False, False
  kept = []
  for line in text.split('\n'):
    is_fence = line.lstrip().startswith(('```', '~~~'))
    has_fence |= is_fence
    is_json = inside or line.lstrip().startswith(('{', '['))
    kept.append(line if is_json and not is_fence else '')
    inside ^= is_fence
  return '\n'.join(kept) if has_fence else None


def write_lines(rows: Iterable[dict], path: str | os.PathLike) -> None:
  """Write a file of JSON lines, whole or not at all. Raises DataError when it cannot be written."""
  lines = [json_line(row) for row in rows]
  with renamed(path) as temporary:
    temporary.write_text(''.join(lines), encoding='utf-8')


def json_line(row: dict) -> str:
  """Return an object as one line, with its line feed."""
  return _UNSAFE.sub(_escaped, json.dumps(row, ensure_ascii=False)) + '\n'


def _escaped(character: re.Match) -> str:
  return f'\\u{ord(character[0]):04x}'
