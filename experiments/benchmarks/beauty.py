"""What the benchmarks against third-party implementations have in common: the Amazon Beauty sequences, one set of semantic IDs, and two generative
recommenders of 4.6 M parameters, ours and Hugging Face T5 in TIGER's shape.

TIGER (Rajput et al., arXiv 2305.05065): T5 of width 128, MLP 1024, 6 heads of 64, 4 + 4 layers; the encoder reads every code of
every history item, the decoder emits the codes of the next one. IDs of all sides: residual k-means of 3 levels of 256 codes,
and a fourth code that tells items of equal first three codes apart, 0 for the first of them.

Legend: U users, I items, N events, B rows, n history items, L codes an item, K codes a level.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from experiments import amazon_beauty
from rolegen_jax import config as c
from rolegen_jax import sharding
from rolegen_jax.data.adapters import ADAPTERS, log_path
from rolegen_jax.data.events import validate
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions, find_occasions
from rolegen_jax.semantic_ids.residual_kmeans import residual_kmeans
from rolegen_jax.semantic_ids.stage import embed

QUANTISED = 3  # levels of residual k-means; one more code tells colliding items apart
HISTORY = 20  # items that TIGER reads, the latest
PAD = 0  # T5's token of padding and of the decoder's start
TIGER = dict(d_model=128, d_ff=1024, d_kv=64, num_heads=6, num_layers=4, num_decoder_layers=4)


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
  """A log of purchases in order, leave-one-out: the last item of a user is the test item, the one before it validation.

  Training may use item[offsets[u]:offsets[u + 1] - 2] of user u, validation predicts item[offsets[u + 1] - 2] from those.
  """

  log: InteractionLog
  occasions: Occasions

  @property
  def item(self) -> np.ndarray:
    """int32 [N], sorted by user and time."""
    return self.log.item

  @property
  def offsets(self) -> np.ndarray:
    """int64 [U + 1]; user u has rows offsets[u]:offsets[u + 1]."""
    return self.log.offsets

  def held_out(self, which: str) -> np.ndarray:
    """int64 [U]: row of every user's 'valid' or 'test' item; what is before it is the history."""
    return self.offsets[1:] - dict(valid=2, test=1)[which]

  def histories(self, rows: np.ndarray, width: int = HISTORY) -> np.ndarray:
    """int32 [B, width]: up to `width` items of the same user right before each of `rows` [B], right-aligned, -1 = none."""
    index = rows[:, None] + np.arange(-width, 0)
    first = self.offsets[self.log.user[rows]]
    return np.where(index >= first[:, None], self.item[np.maximum(index, 0)], -1).astype(np.int32)

  def training_rows(self) -> np.ndarray:
    """int64 [.]: rows that are a training target with something before it, each an example (history, next item) of a peer."""
    row = np.arange(len(self.item))
    return row[(row > self.offsets[self.log.user]) & (row < self.held_out('valid')[self.log.user])]


@functools.cache
def sequences() -> Sequences:
  """The Beauty log under $ROLEGEN_DATA: 22,363 users, 12,101 items, 198,502 purchases. Raises DataError when it is not there."""
  data = config().data
  path = log_path(data)
  events, items, _ = ADAPTERS[data.format](path, data)
  log = InteractionLog.build(*validate(events, items, f'{path} (events)', f'{path} (items)'))
  return Sequences(log, find_occasions(log, data))


@functools.cache
def codes() -> np.ndarray:
  """The semantic ID of every item of `sequences()`, int32 [I, 4], all different, from training events and the items' text."""
  found = sequences()
  ids = config().semantic_ids
  embeddings = embed(found.log, found.occasions, ids)
  mesh = sharding.make_mesh(c.MeshConfig(), jax.local_devices()[:1])
  return distinct(residual_kmeans(embeddings, QUANTISED, ids.codes, ids.iterations, ids.seed, mesh).codes, ids.codes)


def distinct(codes_IxL: np.ndarray, most: int) -> np.ndarray:
  """Codes with one more, int32 [I, L + 1]: how many earlier items have the same. Raises ValueError at `most` of them."""
  _, group, sizes = np.unique(codes_IxL, axis=0, return_inverse=True, return_counts=True)
  if sizes.max() > most:
    raise ValueError(f'{sizes.max()} items share one ID, {most} can be told apart by one more code')
  group = group.ravel()
  order = np.argsort(group, kind='stable')
  place = np.empty(len(group), np.int64)
  place[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
  return np.concatenate([codes_IxL, place[:, None]], axis=1).astype(np.int32)


def config() -> c.Config:
  """RoleGen's Config of these benchmarks: IDs of 4 x 256, a backbone of 4.6 M parameters. The reasoner takes no part."""
  base = amazon_beauty.get_config()
  ids = c.SemanticIdConfig(levels=QUANTISED + 1, codes=256, text='hashed_ngrams')
  temporal = c.TransformerConfig(layers=5, width=256, heads=4, kv_heads=2, head_dim=64, mlp=464)
  backbone = dataclasses.replace(base.backbone, temporal=temporal, context=32, dropout=0.1)
  # Budgets are in seconds, so nobody knows the last step: a constant rate after the warmup.
  constant = dataclasses.replace(base.warmup.optimizer, final_share=1.0)
  warmup = dataclasses.replace(base.warmup, steps=1_000_000, optimizer=constant)
  return c.validate(dataclasses.replace(base, semantic_ids=ids, backbone=backbone, warmup=warmup))


# Hugging Face T5 in TIGER's shape. torch and transformers are imported inside: they are an extra.


def tiger(levels: int = QUANTISED + 1, codes_per_level: int = 256, seed: int = 0, **sizes):
  """A fresh transformers.T5ForConditionalGeneration over `tokens`; `sizes` replaces fields of T5Config (tests: smaller)."""
  import torch
  import transformers

  torch.manual_seed(seed)
  return transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=1 + levels * codes_per_level, pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=None, dropout_rate=0.1,
      feed_forward_proj='relu', **TIGER | sizes,
  ))


