"""How files hold rows: each layout gives the rows of a file as text fields, one lazy table.

A table has columns row (1-based number of the line or row), wrong (0 = the line cannot be split
into its fields, k = the k-th has a type that it cannot have, null = neither) and `_0`, `_1`, ...
for the fields that were asked for, as text; what a file leaves open is null. Lines are scanned as
text and split here, because polars' readers fill short lines with nulls and name no line in their
errors. Text files may be compressed by gzip or zstd, begin with a byte-order mark and end their
lines with CRLF.
"""

from __future__ import annotations

import abc
import csv
import dataclasses
import json
import os
import pathlib
import re
import reprlib
from typing import Any

import polars as pl

from rolegen_jax.data.columns import SCALAR, Field
from rolegen_jax.data.files import DataError
from rolegen_jax.data.lines import split_lines

_LAST_WORD = re.compile(r'"(?:[^"\\]|\\.)*\\?|[\w.+-]*')
_BROKEN = pl.lit(0, pl.UInt8)  # in column wrong
_MAGIC = (b'\x1f\x8b', b'\x28\xb5\x2f\xfd')  # gzip, zstd


def field_column(number: int) -> str:
  """Return the name of the text column of the field asked for as number `number`."""
  return f'_{number}'


def lines(path: pathlib.Path, encoding: str = 'utf8') -> pl.LazyFrame:
  """Scan a text file as columns row (1-based line number) and line.

  encoding: utf8; utf8-lossy, which makes U+FFFD of what is no UTF-8; or latin-1, for small files
  that are Latin-1 where they are no UTF-8.
  """
  if encoding == 'latin-1':
    content = path.read_bytes()
    try:
      text = content.decode('utf-8-sig')
    except UnicodeDecodeError:
      text = content.decode('latin-1')
    return pl.LazyFrame({'line': split_lines(text)}, {'line': pl.String}).with_row_index('row', 1)
  # The separator is a control character, which leaves each line one field.
  return pl.scan_csv(
    os.fspath(path),
    separator='\x1f',
    has_header=False,
    quote_char=None,
    schema={'line': pl.String},
    encoding='utf8-lossy' if encoding == 'utf8-lossy' else 'utf8',
    row_index_name='row',
    row_index_offset=1,
    glob=False,
  )


def _line(path: pathlib.Path, row: int, encoding: str) -> str:
  """Return one line, whatever its bytes."""
  text = lines(path, 'utf8-lossy' if encoding == 'utf8' else encoding).slice(row - 1, 1)
  return text.collect()['line'][0] or ''


def _is_text(encoding: str) -> pl.Expr:
  """Return whether the line was text, as far as that shows in this encoding."""
  if encoding != 'utf8-lossy':
    return pl.lit(True)
  return ~pl.col('line').fill_null('').str.contains('\ufffd', literal=True)


def is_compressed(path: pathlib.Path) -> bool:
  """Return whether the file is an archive of gzip or zstd. Raises OSError."""
  with open(path, 'rb') as file:
    return file.read(4).startswith(_MAGIC)


class Layout(abc.ABC):
  """What all layouts answer."""

  unit = 'line'  # what a row of the file is called
  kind = ''  # what a file of this layout is called
  encoding = 'utf8'

  @abc.abstractmethod
  def names(self, path: pathlib.Path) -> list[str] | None:
    """Return the names of the file's columns; None where each row names its own."""

  @abc.abstractmethod
  def rows(self, path: pathlib.Path, fields: tuple[Field, ...], encoding: str) -> pl.LazyFrame:
    """Return row, wrong and the fields as text columns, as the module describes them."""

  def broken(self, path: pathlib.Path, row: int) -> str:
    """Return in words why a row cannot be split, and what would be right."""
    raise AssertionError(f'{path}: row {row} can be split')

  def is_cut(self, path: pathlib.Path, line: str) -> bool:
    """Return whether a last line without an end was cut short."""
    return False


