"""Read comma-separated logs as a stream, with errors that name the wrong line.

Lines are scanned lazily as text and split here, because polars' CSV reader fills short lines with
nulls and names no line in its errors. The public logs that are read this way quote nothing. Fields
become typed columns inside the same lazy query, so memory holds the typed table only.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Callable

import polars as pl

from rolegen_jax.data.files import DataError, as_data_error

INTEGER = 'an integer'
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
  """Parse text as Int64, null where it is not an integer."""
  return text.cast(pl.Int64, strict=False)


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
  """Read the file at `path`, one row per line.

  fields: in the order of the file; one of them gives column `user_id`. header: whether the first
  line must be their names. max_users: keep the first that many users in file order; 0 keeps all.

  Returns the table with the fields' columns in file order, and {'cut_last_line': 0 or 1}. A last
  line with too few fields and no line end was cut by whoever took the head of the file, and is left
  out. Raises DataError with the number of the first bad line, the field and what would be right.
  """
  expected = f'text lines of {len(fields)} fields: {_names(fields)}'
  with as_data_error(path, expected):
    lines = _lines(path)
    if header:
      _check_header(path, lines, fields)
      lines = lines.slice(1)
    cut_line = _cut_last_line(path, lines, len(fields))
    if cut_line:
      lines = lines.filter(pl.col('row') != cut_line)
    typed = _typed(lines, fields)
    if max_users:
      typed = _first_users(typed, max_users)
    table = typed.collect(engine='streaming')
    _check_lines(path, table, fields)
    if table.height == 0:
      raise DataError(f'{path}: has no data lines; must have at least one')
    return table.drop('row', 'bad'), {'cut_last_line': int(cut_line > 0)}


def _names(fields: tuple[Field, ...]) -> str:
  return ','.join(field.name for field in fields)


def _lines(path: str | os.PathLike) -> pl.LazyFrame:
  """Scan the file as columns row (1-based line number) and line.

  The separator is a control character, which leaves each line one field.
  """
  return pl.scan_csv(
    os.fspath(path),
    separator='\x1f',
    has_header=False,
    quote_char=None,
    schema={'line': pl.String},
    encoding='utf8-lossy',
    row_index_name='row',
    row_index_offset=1,
    glob=False,
  )


def _check_header(path: str | os.PathLike, lines: pl.LazyFrame, fields: tuple[Field, ...]) -> None:
  expected = _names(fields)
  first = lines.head(1).collect()['line'].to_list()
  if first != [expected]:
    shown = reprlib.repr(first[0] if first else '')
    raise DataError(f'{path}: line 1 is {shown}; must be the header {expected}')


def _cut_last_line(path: str | os.PathLike, lines: pl.LazyFrame, n_fields: int) -> int:
  """Return the number of the last line if it was cut short, else 0."""
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


def _first_users(table: pl.LazyFrame, count: int) -> pl.LazyFrame:
  """Keep the lines of the first `count` users, and all bad lines."""
  first_row = table.group_by('user_id').agg(pl.col('row').min())
  first_row = first_row.filter(pl.col('user_id').is_not_null()).sort('row').head(count)
  users = first_row.collect(engine='streaming')['user_id']
  return table.filter(pl.col('user_id').is_in(users.implode()) | pl.col('bad').is_not_null())


def _check_lines(path: str | os.PathLike, table: pl.DataFrame, fields: tuple[Field, ...]) -> None:
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
