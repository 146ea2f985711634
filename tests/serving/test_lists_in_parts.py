"""A table in parts: what is continued, what is dropped, and what it becomes."""

import polars as pl
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import read_parquet
from rolegen_jax.serving.parts import Parts


def part(number: int, rows: int = 2) -> pl.DataFrame:
  """A part with the kinds of columns that lists have; it may have no row."""
  events = pl.List(pl.Struct(dict(item_id=pl.Int64, role=pl.String)))
  return pl.DataFrame(
    dict(
      user_id=pl.Series([f'u{number}'] * rows, dtype=pl.String),
      carried_by=pl.Series([[dict(item_id=number, role='ANCHOR')]] * rows, dtype=events),
    )
  )


def test_parts_become_one_table_in_their_order(tmp_path):
  path = tmp_path / 'lists[1].parquet'
  with Parts(path, 'key', 3) as parts:
    for number, rows in ((2, 1), (0, 2), (1, 0)):
      parts.write(number, part(number, rows))
    parts.join()
  assert read_parquet(path).equals(pl.concat([part(0), part(1, 0), part(2, 1)]))
  assert not (tmp_path / '.lists[1].parquet.parts').exists()


def test_a_part_that_is_missing_is_no_table(tmp_path):
  path = tmp_path / 'x.parquet'
  path.write_bytes(b'before')
  with Parts(path, 'key', 2) as parts:
    parts.write(1, part(1))
    with pytest.raises(FileNotFoundError, match='000000.parquet'):
      parts.join()
    assert parts.read(1).equals(part(1)) and path.read_bytes() == b'before'


def test_parts_are_continued_by_one_at_a_time_and_under_their_key(tmp_path, capsys):
  path = tmp_path / 'x.parquet'
  with Parts(path, 'key', 2) as parts:
    parts.write(0, part(0))
    with pytest.raises(ConfigError, match=r'x.parquet: being written by process \d+'):
      Parts(path, 'key', 2)
  with Parts(path, 'key', 2) as parts:
    assert 'going on after 1 parts' in capsys.readouterr().err
    assert parts.read(0).equals(part(0)) and parts.read(1) is None
  with Parts(path, 'another', 2) as parts:
    assert 'dropping, as they are of other lists, 1 parts' in capsys.readouterr().err
    assert parts.read(0) is None and not list(tmp_path.glob('.x.parquet.parts/*.parquet'))