@dataclasses.dataclass(frozen=True)
class Delimited(Layout):
  """Lines of fields. Nothing is quoted unless `quoted`; a quoted field ends on its line."""

  separator: str = ','
  header: tuple[str, ...] = ()  # of files without one; () = line 1 is the header
  quoted: bool = False
  encoding: str = 'utf8'
  kind = 'delimited text'

  def names(self, path: pathlib.Path) -> list[str] | None:
    lossy = 'utf8-lossy' if self.encoding == 'utf8' else self.encoding  # bytes are for later
    first = lines(path, lossy).head(1).collect()['line'].to_list()
    if self.header:
      return list(self.header) if first else []
    names = self._split(first[0] or '') if first else []
    return [name.partition(':')[0] for name in names] if self.separator == '\t' else names

  def rows(self, path: pathlib.Path, fields: tuple[Field, ...], encoding: str) -> pl.LazyFrame:
    known = self.names(path) or []
    table = lines(path, encoding).slice(0 if self.header else 1)
    split, whole = self._fields(len(known))
    whole = whole.fill_null(False) & _is_text(encoding)
    table = table.with_columns(wrong=pl.when(~whole).then(_BROKEN), split=split)
    texts = (
      pl.col('split').struct.field(field_column(known.index(field.name))).alias(f'text{number}')
      for number, field in enumerate(fields)
    )
    table = table.select('row', 'wrong', *texts)
    return table.rename({f'text{number}': field_column(number) for number in range(len(fields))})

  def broken(self, path: pathlib.Path, row: int) -> str:
    line = _line(path, row, self.encoding)
    names = self.names(path) or []
    parts = self._split(line)
    right = f'must have {len(names)}: {",".join(names)}'
    if len(parts) == len(names):
      right = 'must be UTF-8 text, with quotes (") around whole fields, closed on the same line'
    fields = 'field' if len(parts) == 1 else 'fields'
    return f'has {len(parts)} {fields}: {reprlib.repr(line)}; {right}'

  def is_cut(self, path: pathlib.Path, line: str) -> bool:
    return len(self._split(line)) < len(self.names(path) or [])

  def _split(self, line: str) -> list[str]:
    if not self.quoted:
      return line.split(self.separator)
    return next(csv.reader([line], delimiter=self.separator), [''])

  def _fields(self, count: int) -> tuple[pl.Expr, pl.Expr]:
    """Return the line split into a struct of `count` texts, and whether it has as many."""
    line, texts = pl.col('line'), [field_column(number) for number in range(count)]
    if not self.quoted:
      split = line.str.split_exact(self.separator, count - 1).struct.rename_fields(texts)
      return split, line.str.count_matches(self.separator, literal=True) == count - 1
    comma = self.separator
    # A bare quote is the end of a field that began on another line: its line is no row.
    pattern = rf'{comma}(?:"(?:[^"]|"")*"|[^{comma}"]*)'
    after_comma = pl.concat_str(pl.lit(comma), line)
    found = after_comma.str.extract_all(pattern)
    # Whatever the pattern passes over stands outside the quotes of its field.
    whole = (found.list.join('') == after_comma) & (found.list.len() == count)
    bare = pl.element().str.slice(1)
    inner = (
      bare.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    )
    unquoted = pl.when(bare.str.starts_with('"')).then(inner).otherwise(bare)
    return found.list.eval(unquoted).list.to_struct(fields=texts), whole


