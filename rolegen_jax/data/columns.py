"""One column of a log from outside: the text of a field -> a typed value, null where it is none.

Whatever the file (comma-separated lines, JSON lines, parquet), its fields are read as text and
parsed here, so that every format means the same by an integer, a time or a label.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import polars as pl

from rolegen_jax.config import TIME_UNITS
from rolegen_jax.data.events import FIRST_TIMESTAMP, MAX_TIMESTAMP, plausible

INTEGER = 'an integer of at most 64 bits, without a plus sign or leading zeros'
NUMBER = 'a number'
PRICE = 'a finite number of at least 0'

Parser = Callable[[pl.Expr], pl.Expr]
# Types of JSON values: 1.0 is no id, as it is not 1, nor is a list; a list is a text of many lines.
ID: tuple[type, ...] = (str, int)
SCALAR: tuple[type, ...] = (str, int, float)
LISTS: tuple[type, ...] = (*SCALAR, list)


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
  # Whether the file may lack the column; the table then lacks it too.
  absent: bool = False
  # What more the error message says of a text that is wrong.
  hint: Callable[[str], str] | None = None
  # Types that its value may have in JSON, beside null.
  json: tuple[type, ...] = SCALAR


def integer(text: pl.Expr) -> pl.Expr:
  """Parse text as Int64, null where it is not an integer as one would print it.

  Another spelling is refused: '007' and '7' may be two ids.
  """
  return pl.when(text.str.contains(r'^(0|-?[1-9][0-9]*)$')).then(text.cast(pl.Int64, strict=False))


def number(text: pl.Expr) -> pl.Expr:
  """Parse text as Float64, null where it is not a number."""
  return text.cast(pl.Float64, strict=False)


def price(text: pl.Expr) -> pl.Expr:
  """Parse text as Float64, null where it is not a finite number of at least 0."""
  value = number(text)
  return pl.when(value.is_finite() & (value >= 0)).then(value)


def label(text: pl.Expr) -> pl.Expr:
  """Return text as it is, null where it is empty."""
  return pl.when(text != '').then(text)


def path(text: pl.Expr) -> pl.Expr:
  """Return a list of names, one per line, as a dotted path: 'Tea\\nGreen' is 'Tea.Green'."""
  names = text.str.replace_all('.', ' ', literal=True)
  return label(names.str.replace_all('\n', '.', literal=True))


def floats(text: pl.Expr) -> pl.Expr:
  """Parse numbers with commas, spaces or line ends between them, in brackets or not, as Float32.

  A list; what is no number among them becomes null.
  """
  bare = text.str.strip_chars('[] ').str.replace_all('[, \n]+', ' ')
  values = bare.str.split(' ')
  return pl.when(bare != '').then(values.cast(pl.List(pl.Float32), strict=False))


def coded(codes: dict[str, str], dtype: pl.DataType) -> Parser:
  """Return a parser that maps each key of `codes` to its value, anything else to null.

  dtype: of the values.
  """

  def parse(text: pl.Expr) -> pl.Expr:
    return text.replace_strict(codes, default=None, return_dtype=dtype)

  return parse


def day(year: int, pattern: str, digits: int = 0) -> Parser:
  """Return a parser of days without a year: midnight UTC of that day, in seconds.

  pattern: how strftime would write the day, e.g. '%m%d'. digits: numbers that have one less stand
  for it with a 0 ahead; 0 = the text is as it is.
  """

  def parse(text: pl.Expr) -> pl.Expr:
    if digits:
      has_digits = text.str.contains(f'^[0-9]{{{digits - 1},{digits}}}$')
      text = pl.when(has_digits).then(text.str.zfill(digits))
    date = (pl.lit(f'{year}-') + text).str.to_date(f'%Y-{pattern}', strict=False)
    return date.cast(pl.Datetime).dt.epoch('s')

  return parse


def moment(pattern: str) -> Parser:
  """Return a parser of date and time UTC, as strftime would write them, to whole seconds."""
  return lambda text: text.str.to_datetime(pattern, strict=False).dt.epoch('s')


def time(unit: str) -> Parser:
  """Return a parser of times UTC to whole seconds; null where they are not of 1990 to 2036.

  unit: of whole numbers, one of `config.TIME_UNITS`. Date and time as ISO 8601 writes them are
  taken in any unit; without a zone they are UTC.
  """
  factor = TIME_UNITS[unit]

  def parse(text: pl.Expr) -> pl.Expr:
    seconds = pl.coalesce(integer(text) // factor, _iso(text))
    return pl.when(seconds.is_between(FIRST_TIMESTAMP, MAX_TIMESTAMP)).then(seconds)

  return parse


def seconds(text: pl.Expr) -> pl.Expr:
  """Parse seconds UTC, which may have a fraction, to whole ones of 1990 to 2036."""
  value = number(text)
  whole = value.is_finite() & value.is_between(FIRST_TIMESTAMP, MAX_TIMESTAMP)
  return pl.when(whole).then(value).floor().cast(pl.Int64, strict=False)


def since(start: int) -> Parser:
  """Return a parser of whole seconds since `start`, in seconds UTC, to seconds UTC to 2036."""

  def parse(text: pl.Expr) -> pl.Expr:
    passed = integer(text)
    return pl.when(passed.is_between(0, MAX_TIMESTAMP - start)).then(passed + start)

  return parse


def time_field(name: str, unit: str, settable: bool = False) -> Field:
  """Return the field of the timestamp, whole numbers of a unit of `config.TIME_UNITS`.

  settable: whether `data.time_unit` declares the unit, for the error message.
  """
  expected = f'a time UTC of 1990 to 2036, a whole number of {unit} or as ISO 8601 writes it'
  return Field(
    name, 'timestamp', time(unit), expected, hint=unit_to_set if settable else likely_unit
  )


def likely_unit(text: str) -> str:
  """Return in words in which unit a number would be a time of 1990 to 2099; '' where in none."""
  if not re.fullmatch('[0-9]{1,19}', text):
    return ''
  found = (unit for unit, factor in TIME_UNITS.items() if plausible(int(text) // factor))
  return next((f'; {text} looks like {unit}' for unit in found), '')


def unit_to_set(text: str) -> str:
  """Return what `likely_unit` does, and the setting that declares that unit."""
  looks = likely_unit(text)
  return looks and f'{looks}: set data.time_unit={looks.rpartition(" ")[2]}'


def _iso(text: pl.Expr) -> pl.Expr:
  """Parse date and time with or without fraction and zone; the fraction is cut off."""
  pattern = r'^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.\d+)? ?(Z|UTC|[+-]\d\d:?\d\d)?$'
  parts = [text.str.extract(pattern, group) for group in (1, 2, 3)]
  local = pl.concat_str(parts[:2], separator=' ').str.to_datetime('%Y-%m-%d %H:%M:%S', strict=False)
  zone = parts[2].str.replace(':', '', literal=True)
  minutes = zone.str.slice(1, 2).cast(pl.Int64, strict=False) * 60
  minutes += zone.str.slice(3, 2).cast(pl.Int64, strict=False)
  ahead = pl.when(zone.str.starts_with('-')).then(-minutes).otherwise(minutes)
  return local.dt.epoch('s') - 60 * ahead.fill_null(0)
