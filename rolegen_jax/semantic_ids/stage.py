"""The stage `semantic_ids`: training events and text -> the catalogue, and text vectors.

Where a run continues another one, its items keep their IDs and only new items get some.
"""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np
import polars as pl
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, SemanticIdConfig
from rolegen_jax.data.files import write_json
from rolegen_jax.data.log import InteractionLog, Part
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.runtime import storage
from rolegen_jax.semantic_ids.catalogue import Catalogue, build
from rolegen_jax.semantic_ids.embeddings import (
  PART_PAIRS,
  Events,
  embedder_of_more,
  item_embeddings,
  text_embeddings,
  texts,
  unit,
  window_of,
)
from rolegen_jax.semantic_ids.placing import add_items
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
  _save(catalogue, log, occasions, folder)
  return catalogue


def _save(
  catalogue: Catalogue, log: InteractionLog, occasions: Occasions, folder: str | os.PathLike
) -> None:
  catalogue.save(folder)
  report = {
    'digest': catalogue.digest,
    'parent': catalogue.parent,
    'log': log.digest,
    'occasions': occasions.digest,
  }
  write_json(report | catalogue.report, storage.path(folder) / 'report.json')


class Earlier(NamedTuple):
  """The semantic IDs of a run that another one continues."""

  items: pl.DataFrame  # of its log, [I]
  catalogue: Catalogue
  text: TextVectors | None  # in the order of `items`


def extend_semantic_ids(
  earlier: Earlier,
  log: InteractionLog,
  occasions: Occasions,
  config: SemanticIdConfig,
  folder: str | os.PathLike,
  text_nxD: np.ndarray | None = None,
) -> Catalogue:
  """Write to `folder` what `build_semantic_ids` does, every item of `earlier` with its own ID.

  New items are placed by text and attributes, and text vectors are made by the map of `earlier`.
  text_nxD: text embeddings of the new items in the order of `log.items`, where no embedder of this
  package makes them. Raises ConfigError when too few IDs are free.
  """
  text = None
  if earlier.text is not None:
    text = _more_text(earlier, log.items, config.text, text_nxD)
    text.save(folder)
  is_new = ~np.isin(log.items['item_id'].to_numpy(), earlier.catalogue.item_ids)
  catalogue = earlier.catalogue
  if is_new.any():
    vectors = (earlier.text.vectors, text.vectors[is_new]) if earlier.text and text else None
    catalogue = add_items(catalogue, earlier.items, log.items.filter(is_new), vectors)
  _save(catalogue, log, occasions, folder)
  return catalogue


def without(items: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
  """Return the items that `known` does not have."""
  return items.filter(~pl.col('item_id').is_in(known['item_id'].implode()))


def _more_text(
  earlier: Earlier, items: pl.DataFrame, name: str, text_nxD: np.ndarray | None
) -> TextVectors:
  """Return the text vectors of `items`: those they had, and of new ones by the same map."""
  assert earlier.text is not None
  is_known = items['item_id'].is_in(earlier.items['item_id'].implode()).to_numpy()
  if text_nxD is None:
    text_nxD = _embedded(earlier.items, items.filter(~is_known), name)
  vectors = np.empty((items.height, earlier.text.vectors.shape[1]), np.float32)
  vectors[~is_known] = earlier.text.of(text_nxD)
  place = earlier.items['item_id'].search_sorted(items['item_id'].filter(is_known)).to_numpy()
  vectors[is_known] = earlier.text.vectors[place]
  return dataclasses.replace(earlier.text, vectors=vectors)


def _embedded(items: pl.DataFrame, new: pl.DataFrame, name: str) -> np.ndarray:
  """Return unit rows float32 [n, D] of the text of `new`, as those of `items` were made."""
  embed = embedder_of_more(items, name)
  if embed is None:
    made = text_embeddings(new, name)
    assert made is not None
    return made
  return unit(np.asarray(embed(texts(new, name)), np.float32))


def embed(
  log: InteractionLog,
  occasions: Occasions,
  text_IxD: np.ndarray | None,
  config: SemanticIdConfig,
) -> np.ndarray:
  """Return item embeddings float32 [I, D] in the order of log.items.

  They depend on rows log.offsets[u]:train_end[u] of each user only. text_IxD: of `text_embeddings`.
  """
  train_end, window = occasions.train_end(log), window_of(len(log.item))
  rows = max(PART_PAIRS // window, 1)
  parts = (_training_events(part, train_end) for part in log.parts(rows))
  return item_embeddings(parts, log.items, text_IxD, config, window)


def _training_events(part: Part, train_end: np.ndarray) -> Events:
  log, weight_E = part.log, np.array([EVENT_WEIGHTS[name] for name in EVENT_NAMES])
  used = part.training(train_end) & (weight_E[log.event] > 0)
  # Ten repeats of a row within a day are not ten times the evidence.
  weight_N = weight_E[log.event[used]] * (1 + np.log(log.count[used]))
  return Events(log.user[used], log.item[used], weight_N)