@dataclasses.dataclass(frozen=True)
class JsonLines(Layout):
  """Lines that are JSON objects. A list becomes the texts of its values, one per line."""

  each: str = ''  # key of a list of objects, each of which is a row with what stands around it
  kind = 'JSON lines'

  def names(self, path: pathlib.Path) -> list[str] | None:
    return None

  def rows(self, path: pathlib.Path, fields: tuple[Field, ...], encoding: str) -> pl.LazyFrame:
    columns = [field_column(number) for number in range(len(fields))]
    broken = [0, *(None for _ in fields)]
    schema = {
      'row': pl.get_index_type(),
      'wrong': pl.UInt8(),
      **dict.fromkeys(columns, pl.String()),
    }

    def parse(batch: pl.DataFrame) -> pl.DataFrame:
      found: list[list[Any]] = [[] for _ in schema]
      for row, line, is_text in batch.iter_rows():
        for record in self._records(line or '', fields) if is_text else [None]:
          for column, value in zip(found, (row, *(record or broken))):
            column.append(value)
      return pl.DataFrame(dict(zip(schema, found)), schema)

    # A line may be several rows or none, so nothing moves past this step.
    return (
      lines(path, encoding)
      .with_columns(is_text=_is_text(encoding))
      .map_batches(
        parse,
        schema=pl.Schema(schema),
        streamable=True,
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
      )
    )

  def broken(self, path: pathlib.Path, row: int) -> str:
    line = _line(path, row, self.encoding)
    right = 'a JSON object' + (f' with a list {self.each!r} of objects' if self.each else '')
    return f'is {reprlib.repr(line)}; must be {right}'

  def is_cut(self, path: pathlib.Path, line: str) -> bool:
    try:
      json.loads(line)
    except json.JSONDecodeError as error:  # at a string or a word that the text ends in
      return line.startswith('{') and bool(_LAST_WORD.fullmatch(line, error.pos))
    except (ValueError, RecursionError):
      return False
    return False

  def _records(self, line: str, fields: tuple[Field, ...]) -> list[list[Any] | None]:
    """Return the rows of a line as wrong and the texts of the fields; None for a broken one."""
    value = _json(line)
    inner = value.get(self.each) if value is not None and self.each else [{}]
    if value is None or not isinstance(inner, list) or not all(type(row) is dict for row in inner):
      return [None]
    try:
      return [_record(value | row if row else value, fields) for row in inner]
    except (RecursionError, UnicodeEncodeError):  # too deep; half a surrogate pair
      return [None]


@dataclasses.dataclass(frozen=True)
class Parquet(Layout):
  """Parquet files. Datetimes become ISO 8601 text UTC; those without a zone are taken as UTC."""

  unit = 'row'
  kind = 'parquet'

  def names(self, path: pathlib.Path) -> list[str] | None:
    return _scan(path).collect_schema().names()

  def rows(self, path: pathlib.Path, fields: tuple[Field, ...], encoding: str) -> pl.LazyFrame:
    table = _scan(path)
    schema = table.collect_schema()
    texts = (
      _as_text(path, field.name, schema[field.name]).alias(field_column(number))
      for number, field in enumerate(fields)
    )
    wrong = pl.lit(None, pl.UInt8).alias('wrong')
    return table.with_row_index('row', 1).select('row', wrong, *texts)


def _scan(path: pathlib.Path) -> pl.LazyFrame:
  return pl.scan_parquet(os.fspath(path), glob=False, hive_partitioning=False)


def _as_text(path: pathlib.Path, name: str, dtype: pl.DataType) -> pl.Expr:
  if isinstance(dtype, pl.Datetime):
    time = pl.col(name).dt.convert_time_zone('UTC') if dtype.time_zone else pl.col(name)
    return time.dt.to_string('%Y-%m-%d %H:%M:%S')
  if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Date, pl.Time, pl.Duration):
    raise DataError(
      f'{path}: column {name!r} has type {dtype}; must be a number, a string or a datetime'
    )
  return pl.col(name).cast(pl.String)


def _json(line: str) -> dict[str, Any] | None:
  """Return the object that a line holds; None where it holds none."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def _record(value: dict[str, Any], fields: tuple[Field, ...]) -> list[Any]:
  """Return wrong and the fields as text. Raises UnicodeEncodeError where one is none."""
  values = [value.get(field.name) for field in fields]
  wrong = (k for k, (v, field) in enumerate(zip(values, fields), 1) if not _fits(v, field))
  texts = list(map(_text, values))
  for text in texts:
    if text and not text.isascii():
      text.encode()
  return [next(wrong, None), *texts]


def _fits(value: Any, field: Field) -> bool:
  """Return whether a field may have the type of a JSON value, and of those of a list."""
  if type(value) is list:
    return list in field.json and all(type(inner) in (*SCALAR, type(None)) for inner in value)
  return value is None or type(value) in field.json


def _text(value: Any) -> str | None:
  if value is None or isinstance(value, str):
    return value
  if isinstance(value, list):
    return '\n'.join(text for item in value if (text := _text(item)))
  return json.dumps(value)
