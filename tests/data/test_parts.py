"""A log in parts: what is read or counted part by part is what is read or counted at once."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import shard_logs
from random_logs import random_tables

from rolegen_jax.config import DataConfig
from rolegen_jax.data import log as log_lib
from rolegen_jax.data import sparse_sums
from rolegen_jax.data.contract import read_contract
from rolegen_jax.data.files import DataError
from rolegen_jax.data.leaks import check_no_leak
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.data.prepare import prepare_log
from rolegen_jax.data.shards import sort

USERS = 400


@pytest.fixture
def log() -> InteractionLog:
  return InteractionLog.build(*random_tables(0, rows=6000, users=USERS))


def small_parts(monkeypatch, rows=1000):
  monkeypatch.setattr(log_lib, 'PART_ROWS', rows)


def test_parts_are_whole_users_in_order_and_little_more_than_asked_for(log):
  parts = list(log.parts(1000))
  assert len(parts) > 4
  assert [part.first_user % log_lib.USER_BLOCK for part in parts] == [0] * len(parts)
  for name in log_lib.COLUMNS:
    joined = np.concatenate([getattr(part.log, name) for part in parts])
    np.testing.assert_array_equal(joined, getattr(log, name))
  users = np.concatenate([part.first_user + part.log.user for part in parts])
  np.testing.assert_array_equal(users, log.user)
  assert pl.concat([part.log.users for part in parts]).equals(log.users)
  per_block = max(np.add.reduceat(np.diff(log.offsets), np.arange(0, USERS, log_lib.USER_BLOCK)))
  assert max(len(part.log.item) for part in parts) <= max(1000, per_block)
  assert len(list(log.parts())) == 1


@pytest.mark.parametrize('split', ['time', 'leave_one_out'])
def test_occasions_and_training_rows_do_not_depend_on_parts(log, split, monkeypatch):
  data = DataConfig(split=split, first_conversion_min_views=3, reactivation_min_views=1)
  whole = find_occasions(log, data)
  end, counts = whole.train_end(log), whole.train_events(log)
  by_row = np.arange(len(log.item)) < end[log.user]
  np.testing.assert_array_equal(counts, np.bincount(log.item[by_row], minlength=len(log.items)))
  small_parts(monkeypatch)
  in_parts = find_occasions(log, data)
  assert in_parts.digest == whole.digest
  np.testing.assert_array_equal(in_parts.train_end(log), end)
  np.testing.assert_array_equal(in_parts.train_events(log), counts)
  check_no_leak(log, in_parts)


def test_a_sample_of_users_is_a_log_of_their_rows(log):
  some, users = log.sampled(len(log.item) // 3)
  assert users.tolist() == list(range(0, USERS, 3)) and len(some.item) < len(log.item) / 2
  for index, user in enumerate(users):
    rows = slice(*some.offsets[index : index + 2])
    np.testing.assert_array_equal(some.item[rows], log.item[slice(*log.offsets[user : user + 2])])
  assert log.sampled(len(log.item))[0] is log


@pytest.mark.parametrize('text_ids', [False, True])
def test_a_log_sorted_on_disk_is_the_log_sorted_in_memory(text_ids, tmp_path, monkeypatch):
  folder = shard_logs.write_log(tmp_path / 'log', text_ids=text_ids)
  data = DataConfig('contract', 'log', first_conversion_min_views=6)
  assert not sort.is_long(data, folder)
  events, items = read_contract(folder, data)
  in_memory = InteractionLog.build(events, items)
  small_parts(monkeypatch, rows=900)
  assert sort.is_long(data, folder)
  scratch = tmp_path / 'scratch'
  on_disk = sort.sort(data, folder, scratch, workers=2)
  assert len(list(scratch.glob('part-*'))) == 5
  assert on_disk.digest == in_memory.digest
  for number, log in enumerate((in_memory, on_disk)):
    prepare_log(data, log, tmp_path / str(number))
  files = sorted(path.name for path in (tmp_path / '0').iterdir())
  assert 'log_timestamp.npy' in files and 'occasions.parquet' in files
  for name in files:
    assert (tmp_path / '0' / name).read_bytes() == (tmp_path / '1' / name).read_bytes(), name
  # What is there is not made again, and what was cut off goes on.
  for path in [*scratch.glob('log_*'), *scratch.glob('part-00002/*'), *scratch.glob('*-00001.*')]:
    path.unlink()
  kept = (scratch / 'chunk-00000.parquet').stat()
  assert sort.sort(data, folder, scratch, workers=1).digest == in_memory.digest
  assert (scratch / 'chunk-00000.parquet').stat() == kept


def test_a_wrong_row_of_a_long_log_is_the_error_of_a_short_one(tmp_path):
  folder = shard_logs.write_log(tmp_path / 'log')
  file = folder / 'events/3.parquet'
  rows = pl.read_parquet(file)
  wrong = pl.when(pl.int_range(pl.len()) == 5).then(pl.lit('bought')).otherwise('event')
  rows.with_columns(event=wrong).write_parquet(file)
  data, errors = DataConfig('contract', 'log'), []
  for read in (read_contract, lambda *known: sort.sort(*known[::-1], tmp_path / 'scratch', 2)):
    with pytest.raises(DataError, match="column 'event', row 6: 'bought'; must be one of") as error:
      read(folder, data)
    errors.append(str(error.value))
  assert errors[0] == errors[1]


def test_logs_that_are_cut_short_or_text_are_not_sorted_on_disk(tmp_path, monkeypatch):
  folder = shard_logs.write_log(tmp_path / 'log')
  small_parts(monkeypatch, rows=900)
  assert not sort.is_long(DataConfig('contract', 'log', max_users=5), folder)
  assert not sort.is_long(DataConfig('contract', 'log', on_error='skip'), folder)
  pl.read_parquet(folder / 'events/0.parquet').write_csv(folder / 'events/0.csv')
  (folder / 'events/0.parquet').unlink()
  assert not sort.is_long(DataConfig('contract', 'log'), folder)


def test_sums_on_files_are_the_sums_in_memory(monkeypatch):
  rng = np.random.default_rng(0)
  matrices = [sp.random_array((50, 20), density=0.2, rng=rng, format='csr') for _ in range(9)]

  def summed() -> sparse_sums.Counts:
    sums = [sparse_sums.SparseSum(50, 20, np.float64) for _ in range(2)]
    for number, matrix in enumerate(matrices):
      sums[number % 2].add(matrix)
    return sparse_sums.Counts(sums)

  in_memory = summed()
  monkeypatch.setattr(sparse_sums, 'HELD', 300)
  monkeypatch.setattr(sparse_sums, 'BLOCK', 600)
  on_files = summed()
  assert in_memory.in_memory and not on_files.in_memory
  blocks = list(on_files.blocks())
  assert len(blocks) > 2 and max(block.nnz for _, block in blocks) < 600
  want = sum(matrix.toarray() for matrix in matrices)
  row, column = np.array([3, 49, 3, 0]), np.array([0, 19, 5, 1])
  for counts in (in_memory, on_files):
    np.testing.assert_allclose(counts.toarray(), want, rtol=1e-12)
    np.testing.assert_allclose(counts.at(row, column), want[row, column], rtol=1e-12)
    np.testing.assert_allclose(counts.take(row).toarray(), want[row], rtol=1e-12)
    for axis in (None, 0, 1):
      np.testing.assert_allclose(counts.sum(axis), want.sum(axis), rtol=1e-12)


def test_the_largest_entries_of_a_row_ties_by_column():
  matrix = sp.csr_array(np.array([[1.0, 3, 0, 3], [0, 0, 0, 0], [2, 1, 5, 4]]))
  want = [[0, 3, 0, 3], [0, 0, 0, 0], [0, 0, 5, 4]]
  assert sparse_sums.largest_entries(matrix, 2).toarray().tolist() == want
  row, rank, column, value = sparse_sums.strongest_entries(matrix, 2)
  found = list(zip(row.tolist(), rank.tolist(), column.tolist(), value.tolist()))
  assert found == [(0, 0, 1, 3), (0, 1, 3, 3), (2, 0, 2, 5), (2, 1, 3, 4)]


def test_a_large_table_is_a_file(monkeypatch):
  monkeypatch.setattr(sparse_sums, 'IN_MEMORY', 100)
  small, large = sparse_sums.table((5, 4), np.float32), sparse_sums.table((5, 5, 2), np.float32)
  assert small.base is None and isinstance(large.base, np.memmap) and not large.any()
  large[2] = 7
  assert large.sum() == 70
