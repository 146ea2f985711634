"""What is left out of a log: wrong rows, of which the first may end the reading, and others."""

from __future__ import annotations

import collections

from rolegen_jax.config import DataConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.runtime.progress import say


class Faults:
  """What becomes of wrong rows, and how many rows were left out, by kind.

  Only rows can be skipped: a missing column, or a file that cannot be read, always ends the
  reading.
  """

  def __init__(self, data: DataConfig | None = None) -> None:
    self.skips = data is not None and data.on_error == 'skip'
    self.counts: collections.Counter[str] = collections.Counter()
    self.prefix = ''

  def of(self, table: str) -> Faults:
    """Return what counts into the same counts, with the name of a table before each kind."""
    part = Faults()
    part.skips, part.counts, part.prefix = self.skips, self.counts, f'{table}_'
    return part

  def count(self, kind: str, count: int) -> None:
    """Count rows that are left out although they are not wrong; 0 makes the kind known."""
    self.counts[self.prefix + kind] += count

  def found(self, kind: str, count: int, first: str) -> None:
    """Count wrong rows of one kind and say what the first of all is, or raise it as DataError.

    kind: 'wrong_' and a column, or another short name. count: of rows in one file. first: the
    message of the first of them.
    """
    rows = 'row' if count == 2 else 'rows'
    shown = first + (f' (and {count - 1} more such {rows} here)' if count > 1 else '')
    if not self.skips:
      raise DataError(shown)
    if not self.counts[self.prefix + kind]:
      say(f'{shown}: left out as {self.prefix}{kind}')
    self.count(kind, count)
