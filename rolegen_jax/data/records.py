"""Read logs from outside as a stream of typed rows, with errors that name the wrong row.

One engine for every layout of `layouts.py`: fields are read as text and become typed columns inside
the same lazy query, so memory holds the typed table only.
"""

from __future__ import annotations

import contextlib
import pathlib
import reprlib
from collections.abc import Iterator

import polars as pl

from rolegen_jax.data.columns import Field
from rolegen_jax.data.events import first_users
from rolegen_jax.data.faults import Faults
from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.data.layouts import Layout, Parquet, field_column, is_compressed, lines
from rolegen_jax.runtime.progress import say

Fields = tuple[Field, ...]


def read(
  files: list[pathlib.Path],
  layout: Layout,
  fields: Fields,
  max_users: int = 0,
  faults: Faults | None = None,
  may_be_empty: bool = False,
  where: pl.Expr | None = None,
  may_be_cut: bool = False,
) -> pl.DataFrame:
  """Read the rows of all files, in order.

  fields: the columns to read; with max_users, one of them gives column `user_id`. max_users: keep
  the first that many users in the order of files and rows; 0 keeps all. faults: what becomes of
  wrong rows, None raises the first; it counts what is left out, as cut_last_line and other_users
  too. may_be_empty: whether no row at all is fine. where: over the typed columns, which rows are
  meant; the others are passed over and not counted. may_be_cut: whether a last line that was cut
  short by whoever took the head of the file is left out and counted; otherwise it is broken.

  Returns the table with the fields' columns in that order. Raises DataError with the file and
  number of the first bad row, the field and what would be right.
  """
  faults = faults or Faults()
  present = {file: _present(file, layout, fields) for file in files}  # before much is read
  tables: list[pl.DataFrame] = []
  users: pl.Series | None = None
  for file, columns in present.items():
    with _naming(file, layout, columns):
      typed, cut_line = _typed_rows(file, layout, columns, faults, may_be_cut)
      if cut_line:
        say(f'{file}: its last line, {cut_line}, was cut short and is left out')
      if may_be_cut and not isinstance(layout, Parquet):
        faults.count('cut_last_line', int(cut_line > 0))
      if where is not None:
        typed = typed.filter(where | pl.col('bad').is_not_null())
      wanted = typed
      if max_users:
        if users is None or len(users) < max_users:
          users = _first_users(typed, users, max_users)
        is_kept = pl.col('user_id').is_in(users.implode())
        wanted = typed.filter(is_kept | pl.col('bad').is_not_null())
      selected = wanted.select('row', 'bad', *(field.column for field in columns))
      table = selected.collect(engine='streaming')
      if max_users:
        all_rows = typed.select(pl.len()).collect(engine='streaming').item()
        faults.count('other_users', all_rows - table.height)
      if not isinstance(layout, Parquet):
        table = _without_blank_end(file, table)
      _count_faults(file, layout, typed, table, columns, faults)
      tables.append(table.filter(pl.col('bad').is_null()).drop('row', 'bad'))
  if not may_be_empty and not any(table.height for table in tables):
    raise DataError(f'{files[0]}: has no data {layout.unit}s; must have at least one')
  return pl.concat(tables, how='diagonal')


def _names(fields: Fields) -> str:
  return ','.join(field.name for field in fields)


def _present(file: pathlib.Path, layout: Layout, fields: Fields) -> Fields:
  """Return the fields that the file has. Raises DataError where it lacks one that it must have."""
  with _naming(file, layout, fields):
    names = layout.names(file)
  if names is None:
    return fields
  lacking = [field.name for field in fields if field.name not in names]
  required = tuple(field for field in fields if not field.absent)
  if not names or any(field.name in lacking for field in required):
    raise DataError(_wrong_names(file, layout, names, required))
  for field in fields:
    if names.count(field.name) > 1:
      raise DataError(f'{file}: has two columns {field.name!r}; must have one')
  return tuple(field for field in fields if field.name not in lacking)


def _wrong_names(file: pathlib.Path, layout: Layout, names: list[str], required: Fields) -> str:
  shown = reprlib.repr(','.join(names))
  if isinstance(layout, Parquet):
    return f'{file}: has columns {shown}; must have {_names(required)}'
  return f'{file}: line 1 is {shown}; must be the header {_names(required)}, in any order'


@contextlib.contextmanager
def _naming(file: pathlib.Path, layout: Layout, fields: Fields) -> Iterator[None]:
  """Turn what polars raises into a DataError, which names the first line that is not UTF-8."""
  with as_data_error(file, f'{layout.kind} of {len(fields)} fields: {_names(fields)}'):
    try:
      yield
    except pl.exceptions.ComputeError:
      if not isinstance(layout, Parquet):
        _name_bytes(file)
      raise


