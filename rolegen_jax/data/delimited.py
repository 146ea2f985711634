"""Streaming reader of comma-separated logs that says which line is wrong.

Lines are scanned lazily as text and split by us: polars' CSV reader fills short lines with nulls and names no line in its
errors. The public logs that are read this way quote nothing. Fields become typed columns inside the same lazy query, so
memory holds the typed table only.
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


@dataclasses.dataclass(frozen=True)
class Field:
  """One column of the file."""

  name: str  # in the file; for files without a header, in its documentation
  column: str  # in the table that is returned
  parse: Callable[[pl.Expr], pl.Expr]  # text -> typed value, null where the text is no such value
  right: str  # what the text must be, for the error
  optional: bool = False  # an empty text is a null rather than an error


def integer(text: pl.Expr) -> pl.Expr:
  """Text -> Int64, null where it is no integer."""
  return text.cast(pl.Int64, strict=False)


def number(text: pl.Expr) -> pl.Expr:
  """Text -> Float64, null where it is no number."""
  return text.cast(pl.Float64, strict=False)


def label(text: pl.Expr) -> pl.Expr:
  """Text as it is, null where it is empty."""
  return pl.when(text != '').then(text)


def coded(codes: dict[str, str], dtype: pl.Enum) -> Callable[[pl.Expr], pl.Expr]:
  """A parser that maps each key of `codes` to its value (a category of `dtype`), anything else to null."""
  return lambda text: text.replace_strict(codes, default=None, return_dtype=dtype)


def read(
  path: str | os.PathLike, fields: tuple[Field, ...], header: bool, max_users: int = 0
) -> tuple[pl.DataFrame, dict[str, int]]:
  """Reads the file at `path`, one row per line.

  fields: in the order of the file; one of them gives column `user_id`. header: the first line must be their names.
  max_users: keep the first that many users in file order; 0 keeps all.

  Returns (table of the fields' columns in file order, {'cut_last_line': 0 or 1}): a last line that has too few fields and
  no line end was cut by whoever took the head of the file, and is left out. Raises DataError with the number of the
  first bad line, the field and what would be right.
  """
  right = f'text lines of {len(fields)} fields: ' + ','.join(f.name for f in fields)
  with as_data_error(path, right):
    lines = _lines(path)
    if header:
      _check_header(path, lines, fields)
      lines = lines.slice(1)
    cut = _cut_last_line(path, lines, len(fields))
    if cut:
      lines = lines.filter(pl.col('row') != cut)
    table = _typed(lines, fields)
    if max_users:
      table = _first_users(table, max_users)
    table = table.collect(engine='streaming')
    _check_lines(path, table, fields)
    if table.height == 0:
      raise DataError(f'{path}: has no data lines; must have at least one')
    return table.drop('row', 'bad'), {'cut_last_line': int(cut > 0)}


def _lines(path) -> pl.LazyFrame:
  """Columns row (1-based line number) and line. A control character as separator leaves each line one field."""
  return pl.scan_csv(
    path,
    separator='\x1f',
    has_header=False,
    quote_char=None,
    schema={'line': pl.String},
    encoding='utf8-lossy',
    row_index_name='row',
    row_index_offset=1,
    glob=False,
  )


def _check_header(path, lines: pl.LazyFrame, fields: tuple[Field, ...]) -> None:
  want = ','.join(f.name for f in fields)
  got = lines.head(1).collect()['line'].to_list()
  if got != [want]:
    raise DataError(
      f'{path}: line 1 is {reprlib.repr(got[0] if got else "")}; must be the header {want}'
    )


def _cut_last_line(path, lines: pl.LazyFrame, width: int) -> int:
  """The number of the last line if it was cut short, else 0."""
  with open(path, 'rb') as file:
    if file.seek(0, os.SEEK_END) == 0:
      return 0
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b'\n':
      return 0
  last = lines.tail(1).collect(engine='streaming')
  return last['row'][0] if last.height and (last['line'][0] or '').count(',') < width - 1 else 0


def _typed(lines: pl.LazyFrame, fields: tuple[Field, ...]) -> pl.LazyFrame:
  """Columns row, bad (0 = wrong number of fields, k = k-th field is wrong, null = good) and one per field."""
  split = (
    pl.col('line')
    .str.split_exact(',', len(fields) - 1)
    .struct.rename_fields([f'_{k}' for k in range(len(fields))])
  )
  lines = lines.with_columns(
    commas=pl.col('line').str.count_matches(',', literal=True), split=split
  ).unnest('split')
  lines = lines.with_columns(f.parse(pl.col(f'_{k}')).alias(f.column) for k, f in enumerate(fields))
  wrong = [pl.when((pl.col('commas') != len(fields) - 1).fill_null(True)).then(pl.lit(0, pl.UInt8))]
  for k, f in enumerate(fields):
    missing = pl.col(f.column).is_null()
    if f.optional:
      missing &= pl.col(f'_{k}') != ''
    wrong.append(pl.when(missing).then(pl.lit(k + 1, pl.UInt8)))
  return lines.select('row', pl.coalesce(wrong).alias('bad'), *(f.column for f in fields))


def _first_users(table: pl.LazyFrame, count: int) -> pl.LazyFrame:
  first = table.group_by('user_id').agg(pl.col('row').min()).filter(pl.col('user_id').is_not_null())
  kept = first.sort('row').head(count).collect(engine='streaming')['user_id']
  return table.filter(pl.col('user_id').is_in(kept.implode()) | pl.col('bad').is_not_null())


def _check_lines(path, table: pl.DataFrame, fields: tuple[Field, ...]) -> None:
  bad = table.filter(pl.col('bad').is_not_null()).head(1)
  if bad.height == 0:
    return
  row, which = bad['row'][0], bad['bad'][0]
  line = _lines(path).slice(row - 1, 1).collect()['line'][0] or ''
  parts = line.split(',')
  if which == 0:
    names = ','.join(f.name for f in fields)
    raise DataError(
      f'{path}: line {row} has {len(parts)} fields: {reprlib.repr(line)}; must have {len(fields)}: {names}'
    )
  field = fields[which - 1]
  raise DataError(
    f'{path}: line {row}, field {field.name!r}: {reprlib.repr(parts[which - 1])}; must be {field.right}'
  )
