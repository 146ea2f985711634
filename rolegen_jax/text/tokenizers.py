"""Tokenizers, and their pieces in the one vocabulary.

A tokenizer is a file: `tokenizer.json`, read by the library `tokenizers` (Qwen3, Llama 3), or
`tokenizer.model`, read by sentencepiece (Gemma, Llama 2, and what `train` makes of a catalogue's
text). Where a folder has both, as for Gemma, the first is read.

The numbers of pieces are called ids here; tokens are those of the one vocabulary. Our own tokens
are named in `vocab.named`: where a tokenizer has a piece of that name (OpenOneRec's <s_a_0>, or one
that we exported), the piece keeps its id. The others are appended after the last id.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from rolegen_jax.data.files import DataError, renamed
from rolegen_jax.runtime import storage
from rolegen_jax.vocab import Vocabulary

JSON, MODEL = 'tokenizer.json', 'tokenizer.model'
MAX_TEXT_BYTES = 1 << 20  # sentencepiece leaves out longer texts, by default those above 4192


class Tokenizer:
  """Text <-> ids. Begin and end delimiters are not added."""

  file: str  # its name in a folder

  @property
  def size(self) -> int:
    """One more than the largest id."""
    raise NotImplementedError

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits over the file."""
    return hashlib.sha256(self.content()).hexdigest()[:16]

  def content(self) -> bytes:
    """Return the content of the file."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """Return the ids of a text."""
    raise NotImplementedError

  def decode(self, ids: list[int]) -> str:
    """Return the text of ids."""
    raise NotImplementedError

  def id_of(self, name: str) -> int | None:
    """Return the id of a piece; None when there is no such piece."""
    raise NotImplementedError

  def is_delimiter(self, piece: int) -> bool:
    """Return whether an id is a delimiter, such as begin or end, rather than text."""
    raise NotImplementedError

  def with_names(self, names: list[str]) -> Tokenizer:
    """Return the tokenizer with further pieces, never split, at size, size + 1, ..."""
    raise NotImplementedError


class Json(Tokenizer):
  """A tokenizer of the library `tokenizers`."""

  file = JSON

  def __init__(self, content: bytes) -> None:
    """Read the content of a tokenizer.json."""
    self._content = content
    self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
    self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
    added = self._tokenizer.get_added_tokens_decoder()
    self._delimiters = {id for id, token in added.items() if token.special}

  @property
  def size(self) -> int:
    return 1 + max(self._ids.values())

  def content(self) -> bytes:
    return self._content

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def id_of(self, name: str) -> int | None:
    return self._ids.get(name)

  def is_delimiter(self, piece: int) -> bool:
    return piece in self._delimiters

  def with_names(self, names: list[str]) -> Json:
    extended = tokenizers.Tokenizer.from_buffer(self._content)
    extended.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
    return Json(extended.to_str(pretty=True).encode())


class SentencePiece(Tokenizer):
  """A tokenizer of sentencepiece."""

  file = MODEL

  def __init__(self, content: bytes) -> None:
    """Read the content of a tokenizer.model."""
    self._content = content
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)

  @property
  def size(self) -> int:
    return self._processor.get_piece_size()

  def content(self) -> bytes:
    return self._content

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def decode(self, ids: list[int]) -> str:
    return self._processor.decode([int(id) for id in ids])

  def id_of(self, name: str) -> int | None:
    id = self._processor.piece_to_id(name)
    return None if self._processor.is_unknown(id) else id

  def is_delimiter(self, piece: int) -> bool:
    if piece >= self.size:
      return False
    if self._processor.is_control(piece) or self._processor.is_unknown(piece):
      return True
    return self._proto().pieces[piece].type == _piece_type('USER_DEFINED')

  def with_names(self, names: list[str]) -> SentencePiece:
    proto = self._proto()
    for name in names:
      proto.pieces.add(piece=name, score=0.0, type=_piece_type('USER_DEFINED'))
    return SentencePiece(proto.SerializeToString())

  def _proto(self) -> Any:
    return model_proto().FromString(self._content)


def _piece_type(name: str) -> int:
  """Return the number of a type of piece in a sentencepiece model."""
  return model_proto().SentencePiece.Type.Value(name)


def model_proto() -> Any:
  """Return the class of a sentencepiece model's content, which is generated and has no types."""
  from sentencepiece import sentencepiece_model_pb2

  return getattr(sentencepiece_model_pb2, 'ModelProto')


