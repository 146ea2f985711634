"""The three sides of `peers_training`, each a model in training over the same sequences and the same semantic IDs.

What a side trains on, and so what its numbers count:

  RoleGen  a row of the context's width holds several users' whole sequences (packed). Every item of a sequence but its first is a
           target, predicted from what is before it: one pass trains about six targets a sequence.
  third-party implementations    one example is a history of at most 20 items and the ONE item that came next, as TIGER trains: one target a sequence.

Legend: B rows or examples, n items, L codes an item.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from experiments.benchmarks import beauty
from rolegen_jax import config as c
from rolegen_jax import sharding
from rolegen_jax.runtime.compile import jit
from rolegen_jax.data import batches as data_rows
from rolegen_jax.data.loader import Batches
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.training import state, steps


class Work(NamedTuple):
  """What one update trained on."""

  sequences: int
  targets: int


class Ours:
  """RoleGen's Generative Behavioral Backbone on packed rows, by the warmup loss; no reasoner takes part."""

  def __init__(self, found: beauty.Sequences, codes_IxL: np.ndarray, config: c.Config, batch: int, seed: int = 0):
    self.found, self.config, self.batch, self.cycle = found, config, batch, 1
    self.mesh = sharding.make_mesh(config.mesh)
    self.rolegen = RoleGen(config)
    model_fns = {'backbone': self.rolegen.model_fns['backbone']}
    optimizers = {'backbone': state.optimizer(config.warmup.optimizer, config.warmup.steps)}
    width = config.backbone.context
    packed = data_rows.pack_windows(found.offsets, found.held_out('valid'), width)
    self.batches = Batches(int(packed[0].max()) + 1, batch, seed, lambda rows: data_rows.packed_rows(found.log, packed, rows, width))
    self.place = lambda tree: jax.tree.map(lambda x: sharding.global_batch(self.mesh, np.asarray(x), np.arange(len(x)), len(x)), tree)
    with jax.set_mesh(self.mesh):
      self.trie = jax.device_put(build_trie(codes_IxL, config.semantic_ids.codes), sharding.sharding(self.mesh))
      self.state = state.create(model_fns, optimizers, self.mesh, jax.random.key(seed))
      layout = state.shardings(model_fns, optimizers, self.mesh)
      update = functools.partial(steps.supervised_step, self.rolegen, 'backbone', steps.warmup_loss, optimizers['backbone'])
      started = time.perf_counter()
      lowered = jit(update, donate_argnums=0, out_shardings=(layout, None)).lower(self.state, self.place(self._peek()), self.trie)
      self.compiled = lowered.compile()
      self.compile_s = time.perf_counter() - started
    self.parameters = sum(p.size for p in jax.tree.leaves(self.state.params))

  def _peek(self) -> data_rows.Trajectories:
    position = self.batches.position
    batch = next(self.batches)
    self.batches.seek(position)
    return batch

  def update(self) -> Work:
    """One full update, waited for: batch, forward, backward, optimizer."""
    rows = next(self.batches)
    with jax.set_mesh(self.mesh):
      self.state, metrics = self.compiled(self.state, self.place(rows), self.trie)
    self.loss = float(jax.block_until_ready(metrics['loss']))
    jax.block_until_ready(self.state)
    known = rows.segment > 0
    # Windows of one row are numbered from 1; ranks in a sequence all differ, so all its items but the first are targets.
    sequences = int(rows.segment.max(axis=1).sum())
    return Work(sequences, int(known.sum()) - sequences)

  @functools.cached_property
  def _recommend(self):
    def answer(params, trie, examples, beams):
      return self.rolegen.recommend({'backbone': params}, examples, trie, None, beams, reasoning=False).ranking.item

    return jit(answer, static_argnums=3)

  def rank(self, rows_B: np.ndarray, beams: int) -> np.ndarray:
    """The `beams` best items at log rows `rows_B`, each from what is before it: int64 [B, beams]."""
    log, size, ranked = self.found.log, self.config.evaluation.batch, []
    for start in range(0, len(rows_B), size):
      part = rows_B[start:start + size]
      filled = np.resize(part, size)  # the last batch is filled up and cut
      history = data_rows.histories(log, log.user[filled], filled, self.config.backbone.context)
      examples = data_rows.Examples(history, log.timestamp[filled].astype(np.int32), None, None, None, None)
      with jax.set_mesh(self.mesh):
        ranked.append(np.asarray(self._recommend(self.state.params['backbone'], self.trie, self.place(examples), beams))[:len(part)])
    return np.concatenate(ranked)

  def save(self, path: pathlib.Path) -> None:
    with open(path, 'wb') as f:
      np.savez(f, *map(np.asarray, jax.tree.leaves(self.state)), position=json.dumps(self.batches.position))

  def load(self, path: pathlib.Path) -> None:
    like, structure = jax.tree.flatten(self.state)
    with np.load(path) as f:
      leaves = [jax.device_put(f[f'arr_{i}'], old.sharding) for i, old in enumerate(like)]
      self.batches.seek(json.loads(str(f['position'])))
    self.state = structure.unflatten(leaves)


class Examples:
  """Endless (history, next item) examples in an order of `seed`; the position is one integer."""

  def __init__(self, found: beauty.Sequences, seed: int):
    self.position, rows = 0, found.training_rows()
    self.size = len(rows)
    self.order = functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(rows))

  def take(self, count: int) -> np.ndarray:
    """The next `count` log rows to predict."""
    epoch, place = np.divmod(np.arange(self.position, self.position + count), self.size)
    self.position += count
    return np.array([self.order(e)[p] for e, p in zip(epoch.tolist(), place.tolist())])