def tokens(codes_xL: np.ndarray, codes_per_level: int = 256) -> np.ndarray:
  """T5 tokens, int64 [..., L], of codes [..., L]: 1 + K * level + code."""
  return 1 + codes_per_level * np.arange(codes_xL.shape[-1]) + codes_xL.astype(np.int64)


def encoder_inputs(item_Bxn: np.ndarray, codes_IxL: np.ndarray, codes_per_level: int = 256) -> tuple[np.ndarray, np.ndarray]:
  """(input_ids int64 [B, n * L], attention_mask of it) of right-aligned histories, -1 = none. As wide as the longest history."""
  longest = max(1, int((item_Bxn >= 0).sum(axis=1).max()))
  item_Bxn = item_Bxn[:, item_Bxn.shape[1] - longest:]
  real = np.repeat(item_Bxn >= 0, codes_IxL.shape[1], axis=1)
  ids = tokens(codes_IxL[np.maximum(item_Bxn, 0)], codes_per_level).reshape(real.shape)
  return np.where(real, ids, PAD), real.astype(np.int64)


def labels(item_B: np.ndarray, codes_IxL: np.ndarray, codes_per_level: int = 256) -> np.ndarray:
  """The decoder's L tokens of each item, int64 [B, L]; no end token follows: all items have L."""
  return tokens(codes_IxL[item_B], codes_per_level)


def parameters(model) -> int:
  """How many numbers a torch module learns; shared ones count once."""
  return sum(p.numel() for p in model.parameters())


def items_of(tokens_xL: np.ndarray, codes_IxL: np.ndarray, codes_per_level: int = 256) -> np.ndarray:
  """The item of each row of L tokens, int64 [...]; -1 where they are no item's ID."""
  levels = codes_IxL.shape[1]
  code_xL = np.asarray(tokens_xL, np.int64) - tokens(np.zeros(levels), codes_per_level)
  sane = ((code_xL >= 0) & (code_xL < codes_per_level)).all(axis=-1)
  weights = codes_per_level ** np.arange(levels)[::-1]
  keys, key = codes_IxL.astype(np.int64) @ weights, np.where(sane[..., None], code_xL, 0) @ weights
  order = np.argsort(keys)
  at = order[np.searchsorted(keys, key, sorter=order).clip(max=len(order) - 1)]
  return np.where(sane & (keys[at] == key), at, -1)


def prefix_tree(codes_IxL: np.ndarray, codes_per_level: int = 256) -> dict[tuple[int, ...], list[int]]:
  """The tokens that may follow every prefix of items' tokens, for `prefix_allowed_tokens_fn` of `generate`."""
  tree: dict[tuple[int, ...], set[int]] = {}
  for row in tokens(codes_IxL, codes_per_level).tolist():
    for level, token in enumerate(row):
      tree.setdefault(tuple(row[:level]), set()).add(token)
  return {prefix: sorted(found) for prefix, found in tree.items()}


def generate(model, item_Bxn: np.ndarray, codes_IxL: np.ndarray, tree: dict, beams: int, codes_per_level: int = 256) -> np.ndarray:
  """T5's own constrained beam search, `tree` of `prefix_tree`: items int64 [B, beams], best first; -1 = no item's ID."""
  import torch

  ids, mask = (torch.from_numpy(x) for x in encoder_inputs(item_Bxn, codes_IxL, codes_per_level))
  model.eval()
  with torch.inference_mode():
    found = model.generate(
        input_ids=ids, attention_mask=mask, num_beams=beams, num_return_sequences=beams, do_sample=False,
        min_new_tokens=codes_IxL.shape[1], max_new_tokens=codes_IxL.shape[1],
        prefix_allowed_tokens_fn=lambda _, tokens_t: tree[tuple(tokens_t[1:].tolist())],
    )
  return items_of(found[:, 1:].numpy(), codes_IxL, codes_per_level).reshape(len(item_Bxn), beams)