def _name_bytes(file: pathlib.Path) -> None:
  wrong = lines(file, 'utf8-lossy').filter(pl.col('line').str.contains('\ufffd', literal=True))
  first = wrong.head(1).collect(engine='streaming')
  if first.height:
    raise DataError(
      f'{file}: line {first["row"][0]}: {reprlib.repr(first["line"][0])}; must be UTF-8 text'
    )


def _typed_rows(
  file: pathlib.Path, layout: Layout, fields: Fields, faults: Faults, may_be_cut: bool
) -> tuple[pl.LazyFrame, int]:
  """Return the parsed rows of a file but its cut last line, and the number of that; 0 = none."""
  encoding = layout.encoding
  if faults.skips and encoding == 'utf8':
    encoding = 'utf8-lossy'  # bytes that are no text are wrong in their line only
  rows = layout.rows(file, fields, encoding)
  is_text = not isinstance(layout, Parquet)
  cut_line = _cut_last_line(file, layout, encoding) if may_be_cut and is_text else 0
  if cut_line:
    rows = rows.filter(pl.col('row') != cut_line)
  return _typed(rows, fields), cut_line


def _cut_last_line(file: pathlib.Path, layout: Layout, encoding: str) -> int:
  """Return the number of the last line if it was cut short, else 0.

  Nobody cuts text inside an archive: there such a line is an error.
  """
  if is_compressed(file):
    return 0
  with open(file, 'rb') as opened:
    opened.seek(0, 2)
    if opened.tell() == 0:
      return 0
    opened.seek(-1, 2)
    if opened.read(1) == b'\n':
      return 0
  last = lines(file, encoding).tail(1).collect(engine='streaming')
  if last.height and layout.is_cut(file, last['line'][0] or ''):
    return last['row'][0]
  return 0


def _without_blank_end(file: pathlib.Path, table: pl.DataFrame) -> pl.DataFrame:
  """Return the table without the wrong row that a blank line at the end of a text file is."""
  last = table.tail(1).filter(pl.col('bad').is_not_null())
  if not last.height or last['row'][0] == 1:
    return table
  rest = lines(file, 'utf8-lossy').slice(last['row'][0] - 1, 2).collect()['line']
  return table.head(-1) if len(rest) == 1 and not rest[0] else table


def _typed(rows: pl.LazyFrame, fields: Fields) -> pl.LazyFrame:
  """Parse text fields into columns bad and one per field, beside those that were there.

  bad: 0 = the line could not be split, k = the k-th field is wrong, null = good; what the layout
  found wrong comes first.
  """
  texts = [pl.col(field_column(number)).fill_null('') for number in range(len(fields))]
  rows = rows.with_columns(
    field.parse(text).alias(field.column) for text, field in zip(texts, fields)
  )
  wrong: list[pl.Expr] = [pl.col('wrong')]
  for number, (text, field) in enumerate(zip(texts, fields), 1):
    missing = pl.col(field.column).is_null()
    if field.optional:
      missing &= text != ''
    wrong.append(pl.when(missing).then(pl.lit(number, pl.UInt8)))
  return rows.with_columns(bad=pl.coalesce(wrong))


def _first_users(table: pl.LazyFrame, known: pl.Series | None, count: int) -> pl.Series:
  """Return the first `count` users of those known followed by those of good rows of the table."""
  good = table.filter(pl.col('bad').is_null() & pl.col('user_id').is_not_null())
  first_row = good.group_by('user_id').agg(pl.col('row').min()).sort('row')
  return first_users(known, first_row.collect(engine='streaming')['user_id'], count)


def _count_faults(
  file: pathlib.Path,
  layout: Layout,
  typed: pl.LazyFrame,
  table: pl.DataFrame,
  fields: Fields,
  faults: Faults,
) -> None:
  """Tell `faults` of the bad rows of a file, by kind, those first that come first."""
  bad = table.filter(pl.col('bad').is_not_null())
  kinds = bad.group_by('bad', maintain_order=True).agg(pl.col('row').first(), pl.len())
  for wrong, row, count in kinds.iter_rows():
    if wrong == 0:
      kind, message = 'broken_' + layout.unit, layout.broken(file, row)
      faults.found(kind, count, f'{file}: {layout.unit} {row} {message}')
      continue
    field = fields[wrong - 1]
    same = (pl.col('row') == row) & (pl.col('bad') == wrong)
    text = typed.filter(same).select(field_column(wrong - 1)).head(1).collect().item() or ''
    hint = field.hint(text) if field.hint else ''
    faults.found(
      f'wrong_{field.column}',
      count,
      f'{file}: {layout.unit} {row}, field {field.name!r}: {reprlib.repr(text)}; '
      f'must be {field.expected}{hint}',
    )