class _Torch:
  """What the two third-party implementations share: torch's loop around `loss_of(log rows) -> torch scalar`."""

  compile_s = 0.0

  def _start(self, found, batch: int, cycle: int, seed: int):
    self.found, self.batch, self.cycle = found, batch, cycle
    self.examples, self.ready = Examples(found, seed), []

  def update(self) -> Work:
    rows = self._next()
    self.network.train()
    self.optimizer.zero_grad()
    loss = self.loss_of(rows)
    loss.backward()
    self.optimizer.step()
    self.loss = loss.item()
    return Work(len(rows), len(rows))

  def _next(self) -> np.ndarray:
    """The next batch; with a cycle of many, so many are drawn at once, sorted by the length of their histories, and shuffled."""
    if not self.ready:
      rows = self.examples.take(self.batch * self.cycle)
      if self.cycle > 1:
        length = rows - self.found.offsets[self.found.log.user[rows]]
        rows = rows[np.argsort(-np.minimum(length, beauty.HISTORY), kind='stable')]
      parts = rows.reshape(self.cycle, self.batch)
      self.ready = list(parts[np.random.default_rng(self.examples.position).permutation(self.cycle)])
    return self.ready.pop()

  def save(self, path: pathlib.Path) -> None:
    import torch

    held = dict(network=self.network.state_dict(), optimizer=self.optimizer.state_dict(), position=self.examples.position)
    torch.save(held, path)

  def load(self, path: pathlib.Path) -> None:
    """Continues with the examples after the last batch drawn; what was drawn and not trained yet is passed over."""
    import torch

    held = torch.load(path, weights_only=True)
    self.network.load_state_dict(held['network'])
    self.optimizer.load_state_dict(held['optimizer'])
    self.examples.position, self.ready = held['position'], []


class HuggingFace(_Torch):
  """transformers' T5 in TIGER's shape, trained by AdamW; batches are padded to their longest history.

  `cycle` 1: random batches. More: batches of like length, as transformers' length-grouped sampler makes them.
  """

  def __init__(self, found, codes_IxL, batch: int, cycle: int = 1, learning_rate: float = 1e-3, codes_per_level: int = 256, seed: int = 0, **sizes):
    import torch

    self._start(found, batch, cycle, seed)
    self.codes_IxL, self.codes_per_level = codes_IxL, codes_per_level
    self.network = beauty.tiger(codes_IxL.shape[1], codes_per_level, seed, **sizes)
    self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=learning_rate, weight_decay=1e-4, fused=True)
    self.parameters = beauty.parameters(self.network)
    self.tree = beauty.prefix_tree(codes_IxL, codes_per_level)

  def loss_of(self, rows):
    import torch

    ids, mask = beauty.encoder_inputs(self.found.histories(rows), self.codes_IxL, self.codes_per_level)
    labels = beauty.labels(self.found.item[rows], self.codes_IxL, self.codes_per_level)
    return self.network(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), labels=torch.from_numpy(labels)).loss

  def rank(self, rows_B: np.ndarray, beams: int) -> np.ndarray:
    parts = np.array_split(rows_B, -(-len(rows_B) // 64))
    ask = lambda rows: beauty.generate(self.network, self.found.histories(rows), self.codes_IxL, self.tree, beams, self.codes_per_level)
    return np.concatenate([ask(rows) for rows in parts])


class Cornac(_Torch):
  """cornac's TIGER: its network, its settings (AdamW of 1e-3, histories always padded to 20 items), its beam search, our codes."""

  def __init__(self, found, codes_IxL, batch: int, learning_rate: float = 1e-3, codes_per_level: int = 256, seed: int = 0, **sizes):
    import torch
    from cornac.models import TIGER

    self._start(found, batch, 1, seed)
    model = TIGER(rqvae_num_levels=codes_IxL.shape[1] - 1, rqvae_codebook_size=codes_per_level, max_len=beauty.HISTORY, n_epochs=0,
                  learning_rate=learning_rate, batch_size=batch, device='cpu', seed=seed, **sizes)
    model.num_items, model.device_ = len(codes_IxL), 'cpu'
    model._build_semantic_ids(codes_IxL[:, :-1].astype(np.int64))
    if (model.sid_table != codes_IxL).any():
      raise ValueError('the last code of every item must be the number of earlier items with the same codes, as `beauty.distinct` makes it')
    torch.manual_seed(seed)
    model._fit_seq2seq(torch, None)  # of no epochs: it builds the network; the loop is below, since ours must be able to pause
    self.model, self.network = model, model.model
    self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=model.learning_rate, weight_decay=model.weight_decay)
    self.parameters = beauty.parameters(self.network)

  def loss_of(self, rows):
    import torch

    histories = self.found.histories(rows)
    read = self.model.enc_token_table[np.where(histories >= 0, histories, self.model.pad_idx)].reshape(len(rows), -1)
    tokens = torch.from_numpy(read)
    return self.network(tokens, (tokens != 0).float(), torch.from_numpy(self.model.sid_table[self.found.item[rows]]))

  def rank(self, rows_B: np.ndarray, beams: int) -> np.ndarray:
    """One user at a time, as cornac does."""
    self.model.n_beams = beams
    history = lambda row: [item for item in self.found.histories(np.array([row]))[0].tolist() if item >= 0]
    score = lambda row: self.model.score(int(self.found.log.user[row]), history(row))
    return np.stack([np.argsort(-score(row), kind='stable')[:beams] for row in rows_B.tolist()])
