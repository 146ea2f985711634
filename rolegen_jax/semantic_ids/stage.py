"""The stage `semantic_ids`: training events and text -> the catalogue, and text vectors."""

from __future__ import annotations

import os

import numpy as np
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, SemanticIdConfig
from rolegen_jax.data.files import write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.runtime import storage
from rolegen_jax.semantic_ids.catalogue import Catalogue, build
from rolegen_jax.semantic_ids.embeddings import item_embeddings, text_embeddings
from rolegen_jax.semantic_ids.text_vectors import TextVectors

# What an event says about the item relative to a view. An impression says what a page showed, not
# what a user did.
EVENT_WEIGHTS = dict(impression=0.0, view=1.0, fav=2.0, cart=2.0, remove=0.5, purchase=3.0)


def build_semantic_ids(
  log: InteractionLog,
  occasions: Occasions,
  config: SemanticIdConfig,
  mesh: Mesh,
  folder: str | os.PathLike,
  text_IxD: np.ndarray | None = None,
) -> Catalogue:
  """Build the catalogue of all items of `log` and write catalogue.npz and report.json to `folder`.

  Where `config.text` names an embedder, text.npz too: the text vectors of all items. Only training
  events are used. Items without one are placed by their attributes and text; those with neither
  share one place. When several processes share `folder`, only one may write at a time: the caller
  decides which. text_IxD: text embeddings, unit rows, where no embedder of this package makes them.
  """
  if text_IxD is None:
    text_IxD = text_embeddings(log.items, config.text)
  if text_IxD is not None:
    TextVectors.fit(text_IxD, config.text_dim).save(folder)
  embeddings = embed(log, occasions, text_IxD, config)
  catalogue = build(embeddings, log.items['item_id'], config, mesh)
  if text_IxD is not None:
    catalogue.report['items_with_text'] = int(text_IxD.any(axis=1).sum())
  catalogue.save(folder)
  report = {
    'digest': catalogue.digest,
    'log': log.digest,
    'occasions': occasions.digest,
  }
  write_json(report | catalogue.report, storage.path(folder) / 'report.json')
  return catalogue


def embed(
  log: InteractionLog,
  occasions: Occasions,
  text_IxD: np.ndarray | None,
  config: SemanticIdConfig,
) -> np.ndarray:
  """Return item embeddings float32 [I, D] in the order of log.items.

  They depend on rows log.offsets[u]:train_end[u] of each user only. text_IxD: of `text_embeddings`.
  """
  weight_E = np.array([EVENT_WEIGHTS[name] for name in EVENT_NAMES])
  row_N = np.arange(len(log.item))
  is_train_N = row_N < occasions.train_end(log)[log.user]
  used_N = is_train_N & (weight_E[log.event] > 0)
  # Ten repeats of a row within a day are not ten times the evidence.
  weight_N = weight_E[log.event[used_N]] * (1 + np.log(log.count[used_N]))
  return item_embeddings(log.user[used_N], log.item[used_N], weight_N, log.items, text_IxD, config)
