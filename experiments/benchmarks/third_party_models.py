"""The third-party models of the benchmarks on Amazon Beauty: Hugging Face T5 and cornac's TIGER.

They are apart from the two benchmarks because both train and serve them. They have the interface,
the sequences, the semantic IDs and as many parameters as `beauty.Ours`. An example is a history of
at most 20 items and the ONE item that came next, as TIGER trains: one target a sequence.

TIGER (Rajput et al., arXiv 2305.05065): T5 of width 128, MLP 1024, 6 heads of 64, 4 + 4 layers; the
encoder reads every code of every history item, the decoder emits the codes of the next one.

Legend: B rows or requests, n history items, I items, L codes an item, K codes a level. torch,
transformers and cornac are extras and so imported inside.
"""

from __future__ import annotations

import functools

import numpy as np

from experiments.benchmarks.beauty import HISTORY, Sequences, Work
from rolegen_jax.config import ConfigError

PACKAGES = ('torch', 'transformers', 'cornac')  # whose versions results are for
LABELS = dict(
  rolegen='RoleGen',
  hf_t5='HF T5',
  hf_t5_grouped='HF T5, batches of like length',
  cornac='cornac TIGER',
)
COLORS = dict(rolegen='#0072B2', hf_t5='#D55E00', hf_t5_grouped='#E69F00', cornac='#009E73')
OURS = 'rolegen'
PAD = 0  # T5's token of padding and of the decoder's start
TIGER = dict(d_model=128, d_ff=1024, d_kv=64, num_heads=6, num_layers=4, num_decoder_layers=4)
HF_BATCH = 64  # requests that Hugging Face's model ranks at once


def require_packages() -> None:
  """Raise ConfigError where a third-party package is not installed."""
  try:
    import cornac  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
  except ImportError as error:
    install = 'pip install -r requirements-third-party.txt'
    raise ConfigError(f'{error}: third-party models are an extra, {install}') from error


class ExampleOrder:
  """Endless (history, next item) examples in an order of `seed`."""

  def __init__(self, sequences: Sequences, seed: int) -> None:
    self.seed, self.rows = seed, sequences.training_rows()
    self.position = 0

  def take(self, count: int) -> np.ndarray:
    """Return the next `count` log rows to predict."""
    epochs, places = np.divmod(np.arange(self.position, self.position + count), len(self.rows))
    self.position += count
    return np.array([self._order(e)[p] for e, p in zip(epochs.tolist(), places.tolist())])

  @functools.lru_cache(maxsize=2)
  def _order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self.seed, epoch)).permutation(self.rows)


class TorchModel:
  """What both third parties share: torch's training loop around `loss_of(log rows)`.

  Each has `network` and `optimizer`. With a `cycle` of many batches, so many are drawn at once and
  sorted by the length of their histories, as transformers' length-grouped sampler does it.
  """

  compile_s = 0.0

  def __init__(self, sequences: Sequences, batch: int, cycle: int, seed: int) -> None:
    self.sequences, self.batch, self.cycle = sequences, batch, cycle
    self.order, self.drawn = ExampleOrder(sequences, seed), []

  @property
  def parameters(self) -> int:
    return sum(p.numel() for p in self.network.parameters())

  def update(self) -> Work:
    rows = self.next_batch()
    self.network.train()
    self.optimizer.zero_grad()
    loss = self.loss_of(rows)
    loss.backward()
    self.optimizer.step()
    self.loss = loss.item()
    return Work(len(rows), len(rows))

  def next_batch(self) -> np.ndarray:
    """Return the log rows of the next batch."""
    if not self.drawn:
      rows = self.order.take(self.batch * self.cycle)
      if self.cycle > 1:
        length = rows - self.sequences.offsets[self.sequences.log.user[rows]]
        rows = rows[np.argsort(-np.minimum(length, HISTORY), kind='stable')]
      parts = rows.reshape(self.cycle, self.batch)
      shuffled = np.random.default_rng(self.order.position).permutation(self.cycle)
      self.drawn = list(parts[shuffled])
    return self.drawn.pop()

  def rank(self, rows_B: np.ndarray, beams: int) -> np.ndarray:
    return self.serve(self.sequences.histories(rows_B), beams)


