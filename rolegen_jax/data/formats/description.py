"""What is said of a public log, and the words for what many of them have."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import polars as pl

from rolegen_jax.data import columns
from rolegen_jax.data.columns import ID, INTEGER, LISTS, Field, coded, integer, label
from rolegen_jax.data.events import EVENT_DTYPE
from rolegen_jax.data.layouts import Layout


@dataclasses.dataclass(frozen=True)
class Table:
  """Files of one kind within a log."""

  files: tuple[str, ...]  # patterns of their names, in lower case
  layout: Layout
  fields: tuple[Field, ...]
  # Columns of the contract that are made of the fields, by name.
  made: dict[str, pl.Expr] = dataclasses.field(default_factory=dict)
  # Which rows are of this table, where others say something else; None = all.
  where: pl.Expr | None = None


class Window(NamedTuple):
  """Which rows of the events stay, where a log's documentation names them."""

  reason: str  # name of what is left out
  keep: pl.Expr
  right: str  # the same in words, as a time is


@dataclasses.dataclass(frozen=True)
class Format:
  """A public log. Its catalogue is the items that have events."""

  source: str  # where it is to be had
  # In which forms its events come; the files that are there tell which it is.
  events: tuple[Table, ...]
  # Likewise what is said of items in files of their own, which may be missing.
  items: tuple[Table, ...] = ()
  # Columns of the events that describe the item: its latest value counts.
  attributes: tuple[str, ...] = ()
  window: Window | None = None
  # Patterns of the names of files that belong to the log and are not read.
  unread: tuple[str, ...] = ()


def id_field(name: str, column: str) -> Field:
  """Return a field of integer ids."""
  return Field(name, column, integer, INTEGER, json=ID)


def text_id(name: str, column: str, optional: bool = False) -> Field:
  """Return a field of ids that are text."""
  return Field(name, column, label, 'text that is not empty', optional, json=ID)


def labels(**names: str) -> tuple[Field, ...]:
  """Return fields of optional text: column=name in the file."""
  return tuple(
    Field(name, column, label, 'text', True, json=LISTS) for column, name in names.items()
  )


def price(name: str) -> Field:
  """Return the field of the price."""
  return Field(name, 'price', columns.price, columns.PRICE, optional=True)


def event(name: str, expected: str = '', **events: str) -> Field:
  """Return the field of the event: text in the file=event of the contract."""
  right = expected or 'one of ' + ', '.join(events)
  return Field(name, 'event', coded(events, EVENT_DTYPE), right)


def flag(name: str) -> Field:
  """Return a field that is 0 or 1, as text."""
  return Field(name, name, coded({'0': '0', '1': '1'}, pl.String()), '0 or 1')


def either(*cases: tuple[pl.Expr, str], otherwise: str) -> pl.Expr:
  """Return the event of the first case that holds."""
  chosen = pl.lit(otherwise)
  for case, name in reversed(cases):
    chosen = pl.when(case).then(pl.lit(name)).otherwise(chosen)
  return chosen.cast(EVENT_DTYPE)


PURCHASE = {'event': either(otherwise='purchase')}
