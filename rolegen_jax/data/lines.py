"""Text files from outside: decoded, and split into lines at line feeds only.

`str.splitlines` also splits at characters that a line may hold, such as U+2028 and U+0085.
"""

from __future__ import annotations

import os

from rolegen_jax.data.files import DataError
from rolegen_jax.runtime import storage

# How files that are not UTF-8 begin; the longer mark of two that begin alike comes first.
_MARKS = {
  'UTF-32': (b'\xff\xfe\0\0', b'\0\0\xfe\xff'),
  'UTF-16': (b'\xff\xfe', b'\xfe\xff'),
}


def read_text(path: str | os.PathLike, expected: str) -> str:
  """Return the text of a UTF-8 file, without its byte-order mark if it has one.

  expected: what the file must be. Raises DataError, naming another encoding by its mark.
  """
  return decoded(read_bytes(path, expected), path, expected)


def read_bytes(path: str | os.PathLike, expected: str) -> bytes:
  """Return the bytes of a file that must be what is expected. Raises DataError."""
  try:
    return storage.path(path).read_bytes()
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path
    raise DataError(f'{path}: cannot be read ({error}); must be {expected}') from error


def decoded(content: bytes, path: str | os.PathLike, expected: str) -> str:
  """Return the text of the bytes of the file at `path`, as `read_text` does."""
  for encoding, marks in _MARKS.items():
    if content.startswith(marks):
      raise DataError(
        f'{path}: encoded as {encoding}; must be {expected} encoded as UTF-8 (in Excel: '
        '"CSV UTF-8" rather than "Unicode text")'
      )
  wrong = content.find(b'\0')
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    text, wrong = '', error.start
  if wrong >= 0:
    line = 1 + content.count(b'\n', 0, wrong)
    raise DataError(
      f'{path}, line {line}: byte 0x{content[wrong]:02x}, which is no UTF-8 text; '
      f'must be {expected} encoded as UTF-8'
    )
  return text


def split_lines(text: str) -> list[str]:
  """Return the lines of a text, which end with a line feed, or carriage return and line feed."""
  lines = [line.removesuffix('\r') for line in text.split('\n')]
  return lines if lines[-1] else lines[:-1]
