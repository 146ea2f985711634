"""What cuts text into pieces, and its place in the one vocabulary.

A tokenizer is a file: `tokenizer.json`, read by the library `tokenizers` (Qwen3, Llama 3), or `tokenizer.model`, read by sentencepiece
(Gemma, Llama 2, and what `train` makes of a catalogue's text). Where both lie in a folder, as for Gemma, the first is read. Numbers of
pieces are called ids here; tokens are those of the one vocabulary. Our own tokens are named in `vocab.named`: a tokenizer that has
a piece of such a name (OpenOneRec's <s_a_0>, or one that we exported) keeps its id, the others are appended after its last id.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import sentencepiece
import tokenizers

from rolegen_jax.data.files import DataError, renamed
from rolegen_jax.vocab import Vocabulary

JSON, MODEL = 'tokenizer.json', 'tokenizer.model'


class Tokenizer:
  """Text <-> ids. Begin and end marks are not added."""

  file: str  # its name in a folder

  @property
  def size(self) -> int:
    """One more than the largest id."""
    raise NotImplementedError

  @functools.cached_property
  def digest(self) -> str:
    return hashlib.sha256(self.bytes()).hexdigest()[:16]

  def bytes(self) -> bytes:
    """The file."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    raise NotImplementedError

  def decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  def id_of(self, name: str) -> int | None:
    """The id of a piece; None when there is none."""
    raise NotImplementedError

  def is_delimiter(self, piece: int) -> bool:
    """Is it a mark, such as begin or end, rather than text?"""
    raise NotImplementedError

  def with_names(self, names: list[str]) -> 'Tokenizer':
    """The tokenizer with further pieces, never cut, at size, size + 1, ..."""
    raise NotImplementedError


class Json(Tokenizer):
  file = JSON

  def __init__(self, content: bytes):
    self._content, self._tokenizer = content, tokenizers.Tokenizer.from_buffer(content)
    self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
    self._marks = {
      id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
    }

  @property
  def size(self):
    return 1 + max(self._ids.values())

  def bytes(self):
    return self._content

  def encode(self, text):
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids):
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def id_of(self, name):
    return self._ids.get(name)

  def is_delimiter(self, piece):
    return piece in self._marks

  def with_names(self, names):
    longer = tokenizers.Tokenizer.from_buffer(self._content)
    longer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
    return Json(longer.to_str(pretty=True).encode())


class SentencePiece(Tokenizer):
  file = MODEL

  def __init__(self, content: bytes):
    self._content = content
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)

  @property
  def size(self):
    return self._processor.get_piece_size()

  def bytes(self):
    return self._content

  def encode(self, text):
    return self._processor.encode(text)

  def decode(self, ids):
    return self._processor.decode([int(i) for i in ids])

  def id_of(self, name):
    found = self._processor.piece_to_id(name)
    return None if self._processor.is_unknown(found) else found

  def is_delimiter(self, piece):
    p = self._processor
    return piece < self.size and (
      p.is_control(piece)
      or p.is_unknown(piece)
      or self._proto().pieces[piece].type == p_type('USER_DEFINED')
    )

  def with_names(self, names):
    longer = self._proto()
    for name in names:
      longer.pieces.add(piece=name, score=0.0, type=p_type('USER_DEFINED'))
    return SentencePiece(longer.SerializeToString())

  def _proto(self):
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(self._content)


def p_type(name: str) -> int:
  """The number of a kind of piece in a sentencepiece model."""
  from sentencepiece import sentencepiece_model_pb2

  return sentencepiece_model_pb2.ModelProto.SentencePiece.Type.Value(name)


def open_tokenizer(folder: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a folder. Raises DataError."""
  folder = pathlib.Path(folder)
  for kind in (Json, SentencePiece):
    path = folder / kind.file
    if path.exists():
      try:
        return kind(path.read_bytes())
      except Exception as error:  # both libraries raise plain Exception or RuntimeError
        raise DataError(
          f'{path}: cannot be read ({str(error)[:200]}); must be a tokenizer of {kind.__name__}'
        ) from error
  raise DataError(f'{folder}: no {JSON} and no {MODEL}; one must be there with a pretrained model')


def train(texts: Iterable[str], size: int) -> SentencePiece:
  """A sentencepiece model of at most `size` pieces, by byte pairs: on a small catalogue unigram pieces stay single letters. Bytes stand in
  for characters that the texts do not have.

  Raises DataError when there is too little text.
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
      minloglevel=2,
      num_threads=1,
    )
  except RuntimeError as error:
    raise DataError(
      f'a tokenizer of {size} pieces cannot be trained on these texts: {error}'
    ) from error
  return SentencePiece(model.getvalue())


class TextVocabulary:
  """The one vocabulary over a tokenizer: which of its ids each of our tokens is, and text with our tokens in it."""

  def __init__(self, vocab: Vocabulary, tokenizer: Tokenizer):
    self.vocab, self.text = vocab, tokenizer
    names = [name for name, _ in vocab.named]
    self.known = np.array(
      [-1 if (id := tokenizer.id_of(name)) is None else id for name in names]
    )  # [own], -1 = the tokenizer has it not
    new = np.flatnonzero(self.known < 0)
    self.ids = self.known.copy()  # [own], in `extended`
    self.ids[new] = tokenizer.size + np.arange(len(new))
    self.extended = tokenizer.with_names([names[i] for i in new]) if len(new) else tokenizer
    assert all(self.extended.id_of(name) == id for name, id in zip(names, self.ids))
    self._token = {int(id): token for token, id in enumerate(self.ids)}

  @functools.cached_property
  def says(self) -> list[list[int]]:
    """Ids of the text that describes each of our tokens."""
    return [self.text.encode(words) for _, words in self.vocab.named]

  def encode(self, text: str) -> list[int]:
    """Tokens of a text; names of our tokens in it become those tokens."""
    first = self.vocab.blocks['text'][0]
    return [self._token.get(id, first + id) for id in self.extended.encode(text)]

  def decode(self, tokens) -> str:
    """The text of tokens, ours by their names. Raises ValueError on what is no token."""
    (first, size), found = self.vocab.blocks['text'], []
    for token in map(int, tokens):
      if not 0 <= token < first + size:
        raise ValueError(f'token {token}: must be 0 to {first + size - 1}')
      found.append(token - first if token >= first else int(self.ids[token]))
    return self.extended.decode(found)


def save(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
  with renamed(pathlib.Path(folder) / tokenizer.file) as temporary:
    temporary.write_bytes(tokenizer.bytes())
