"""Read comma-separated logs as a stream, with errors that name the wrong line.

Lines are scanned lazily as text and split here, because polars' CSV reader fills short lines with
nulls and names no line in its errors. The public logs that are read this way quote nothing. Fields
become typed columns inside the same lazy query, so memory holds the typed table only. Files may be
compressed by gzip, begin with a byte-order mark and end their lines with CRLF.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterator

import polars as pl

from rolegen_jax.data.events import first_users
from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.data.folders import csv_files, say_ignored
from rolegen_jax.runtime.progress import say

INTEGER = 'an integer of at most 64 bits, without a plus sign or leading zeros'
NUMBER = 'a number'

Parser = Callable[[pl.Expr], pl.Expr]


@dataclasses.dataclass(frozen=True)
class Field:
  """One column of the file."""

  # In the file; for files without a header, in its documentation.
  name: str
  # In the table that is returned.
  column: str
  # Text -> typed value, null where the text is no such value.
  parse: Parser
  # What the text must be, for the error message.
  expected: str
  # Whether an empty text is a null rather than an error.
  optional: bool = False


def integer(text: pl.Expr) -> pl.Expr:
  """Parse text as Int64, null where it is not an integer as one would print it.

  Another spelling is refused: '007' and '7' may be two ids.
  """
  return pl.when(text.str.contains(r'^(0|-?[1-9][0-9]*)$')).then(text.cast(pl.Int64, strict=False))


def number(text: pl.Expr) -> pl.Expr:
  """Parse text as Float64, null where it is not a number."""
  return text.cast(pl.Float64, strict=False)


def label(text: pl.Expr) -> pl.Expr:
  """Return text as it is, null where it is empty."""
  return pl.when(text != '').then(text)


def coded(codes: dict[str, str], dtype: pl.Enum) -> Parser:
  """Return a parser that maps each key of `codes` to its value, anything else to null.

  dtype: the categories that the values are of.
  """

  def parse(text: pl.Expr) -> pl.Expr:
    return text.replace_strict(codes, default=None, return_dtype=dtype)

  return parse


def read(
  path: str | os.PathLike, fields: tuple[Field, ...], header: bool, max_users: int = 0
) -> tuple[pl.DataFrame, dict[str, int]]:
  """Read the file at `path`, or all files *.csv of the folder, one row per line.

  fields: in the order of the file; one of them gives column `user_id`. header: whether the first
  line must be their names. max_users: keep the first that many users in the order of files and
  lines; 0 keeps all.

  Returns the table with the fields' columns in that order, and how many lines were left out:
  {'cut_last_line', and with max_users 'other_users'}. A last line with too few fields and no line
  end was cut by whoever took the head of the file. Raises DataError with the file and number of the
  first bad line, the field and what would be right.
  """
  files = csv_files(path)
  say_ignored(path)
  expected = f'text lines of {len(fields)} fields: {_names(fields)}'
  for file in files:  # all of them before much is read
    with as_data_error(file, expected), _naming_bytes(file, fields):
      _check_first_line(file, fields, header)
  left_out = {'cut_last_line': 0} | ({'other_users': 0} if max_users else {})
  tables: list[pl.DataFrame] = []
  users: pl.Series | None = None
  for file in files:
    with as_data_error(file, expected), _naming_bytes(file, fields):
      lines = _lines(file).slice(int(header))
      cut_line = _cut_last_line(file, lines, len(fields))
      if cut_line:
        say(f'{file}: its last line, {cut_line}, was cut short and is left out')
        left_out['cut_last_line'] += 1
        lines = lines.filter(pl.col('row') != cut_line)
      typed = _typed(lines, fields)
      if max_users:
        if users is None or len(users) < max_users:
          users = _first_users(typed, users, max_users)
        typed = typed.filter(pl.col('user_id').is_in(users.implode()) | pl.col('bad').is_not_null())
      table = typed.collect(engine='streaming')
      _check_lines(file, table, fields)
      if max_users:
        left_out['other_users'] += lines.select(pl.len()).collect().item() - table.height
      tables.append(table.drop('row', 'bad'))
  if not any(table.height for table in tables):
    raise DataError(f'{path}: has no data lines; must have at least one')
  return pl.concat(tables), left_out


def _names(fields: tuple[Field, ...]) -> str:
  return ','.join(field.name for field in fields)


def _lines(path: pathlib.Path) -> pl.LazyFrame:
  """Scan the file as columns row (1-based line number) and line.

  The separator is a control character, which leaves each line one field.
  """
  return pl.scan_csv(
    os.fspath(path),
    separator='\x1f',
    has_header=False,
    quote_char=None,
    schema={'line': pl.String},
    encoding='utf8',
    row_index_name='row',
    row_index_offset=1,
    glob=False,
  )


@contextlib.contextmanager
def _naming_bytes(path: pathlib.Path, fields: tuple[Field, ...]) -> Iterator[None]:
  """Raise DataError naming the first line that is not UTF-8, if that is why polars fails."""
  try:
    yield
  except pl.exceptions.ComputeError:
    opened = gzip.open if _is_gzip(path) else open
    with opened(path, 'rb') as file:
      for row, line in enumerate(file, 1):
        for k, text in enumerate(line.rstrip(b'\r\n').split(b',')):
          if text != text.decode('utf-8', 'ignore').encode():
            field = fields[min(k, len(fields) - 1)]
            raise DataError(
              f'{path}: line {row}, field {field.name!r}: {reprlib.repr(text)}; must be UTF-8 text'
            ) from None
    raise


def _is_gzip(path: pathlib.Path) -> bool:
  with open(path, 'rb') as file:
    return file.read(2) == b'\x1f\x8b'


def _check_first_line(path: pathlib.Path, fields: tuple[Field, ...], header: bool) -> None:
  expected = f'the header {_names(fields)}' if header else f'fields {_names(fields)}'
  first = _lines(path).head(1).collect()['line'].to_list()
  if not first or (header and first != [_names(fields)]):
    shown = reprlib.repr(first[0] if first else '')
    raise DataError(f'{path}: line 1 is {shown}; must be {expected}')


def _cut_last_line(path: pathlib.Path, lines: pl.LazyFrame, n_fields: int) -> int:
  """Return the number of the last line if it was cut short, else 0.

  Nobody cuts text inside an archive: there such a line is an error.
  """
  if _is_gzip(path):
    return 0
  with open(path, 'rb') as file:
    if file.seek(0, os.SEEK_END) == 0:
      return 0
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b'\n':
      return 0
  last = lines.tail(1).collect(engine='streaming')
  if last.height and (last['line'][0] or '').count(',') < n_fields - 1:
    return last['row'][0]
  return 0


def _typed(lines: pl.LazyFrame, fields: tuple[Field, ...]) -> pl.LazyFrame:
  """Parse the lines into columns row, bad, and one per field.

  bad: 0 = wrong number of fields, k = the k-th field is wrong, null = good.
  """
  texts = [f'_{k}' for k in range(len(fields))]
  split = pl.col('line').str.split_exact(',', len(fields) - 1).struct.rename_fields(texts)
  commas = pl.col('line').str.count_matches(',', literal=True)
  lines = lines.with_columns(commas=commas, split=split).unnest('split')
  lines = lines.with_columns(
    field.parse(pl.col(text)).alias(field.column) for text, field in zip(texts, fields)
  )
  wrong_count = (pl.col('commas') != len(fields) - 1).fill_null(True)
  wrong = [pl.when(wrong_count).then(pl.lit(0, pl.UInt8))]
  for k, (text, field) in enumerate(zip(texts, fields), 1):
    missing = pl.col(field.column).is_null()
    if field.optional:
      missing &= pl.col(text) != ''
    wrong.append(pl.when(missing).then(pl.lit(k, pl.UInt8)))
  bad = pl.coalesce(wrong).alias('bad')
  return lines.select('row', bad, *(field.column for field in fields))


def _first_users(table: pl.LazyFrame, known: pl.Series | None, count: int) -> pl.Series:
  """Return the first `count` users of those known followed by those of the table."""
  first_row = table.group_by('user_id').agg(pl.col('row').min())
  first_row = first_row.filter(pl.col('user_id').is_not_null()).sort('row')
  return first_users(known, first_row.collect(engine='streaming')['user_id'], count)


def _check_lines(path: pathlib.Path, table: pl.DataFrame, fields: tuple[Field, ...]) -> None:
  """Raise DataError for the first bad line."""
  bad = table.filter(pl.col('bad').is_not_null()).head(1)
  if bad.height == 0:
    return
  row, wrong = bad['row'][0], bad['bad'][0]
  line = _lines(path).slice(row - 1, 1).collect()['line'][0] or ''
  parts = line.split(',')
  if wrong == 0:
    raise DataError(
      f'{path}: line {row} has {len(parts)} fields: {reprlib.repr(line)}; '
      f'must have {len(fields)}: {_names(fields)}'
    )
  field = fields[wrong - 1]
  raise DataError(
    f'{path}: line {row}, field {field.name!r}: {reprlib.repr(parts[wrong - 1])}; '
    f'must be {field.expected}'
  )
