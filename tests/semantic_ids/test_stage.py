"""The stage uses training events only and writes what its docstring promises."""

import dataclasses
import json

import numpy as np
import polars as pl

from rolegen_jax.config import DataConfig, MeshConfig, SemanticIdConfig
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.semantic_ids import stage
from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.semantic_ids.text_vectors import TextVectors
from rolegen_jax.sharding import make_mesh

CONFIG = SemanticIdConfig(levels=2, codes=8, collaborative_dim=8, iterations=5)


def small_log(titles=None, touched=30):
  """(log, occasions) of 30 items, with `titles` or without; the first `touched` have events."""
  rng = np.random.default_rng(0)
  users, events = 40, 30
  item_ids = [f'i{i:02d}' for i in range(30)]
  frame = pl.DataFrame(
    {
      'user_id': np.repeat(np.arange(users), events),
      'item_id': [item_ids[i] for i in rng.integers(0, touched, users * events)],
      'event': rng.choice(['view', 'view', 'cart', 'purchase'], users * events),
      'timestamp': np.tile(np.arange(1, events + 1) * 86_400, users),
    }
  )
  items = pl.DataFrame({'item_id': item_ids} | ({'title': titles} if titles else {}))
  log = InteractionLog.build(*validate(frame, items))
  rules = DataConfig(
    first_conversion_min_views=1, reactivation_min_days=1, reactivation_min_views=1
  )
  return log, find_occasions(log, rules)


def test_the_stage_writes_catalogue_and_report(tmp_path):
  log, occasions = small_log()
  catalogue = stage.build_semantic_ids(log, occasions, CONFIG, make_mesh(MeshConfig()), tmp_path)
  assert Catalogue.load(tmp_path).digest == catalogue.digest
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['digest'] == catalogue.digest
  assert report['log'] == log.digest and report['items'] == 30
  np.testing.assert_array_equal(catalogue.codes_of(log.items['item_id']), catalogue.codes)
  assert not (tmp_path / 'text.npz').exists() and 'items_with_text' not in report


def test_the_stage_writes_text_vectors_of_all_items(tmp_path):
  kinds = ('green tea', 'running shoes', 'wool scarf')
  titles = [f'{kinds[i % 3]} number {i // 3}' for i in range(29)] + [None]
  log, occasions = small_log(titles, touched=21)
  config = dataclasses.replace(CONFIG, text='hashed_ngrams', text_dim=3)
  catalogue = stage.build_semantic_ids(log, occasions, config, make_mesh(MeshConfig()), tmp_path)
  vectors = TextVectors.load(tmp_path).vectors
  assert vectors.dtype == np.float32 and vectors.shape == (30, 3)
  np.testing.assert_allclose(np.linalg.norm(vectors[:29], axis=1), 1, rtol=1e-5)
  assert not vectors[29].any() and catalogue.report['items_with_text'] == 29
  nearest = (vectors @ vectors.T - 2 * np.eye(30)).argmax(axis=1)
  assert (nearest[:29] % 3 == np.arange(29) % 3).all()


def test_events_after_training_change_nothing():
  log, occasions = small_log()
  is_later = np.arange(len(log.item)) >= occasions.train_end(log)[log.user]
  assert is_later.any() and not is_later.all()
  other_items = np.where(is_later, 29 - log.item, log.item).astype(np.int32)
  tampered = dataclasses.replace(log, item=other_items)
  np.testing.assert_array_equal(
    stage.embed(log, occasions, None, CONFIG), stage.embed(tampered, occasions, None, CONFIG)
  )
