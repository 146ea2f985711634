"""The tokenizer of a GGUF file, as a tokenizer.json or a tokenizer.model would have it.

GGUF keeps pieces, merges or scores, and the name of the rule that cuts a text into words. Rules are
those of the tokenizers that the names were given for (llama.cpp, src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.pretrained.fields import Unsupported
from rolegen_jax.text.tokenizers import Json, SentencePiece, Tokenizer, model_proto

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
SPACE = '\u2581'  # of sentencepiece


def _words(digits: str) -> dict:
  """Return the rule of Llama 3 and Qwen: words, numbers of so many digits, signs, white space."""
  pattern = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" + digits + '| '
    '?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'
  )
  return dict(type='Split', pattern=dict(Regex=pattern), behavior='Isolated', invert=False)


def _bytes(cuts: bool) -> dict:
  return dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=cuts)


_DIGITS = dict(type='Digits', individual_digits=True)
# Name of a rule -> its steps; and what a text or word is put through beside them.
_RULES: dict[str, list[dict]] = {
  'gpt-2': [_bytes(True)],
  'llama-bpe': [_words('{1,3}'), _bytes(False)],
  'qwen2': [_words(''), _bytes(False)],
  'smollm': [_DIGITS, _bytes(True)],
}
_NORMALIZERS = {'qwen2': dict(type='NFC')}
_WHOLE_WORDS = ('llama-bpe',)  # a word that is a piece is not merged


def build(path: pathlib.Path, said: dict[str, Any]) -> Tokenizer:
  """Return the tokenizer that the fields `tokenizer.ggml.*` describe.

  Raises Unsupported on a kind or rule that is not known here, DataError on fields that disagree.
  """
  kind, pieces = said.get('model'), said.get('tokens')
  if not isinstance(pieces, list) or not pieces or len(set(pieces)) < len(pieces):
    raise DataError(f'{path}: tokenizer.ggml.tokens; must be a list of different pieces')
  types = said.get('token_type') or [NORMAL] * len(pieces)
  if not isinstance(types, list) or len(types) != len(pieces):
    raise DataError(
      f'{path}: tokenizer.ggml.token_type; must be a list of {len(pieces)} types, one a piece'
    )
  with as_data_error(path, 'a GGUF file with a whole tokenizer'):
    if kind == 'gpt2':
      return Json(json.dumps(_byte_level(path, said, pieces, types), ensure_ascii=False).encode())
    if kind == 'llama':
      return SentencePiece(_sentence_pieces(said, pieces, types))
  raise Unsupported(f'{path}: tokenizer.ggml.model={str(kind):.100}; must be gpt2 or llama')


def _byte_level(
  path: pathlib.Path, said: dict[str, Any], pieces: list[str], types: list[int]
) -> dict:
  """Return the content of a tokenizer.json."""
  rule = said.get('pre')  # files from before there was this field do not say how they cut
  if rule not in _RULES:
    raise Unsupported(
      f'{path}: tokenizer.ggml.pre={str(rule):.100}; must be one of {", ".join(_RULES)}'
    )
  if 'merges' not in said:
    raise DataError(f'{path}: no tokenizer.ggml.merges; must be there with byte pairs')
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
  added = [
    dict(id=id, content=piece, special=kind == CONTROL, **flags)
    for id, (piece, kind) in enumerate(zip(pieces, types))
    if kind in (CONTROL, USER_DEFINED)
  ]
  model = dict(
    type='BPE',
    ignore_merges=rule in _WHOLE_WORDS,
    vocab={piece: id for id, (piece, kind) in enumerate(zip(pieces, types)) if kind != UNUSED},
    merges=[merge.split(' ', 1) for merge in said['merges']],
  )
  return dict(
    version='1.0',
    added_tokens=added,
    normalizer=_NORMALIZERS.get(rule),
    pre_tokenizer=dict(type='Sequence', pretokenizers=_RULES[rule]),
    decoder=_bytes(True),
    model=model,
  )


def _sentence_pieces(said: dict[str, Any], pieces: list[str], types: list[int]) -> bytes:
  """Return the content of a tokenizer.model: byte pairs by score, bytes for unknown characters."""
  message = model_proto()
  proto = message()
  unknown = said.get('unknown_token_id', 0)
  for id, (piece, score, kind) in enumerate(zip(pieces, said['scores'], types, strict=True)):
    # llama.cpp's converter writes the spaces of these pieces as they are in a text.
    piece = piece.replace(' ', SPACE) if kind == USER_DEFINED else piece
    # Some converters call the unknown piece a control one; sentencepiece needs one that is.
    proto.pieces.add(piece=piece, score=score, type=UNKNOWN if id == unknown else kind)
  trainer = proto.trainer_spec
  trainer.model_type, trainer.byte_fallback, trainer.unk_id = trainer.BPE, True, unknown
  trainer.unk_piece = pieces[unknown]
  normalizer = proto.normalizer_spec
  normalizer.name, normalizer.escape_whitespaces = 'identity', True
  normalizer.add_dummy_prefix = bool(said.get('add_space_prefix', True))
  normalizer.remove_extra_whitespaces = bool(said.get('remove_extra_whitespaces', False))
  return proto.SerializeToString()
