"""Counts and item vectors of a log in several parts, on files, are those of the log at once."""

import numpy as np
import pytest
from scipy import sparse as sp

from rolegen_jax.config import DataConfig, ReasonerConfig, SemanticIdConfig
from rolegen_jax.data import log as log_lib
from rolegen_jax.data import sparse_sums
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features import item_transitions
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel, Transitions
from rolegen_jax.semantic_ids import embeddings, stage
from tests.data import random_logs

CODES = 6
SHARES = Kernel(3, 'time', backward=0.5, normalization='shares', prior=2.0)


@pytest.fixture(scope='module')
def log():
  return InteractionLog.build(*random_logs.random_tables(0, rows=8000, users=500))


@pytest.fixture
def train_end(log):
  return find_occasions(log, DataConfig()).train_end(log)


def on_files(monkeypatch):
  for module, name, value in (
    (log_lib, 'PART_ROWS', 1500),
    (sparse_sums, 'HELD', 20),
    (sparse_sums, 'BLOCK', 4),
    (sparse_sums, 'IN_MEMORY', 64),
  ):
    monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize('kernel', [Kernel(), SHARES], ids=['cosine', 'shares'])
def test_counts_do_not_depend_on_parts(log, train_end, kernel, monkeypatch):
  coarse = (np.arange(len(log.items)) % CODES).astype(np.int32)
  config = ReasonerConfig(coarse_codes=3, transitions=4)

  def counted():
    shift = InterestShift.of(log, train_end, coarse, CODES)
    transitions = Transitions.of(log, train_end, kernel)
    return shift, transitions, Excitation.of_counts(shift, transitions, config)

  whole = counted()
  on_files(monkeypatch)
  parts = counted()
  assert parts[1].pairs[0].files and isinstance(parts[2].share.base, np.memmap)
  item, code = np.meshgrid(np.arange(len(log.items)), np.arange(CODES))
  for name in ('shift_KxK', 'complement_KxK'):
    np.testing.assert_allclose(getattr(parts[0], name), getattr(whole[0], name), atol=1e-6)
  np.testing.assert_allclose(parts[0].z(item, code), whole[0].z(item, code), atol=1e-3)
  np.testing.assert_allclose(parts[1].table().toarray(), whole[1].table().toarray(), atol=1e-12)
  for name in ('weight', 'share'):
    found, want = (getattr(each[2], name) for each in (parts, whole))
    np.testing.assert_allclose(np.sort(found), np.sort(want), atol=1e-5)
    assert want.any()
  np.testing.assert_allclose(parts[2].opens.share, whole[2].opens.share, atol=1e-5)


def test_a_table_that_is_too_large_keeps_the_largest_of_each_item(log, train_end, monkeypatch):
  whole = Transitions.of(log, train_end, Kernel()).table()
  on_files(monkeypatch)
  monkeypatch.setattr(item_transitions, 'TABLE', 5 * len(log.items))
  table = Transitions.of(log, train_end, Kernel()).table()
  want = sparse_sums.largest_entries(whole, 5)
  assert want.nnz < whole.nnz
  np.testing.assert_allclose(table.toarray(), want.toarray(), atol=1e-12)


def test_item_vectors_do_not_depend_on_parts(log, monkeypatch):
  occasions = find_occasions(log, DataConfig())
  config = SemanticIdConfig(collaborative_dim=4)
  whole = stage.embed(log, occasions, None, config)
  on_files(monkeypatch)
  monkeypatch.setattr(embeddings, 'ITEM_BLOCK', 5)
  monkeypatch.setattr(stage, 'PART_PAIRS', 30 * 1500)
  np.testing.assert_allclose(stage.embed(log, occasions, None, config), whole, atol=1e-4)


def test_longer_logs_have_smaller_windows_and_sparser_matrices(monkeypatch):
  assert embeddings.window_of(1000) == embeddings.WINDOW
  assert embeddings.window_of(40_000_000) == 3 and embeddings.window_of(10**10) == 1
  monkeypatch.setattr(sparse_sums, 'HELD', 1)
  monkeypatch.setattr(embeddings, 'ENTRIES', 40)
  counts = sparse_sums.SparseSum(20, 20, np.float64)
  pairs = sp.random_array((20, 20), density=0.8, rng=np.random.default_rng(0), format='csr')
  counts.add(sp.csr_array(pairs + pairs.T))
  assert np.diff(embeddings._ppmi(sparse_sums.Counts([counts])).indptr).max() == 2
