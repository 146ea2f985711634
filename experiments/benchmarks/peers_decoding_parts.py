"""The sides of `peers_decoding`, how one cell of it is timed, and how our search is held against scoring everything.

A side answers `serve(histories int [B, n], beams)` with items int [B, beams], best first, -1 where it has none: from item numbers
on the host to item numbers on the host. All sides have fresh weights, so the work is real and the lists say nothing about quality.

Legend: B requests, n history items, k beams, I items, L codes an item, K codes a level, S memory slots, Q items scored.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import beauty, measure
from rolegen_jax import config as c
from rolegen_jax import sharding
from rolegen_jax.runtime.compile import jit
from rolegen_jax.data.batches import Examples, Trajectories
from rolegen_jax.models import functional
from rolegen_jax.models.backbone import PURCHASE
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import build_trie

OURS = 'rolegen'
CHUNK = 2048  # items that are scored at once
TIE = 1e-5  # nats between two float32 sums of the same terms
FEWEST, MOST = 3, 15  # timed rounds of a cell


def full_histories(found: beauty.Sequences, count: int, width: int, seed: int = 0) -> np.ndarray:
  """int32 [count, width], no padding: what users bought before their test item, the latest `width`, of as many users.

  Where too few users bought so much, whole histories of users in random order are joined and cut into pieces.
  """
  rng, end = np.random.default_rng(seed), found.held_out('test')
  long_enough = np.flatnonzero(end - found.offsets[:-1] >= width)
  if len(long_enough) >= count:
    return found.histories(end[np.sort(rng.choice(long_enough, count, replace=False))], width)
  users = rng.permutation(len(end))
  joined = np.concatenate([found.item[found.offsets[u]:end[u]] for u in users])
  return np.resize(joined, (count, width)).astype(np.int32)


class Ours:
  """RoleGen's backbone: history encoded, recalled from, searched. One program for each (B, n, k)."""

  def __init__(self, codes_IxL: np.ndarray, config: c.Config, params=None, seed: int = 0):
    self.codes_IxL, self.config, self.rolegen, self.compile_s = codes_IxL, config, RoleGen(config), {}
    self.mesh = sharding.make_mesh(config.mesh, jax.local_devices()[:1])
    if params is None:
      params = functional.init(self.rolegen.model_fns['backbone'], jax.random.key(seed), self.mesh)[1]
    self.params, self.programs = params, {}
    self.parameters = sum(p.size for p in jax.tree.leaves(params))
    self.trie = self.catalogue()

  def catalogue(self, allowed: np.ndarray | None = None):
    """The tables of the items that `allowed` bool [I] names, on the device."""
    return jax.device_put(build_trie(self.codes_IxL, self.config.semantic_ids.codes, allowed=allowed), sharding.sharding(self.mesh))

  @staticmethod
  def examples(item_Bxn: np.ndarray) -> Examples:
    """Purchases one rank apart, and a question about the next."""
    b, n = item_Bxn.shape
    full = lambda value: np.full((b, n), value, np.int32)
    rank = np.broadcast_to(np.arange(1, n + 1, dtype=np.int32), (b, n))
    history = Trajectories(item_Bxn.astype(np.int32), full(PURCHASE), full(1), rank, full(1))
    return Examples(history, np.full(b, n + 1, np.int32), None, None, None, None)

  def ranking(self, item_Bxn: np.ndarray, beams: int, trie=None):
    """`Ranking` on the host. A new shape is compiled first, which `compile_s` by (B, n, k) tells apart."""
    examples, trie, key = self.examples(item_Bxn), trie or self.trie, (*item_Bxn.shape, beams)
    with jax.set_mesh(self.mesh):
      if key not in self.programs:
        started = time.perf_counter()
        recommend = jit(lambda params, examples, trie: self.rolegen.recommend({'backbone': params}, examples, trie, None, beams, reasoning=False).ranking)
        self.programs[key] = recommend.lower(self.params, examples, trie).compile()
        self.compile_s[key] = time.perf_counter() - started
      return jax.device_get(self.programs[key](self.params, examples, trie))

  def serve(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    return self.ranking(item_Bxn, beams).item

  @functools.cached_property
  def _score(self):

    def score(params, examples, trie, item_Q):
      backbone = self.rolegen.bind('backbone', params)
      memory = backbone.encode(examples.history, trie.item_codes)
      recall = self.rolegen.query(backbone, memory, examples.timestamp)
      asked = jnp.broadcast_to(item_Q, (len(examples.timestamp), len(item_Q)))
      many = jax.tree.map(lambda a: jnp.repeat(a, len(item_Q), axis=1), recall)
      return backbone.log_prob(many, memory, asked, trie.item_codes)[0]

    return jit(score)

  def score_all(self, item_Bxn: np.ndarray) -> np.ndarray:
    """log p of every item of the catalogue, fp32 [B, I], each by itself: no tree, no beams. One request at a time."""
    n_items = len(self.codes_IxL)
    chunks = np.resize(np.arange(n_items, dtype=np.int32), (-(-n_items // CHUNK), min(CHUNK, n_items)))
    with jax.set_mesh(self.mesh):
      rows = [[self._score(self.params, self.examples(row[None]), self.trie, chunk)[0] for chunk in chunks] for row in item_Bxn]
    return np.stack([np.concatenate(jax.device_get(parts))[:n_items] for parts in rows])


class HuggingFace:
  """transformers' T5 in TIGER's shape: `generate` with `prefix_allowed_tokens_fn` over a Python prefix tree."""

  def __init__(self, codes_IxL: np.ndarray, codes_per_level: int = 256, gib: float = 4.0, **sizes):
    self.codes_IxL, self.codes_per_level, self.gib = codes_IxL, codes_per_level, gib
    self.network = beauty.tiger(codes_IxL.shape[1], codes_per_level, **sizes)
    self.tree = beauty.prefix_tree(codes_IxL, codes_per_level)
    self.parameters = beauty.parameters(self.network)

  def room(self, width: int, beams: int) -> int:
    """Requests whose keys and values of the cross-attention, copied for every beam, fit into `gib`; at least one."""
    t5 = self.network.config
    one = 2 * 4 * t5.num_decoder_layers * t5.num_heads * t5.d_kv * beams * width * self.codes_IxL.shape[1]
    return max(1, int(self.gib * 2**30 / one))

  def serve(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    return beauty.generate(self.network, item_Bxn, self.codes_IxL, self.tree, beams, self.codes_per_level)


class Cornac:
  """cornac's TIGER: its own constrained beam search, which takes one request at a time."""

  def __init__(self, found: beauty.Sequences, codes_IxL: np.ndarray, codes_per_level: int = 256, requests: int = 4, **sizes):
    from experiments.benchmarks.peers_training_sides import Cornac as InTraining

    side = InTraining(found, codes_IxL, 1, codes_per_level=codes_per_level, **sizes)
    self.model, self.parameters, self.requests = side.model, side.parameters, requests
    self.model.model.eval()

  def room(self, width: int, beams: int) -> int:
    """So many are timed one after the other; more of them say no more."""
    return self.requests

  def serve(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    import torch

    found = np.full((len(item_Bxn), beams), -1)
    with torch.inference_mode():
      for answer, history in zip(found, item_Bxn):
        tokens = torch.from_numpy(self.model.enc_token_table[history].reshape(1, -1))
        ids, _ = self.model.model.generate_beam(tokens, (tokens != 0).float(), beams, self.model.prefix_children)
        answer[:len(ids)] = [self.model.sid_to_item.get(sid, -1) for sid in ids]
    return found


def piece(batch: int, room: int) -> int:
  """The greatest divisor of `batch` that is at most `room`."""
  return max(p for p in range(1, batch + 1) if batch % p == 0 and p <= room)


def cell(sides: dict, item_Bxn: np.ndarray, beams: int, budget_s: float) -> dict:
  """One (B, n, k): every side in turn, as often as `budget_s` allows, 3 to 15 times after a first round that is not timed.

  A peer that cannot hold the whole batch, or answers one at a time, is timed on one piece of `requests` of it; the rest are the
  same again, so the batch's seconds are the piece's times as many. By side: p50_s and quartiles_s of the batch, requests_per_s,
  requests and seconds of what was timed; of its lists how many entries are `invalid` (no item) and `duplicate`. `ratios`: the
  peer's p50_s over ours.
  """
  batch, width = item_Bxn.shape
  served = {name: piece(batch, side.room(width, beams)) if name != OURS else batch for name, side in sides.items()}
  lists = {}

  def call(name):
    lists[name] = sides[name].serve(item_Bxn[:served[name]], beams)

  calls = {name: functools.partial(call, name) for name in sides}
  sides[OURS].serve(item_Bxn, beams)  # compiles
  started = time.perf_counter()
  for once in calls.values():
    once()
  repeats = int(np.clip(budget_s / (time.perf_counter() - started), FEWEST, MOST))
  timed = measure.alternate(calls, repeats, warm_up=0)
  found = {}
  for name, times in timed.items():
    whole = batch / served[name]
    found[name] = dict(
        p50_s=whole * times['median_s'], quartiles_s=[whole * q for q in times['quartiles_s']], requests_per_s=served[name] / times['median_s'],
        requests=served[name], seconds=times['seconds'], **faults(lists[name], len(sides[OURS].codes_IxL)),
    )
  found[OURS]['compile_s'] = sides[OURS].compile_s[(batch, width, beams)]
  ratios = {name: side['p50_s'] / found[OURS]['p50_s'] for name, side in found.items() if name != OURS}
  return dict(batch=batch, history=width, beams=beams, sides=found, ratios=ratios)


def faults(item_Bxk: np.ndarray, n_items: int) -> dict:
  """Of the entries of lists: how many, how many are no item, how many name an item a second time."""
  real = (item_Bxk >= 0) & (item_Bxk < n_items)
  again = sum(int(row.sum()) - len(np.unique(items[row])) for items, row in zip(item_Bxk, real))
  return dict(entries=int(item_Bxk.size), invalid=int((~real).sum()), duplicate=again)


def exact(ours: Ours, item_Bxn: np.ndarray, sizes: list[int], seed: int = 0) -> list[dict]:
  """Catalogues of a few items, as many beams as items: our whole ranking against scoring every item by itself.

  same_order: requests whose ranking is that of the scores. same_but_ties: those whose scores never rise along our ranking by more
  than TIE. most_nats: greatest difference of an item's two scores.
  """
  score, found = ours.score_all(item_Bxn), []
  for size in sizes:
    allowed = np.zeros(score.shape[1], bool)
    allowed[np.random.default_rng((seed, size)).choice(score.shape[1], size, replace=False)] = True
    ranking = ours.ranking(item_Bxn, size, ours.catalogue(allowed))
    by_score = np.argsort(-np.where(allowed, score, -np.inf), axis=1, kind='stable')[:, :size]
    along = np.take_along_axis(score, ranking.item, axis=1)
    whole = (np.sort(ranking.item, axis=1) == np.flatnonzero(allowed)).all(axis=1)
    found.append(dict(
        items=size, beams=size, requests=len(item_Bxn), same_order=int((ranking.item == by_score).all(axis=1).sum()),
        same_but_ties=int((whole & (np.diff(along, axis=1) <= TIE).all(axis=1)).sum()), most_nats=float(np.abs(along - ranking.score).max()),
    ))
  return found


def recall(ours: Ours, item_Bxn: np.ndarray, beams: list[int], tops: list[int]) -> list[dict]:
  """The whole catalogue, fewer beams than items: by beams and top, the share of the truly best `top` items that the search found
  (`recall`, mean over requests) and the requests where it found them all (`all_found`)."""
  score = ours.score_all(item_Bxn)
  best = np.argsort(-score, axis=1, kind='stable')[:, :max(tops)]
  found = []
  for k in beams:
    item = ours.serve(item_Bxn, k)
    for top in (t for t in tops if t <= k):
      share = np.array([np.isin(true[:top], row[:top]).mean() for true, row in zip(best, item)])
      found.append(dict(beams=k, top=top, requests=len(item_Bxn), recall=float(share.mean()), all_found=int((share == 1).sum())))
  return found
