"""Atomic files of RecBole: one form for many logs, whose columns the settings name."""

from __future__ import annotations

from rolegen_jax.config import DataConfig
from rolegen_jax.data import columns
from rolegen_jax.data.columns import Field
from rolegen_jax.data.contract import event_fields, item_fields
from rolegen_jax.data.formats.description import PURCHASE, Format, Table
from rolegen_jax.data.layouts import Delimited

SOURCE = (
  'atomic files of RecBole, NAME.inter and NAME.item: '
  'https://recbole.io/docs/user_guide/data/atomic_files.html'
)


def described(data: DataConfig) -> Format:
  """Return the description of atomic files whose columns are as `data.columns` says.

  Rows are purchases unless `data.columns` names the column of the event.
  """
  fields = {field.column: field for field in event_fields(data)}
  has_events = 'event' in data.renamed('events')
  if not has_events:
    del fields['event']
  fields['timestamp'] = Field(
    fields['timestamp'].name,
    'timestamp',
    columns.seconds,
    'seconds UTC of 1990 to 2036, a number',
    hint=columns.likely_unit,
  )
  made = {} if has_events else PURCHASE
  return Format(
    SOURCE,
    events=(Table(('*.inter',), Delimited('\t'), tuple(fields.values()), made),),
    items=(Table(('*.item',), Delimited('\t'), item_fields(data)),),
    unread=('*.user', '*.kg', '*.link', '*.net'),
  )
