"""Atomic files of RecBole: one form for many logs, whose columns the settings name."""

from __future__ import annotations

from rolegen_jax.config import EVENT_NAMES, DataConfig
from rolegen_jax.data import columns
from rolegen_jax.data.columns import Field
from rolegen_jax.data.formats.description import (
  PURCHASE,
  Format,
  Table,
  event,
  labels,
  price,
  text_id,
)
from rolegen_jax.data.layouts import Delimited

SOURCE = (
  'atomic files of RecBole, NAME.inter and NAME.item: '
  'https://recbole.io/docs/user_guide/data/atomic_files.html'
)


def described(data: DataConfig) -> Format:
  """Return the description of atomic files whose columns are as `data.columns` says.

  Rows are purchases unless `data.columns` names the column of the event.
  """
  events, items = data.renamed('events'), data.renamed('items')
  name = {c: events.get(c, c) for c in ('user_id', 'item_id', 'timestamp')}
  seconds = 'seconds UTC of 1990 to 2036, a number'
  kinds = (event(events['event'], **{e: e for e in EVENT_NAMES}),) if 'event' in events else ()
  return Format(
    SOURCE,
    events=(
      Table(
        ('*.inter',),
        Delimited('\t'),
        (
          text_id(name['user_id'], 'user_id'),
          text_id(name['item_id'], 'item_id'),
          Field(name['timestamp'], 'timestamp', columns.seconds, seconds),
          *kinds,
        ),
        {} if kinds else PURCHASE,
      ),
    ),
    items=(
      Table(
        ('*.item',),
        Delimited('\t'),
        (
          text_id(items.get('item_id', 'item_id'), 'item_id'),
          *labels(**{c: items[c] for c in ('title', 'text', 'category_id', 'brand') if c in items}),
          *((price(items['price']),) if 'price' in items else ()),
        ),
      ),
    ),
    unread=('*.user', '*.kg', '*.link', '*.net'),
  )