class HuggingFace(TorchModel):
  """transformers' T5 in TIGER's shape: AdamW, `generate` with a Python prefix tree.

  Batches are padded to their longest history. `sizes` replaces fields of T5Config.
  """

  def __init__(
    self,
    sequences: Sequences,
    codes_IxL: np.ndarray,
    batch: int,
    *,
    cycle: int = 1,
    learning_rate: float = 1e-3,
    codes_per_level: int = 256,
    seed: int = 0,
    **sizes: int,
  ) -> None:
    import torch
    import transformers

    super().__init__(sequences, batch, cycle, seed)
    self.ids = IdTokens(codes_IxL, codes_per_level)
    torch.manual_seed(seed)
    t5 = transformers.T5Config(
      vocab_size=1 + codes_IxL.shape[1] * codes_per_level,
      pad_token_id=PAD,
      decoder_start_token_id=PAD,
      eos_token_id=None,
      dropout_rate=0.1,
      feed_forward_proj='relu',
      **TIGER | sizes,
    )
    self.network = transformers.T5ForConditionalGeneration(t5)
    settings = dict(lr=learning_rate, weight_decay=1e-4, fused=True)
    self.optimizer = torch.optim.AdamW(self.network.parameters(), **settings)

  def loss_of(self, rows_B: np.ndarray):
    import torch

    tokens, mask = map(torch.from_numpy, self.ids.encoder_inputs(self.sequences.histories(rows_B)))
    labels = torch.from_numpy(self.ids.tokens_I[self.sequences.item[rows_B]])
    return self.network(input_ids=tokens, attention_mask=mask, labels=labels).loss

  def serve(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    parts = np.array_split(item_Bxn, -(-len(item_Bxn) // HF_BATCH))
    return np.concatenate([self._generate(part, beams) for part in parts])

  def _generate(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    import torch

    tokens, mask = map(torch.from_numpy, self.ids.encoder_inputs(item_Bxn))
    levels = self.ids.tokens_I.shape[1]
    self.network.eval()
    with torch.inference_mode():
      generated = self.network.generate(
        input_ids=tokens,
        attention_mask=mask,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        min_new_tokens=levels,
        max_new_tokens=levels,
        prefix_allowed_tokens_fn=self.ids.following,
      )
    return self.ids.items_of(generated[:, 1:].numpy()).reshape(len(item_Bxn), beams)

  def requests_at_once(self, width: int, beams: int, gib: float) -> int:
    """Return the requests whose cross-attention keys and values, one copy a beam, fit `gib`."""
    t5, tokens = self.network.config, width * self.ids.tokens_I.shape[1]
    request_bytes = 2 * 4 * t5.num_decoder_layers * t5.num_heads * t5.d_kv * beams * tokens
    return max(1, int(gib * 2**30 / request_bytes))


class IdTokens:
  """The T5 tokens of semantic IDs, 1 + K * level + code, and the prefix tree of the items'."""

  def __init__(self, codes_IxL: np.ndarray, codes_per_level: int) -> None:
    offsets_L = 1 + codes_per_level * np.arange(codes_IxL.shape[1])
    self.tokens_I = offsets_L + codes_IxL.astype(np.int64)  # int64 [I, L]
    self.item = {tuple(row): item for item, row in enumerate(self.tokens_I.tolist())}
    children: dict[tuple[int, ...], set[int]] = {}
    for row in self.item:
      for level, token in enumerate(row):
        children.setdefault(row[:level], set()).add(token)
    self.children = {prefix: sorted(tokens) for prefix, tokens in children.items()}

  def following(self, batch: int, tokens) -> list[int]:
    """Return the tokens that may follow; transformers' `prefix_allowed_tokens_fn`."""
    del batch
    return self.children[tuple(tokens[1:].tolist())]

  def items_of(self, tokens_NxL: np.ndarray) -> np.ndarray:
    """Return the item of each row of tokens, int64 [N]; -1 where they are no item's ID."""
    return np.array([self.item.get(tuple(row), -1) for row in tokens_NxL.tolist()])

  def encoder_inputs(self, item_Bxn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (input_ids, attention_mask) int64 [B, n * L], as wide as the longest history."""
    longest = max(1, int((item_Bxn >= 0).sum(axis=1).max()))
    item_Bxn = item_Bxn[:, item_Bxn.shape[1] - longest :]
    mask = np.repeat(item_Bxn >= 0, self.tokens_I.shape[1], axis=1)
    tokens = self.tokens_I[np.maximum(item_Bxn, 0)].reshape(mask.shape)
    return np.where(mask, tokens, PAD), mask.astype(np.int64)


class Cornac(TorchModel):
  """cornac's TIGER: its network, settings and beam search, one request at a time; our codes.

  Histories are padded to 20 items in training. `sizes` replaces fields of its network.
  """

  def __init__(
    self,
    sequences: Sequences,
    codes_IxL: np.ndarray,
    batch: int,
    *,
    learning_rate: float = 1e-3,
    codes_per_level: int = 256,
    seed: int = 0,
    **sizes: int,
  ) -> None:
    import torch
    from cornac.models import TIGER as CornacTiger

    super().__init__(sequences, batch, 1, seed)
    self.model = model = CornacTiger(
      rqvae_num_levels=codes_IxL.shape[1] - 1,
      rqvae_codebook_size=codes_per_level,
      max_len=HISTORY,
      n_epochs=0,
      learning_rate=learning_rate,
      batch_size=batch,
      device='cpu',
      seed=seed,
      **sizes,
    )
    model.num_items, model.device_ = len(codes_IxL), 'cpu'
    model._build_semantic_ids(codes_IxL[:, :-1].astype(np.int64))
    if (model.sid_table != codes_IxL).any():
      raise ValueError('the last code of an item must be as `beauty.distinct` makes it')
    torch.manual_seed(seed)
    # Of no epochs: it builds the network. The loop is ours, so that rounds can be timed in turn.
    model._fit_seq2seq(torch, None)
    self.network = model.model
    settings = dict(lr=model.learning_rate, weight_decay=model.weight_decay)
    self.optimizer = torch.optim.AdamW(self.network.parameters(), **settings)

  def loss_of(self, rows_B: np.ndarray):
    import torch

    tokens = self._encoder_tokens(self.sequences.histories(rows_B))
    target = torch.from_numpy(self.model.sid_table[self.sequences.item[rows_B]])
    return self.network(tokens, (tokens != 0).float(), target)

  def serve(self, item_Bxn: np.ndarray, beams: int) -> np.ndarray:
    import torch

    items, children = np.full((len(item_Bxn), beams), -1), self.model.prefix_children
    self.network.eval()
    with torch.inference_mode():
      for row, history in zip(items, item_Bxn):
        tokens = self._encoder_tokens(history[None])
        ids, _ = self.network.generate_beam(tokens, (tokens != 0).float(), beams, children)
        row[: len(ids)] = [self.model.sid_to_item.get(sid, -1) for sid in ids]
    return items

  def _encoder_tokens(self, item_Bxn: np.ndarray):
    import torch

    padded = np.where(item_Bxn >= 0, item_Bxn, self.model.pad_idx)
    return torch.from_numpy(self.model.enc_token_table[padded].reshape(len(item_Bxn), -1))