def open_tokenizer(folder: str | os.PathLike) -> Tokenizer:
  """Open the tokenizer of a folder. Raises DataError."""
  folder = storage.path(folder)
  kinds: tuple[type[Json] | type[SentencePiece], ...] = (Json, SentencePiece)
  for kind in kinds:
    path = folder / kind.file
    if path.exists():
      try:
        return kind(path.read_bytes())
      except Exception as error:  # both libraries raise plain Exception or RuntimeError
        raise DataError(
          f'{path}: cannot be read ({str(error)[:200]}); must be a tokenizer of {kind.__name__}'
        ) from error
  raise DataError(f'{folder}: no {JSON} and no {MODEL}; one must be there with a pretrained model')


def save(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
  """Write the file of a tokenizer to `folder`."""
  with renamed(storage.path(folder) / tokenizer.file) as temporary:
    temporary.write_bytes(tokenizer.content())


def train(texts: Iterable[str], size: int) -> SentencePiece:
  """Train a sentencepiece model of at most `size` pieces.

  By byte pairs: on a small catalogue unigram pieces stay single letters. Bytes stand in for
  characters that the texts do not have. Raises DataError when there is too little text.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=size,
      model_type='bpe',
      hard_vocab_limit=False,
      byte_fallback=True,
      character_coverage=1.0,
      max_sentence_length=MAX_TEXT_BYTES,
      minloglevel=2,
      num_threads=1,
    )
  except RuntimeError as error:
    raise DataError(
      f'a tokenizer of {size} pieces cannot be trained on these texts: {error}'
    ) from error
  return SentencePiece(model.getvalue())


class TextVocabulary:
  """The one vocabulary over a tokenizer: the id of each of our tokens, and text that has them."""

  def __init__(self, vocab: Vocabulary, tokenizer: Tokenizer) -> None:
    """Extend `tokenizer` by those of our tokens that it does not have."""
    self.vocab = vocab
    self.text = tokenizer
    names = [name for name, _ in vocab.named]
    known_ids = [tokenizer.id_of(name) for name in names]
    # int [own]: the tokenizer's id of each of our tokens; -1 = it does not have the token.
    self.known = np.array([-1 if id is None else id for id in known_ids])
    new = np.flatnonzero(self.known < 0)
    # int [own]: the id of each of our tokens in `extended`.
    self.ids = self.known.copy()
    self.ids[new] = tokenizer.size + np.arange(len(new))
    self.extended = tokenizer.with_names([names[i] for i in new]) if len(new) else tokenizer
    assert all(self.extended.id_of(name) == id for name, id in zip(names, self.ids))
    self._token_of_id = {int(id): token for token, id in enumerate(self.ids)}

  @functools.cached_property
  def descriptions(self) -> list[list[int]]:
    """Ids of the text that describes each of our tokens."""
    return [self.text.encode(words) for _, words in self.vocab.named]

  def encode(self, text: str) -> list[int]:
    """Return the tokens of a text; names of our tokens in it become those tokens.

    Raises DataError on a piece that the weights have no row for.
    """
    first, size = self.vocab.blocks['text']
    ids = self.extended.encode(text)
    for id in ids:
      if id >= size and id not in self._token_of_id:
        raise DataError(
          f'{text!r:.100}: holds {self.extended.decode([id])!r}, piece {id} of {self.text.file}; '
          f'must hold pieces below {size} only, those that the weights have rows for'
        )
    return [self._token_of_id.get(id, first + id) for id in ids]

  def decode(self, tokens: Iterable) -> str:
    """Return the text of tokens, ours by their names. Raises ValueError on an unknown token."""
    first, size = self.vocab.blocks['text']
    ids = []
    for token in map(int, tokens):
      if not 0 <= token < first + size:
        raise ValueError(f'token {token}: must be 0 to {first + size - 1}')
      ids.append(token - first if token >= first else int(self.ids[token]))
    return self.extended.decode(ids)
