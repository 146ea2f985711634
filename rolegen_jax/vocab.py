"""The one token space of both models. Nobody else adds an offset.

| control | events | gaps | counts | roles | worlds | SID level 0 | ... | SID level L-1 | text |

Padding follows, so that the size is round.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from rolegen_jax.config import EVENT_NAMES, MAX_WORLDS, ROLE_NAMES, Config, digest

CONTROL = ('PAD', 'BOS', 'REASON', 'INTENT', 'PATH', 'END', 'UNKNOWN_ROLE')
# What control tokens say in words, where that is not their own name.
CONTROL_WORDS = dict(PAD='padding', BOS='begin', UNKNOWN_ROLE='unknown role')
GAPS = 64  # time-gap buckets, three an octave from one minute: bucket 63 is about four years
COUNTS = 8  # repeat-count buckets: 1, 2, 3-4, 5-8, ...
WORLDS = MAX_WORLDS  # world tokens; 0 is the factual world
ROUND = 128  # total size is a multiple, so that the tensor axis divides it and the MXU is full

Tokens = Any  # a Python int, or an integer array (numpy or jax) of any shape


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Blocks of tokens, by name."""

  levels: int  # SID codes per item
  codes: int  # codes per level
  text_pieces: int = 0  # rows of a text vocabulary
  tokenizer: str = ''  # hash of what cuts text into them
  roles: tuple[str, ...] = ROLE_NAMES

  @classmethod
  def of(cls, config: Config) -> Vocabulary:
    """Return the vocabulary of a config."""
    ids, reasoner = config.semantic_ids, config.reasoner
    return cls(ids.levels, ids.codes, reasoner.text_pieces, reasoner.tokenizer)

  @functools.cached_property
  def blocks(self) -> dict[str, tuple[int, int]]:
    """Block name -> (first token, size), in order."""
    sizes = dict(
      control=len(CONTROL),
      event=len(EVENT_NAMES),
      gap=GAPS,
      count=COUNTS,
      role=len(self.roles),
      world=WORLDS,
    )
    sizes |= {f'sid{level}': self.codes for level in range(self.levels)}
    sizes['text'] = self.text_pieces
    starts = np.concatenate([[0], np.cumsum(list(sizes.values()))])
    return {name: (int(start), size) for (name, size), start in zip(sizes.items(), starts)}

  @property
  def own(self) -> int:
    """The number of tokens before the text block."""
    return self.blocks['text'][0]

  @property
  def size(self) -> int:
    """Rows of the token table: all blocks, rounded up.

    There is room to read as many rows as there are roles from the start of any block.
    """
    used = sum(size for _, size in self.blocks.values()) + max(len(self.roles) - self.codes, 0)
    return -(-used // ROUND) * ROUND

  @property
  def without_text(self) -> Vocabulary:
    """The same tokens in the same places, for a model that reads no text."""
    return dataclasses.replace(self, text_pieces=0, tokenizer='')

  @property
  def digest(self) -> str:
    """16 hex digits over all that gives a token its meaning."""
    parts = [
      list(CONTROL),
      list(EVENT_NAMES),
      GAPS,
      COUNTS,
      list(self.roles),
      WORLDS,
      self.levels,
      self.codes,
      self.text_pieces,
    ]
    return digest(parts + [self.tokenizer] * bool(self.tokenizer))

  @functools.cached_property
  def named(self) -> list[tuple[str, str]]:
    """(name, what it says in words) of every token before the text block.

    Names are those that a text tokenizer gets, unique in it. Semantic-ID codes are named as
    OpenOneRec names them: <s_a_0> is the first code of the first level.
    """
    names = [
      (f'<|control_{name.lower()}|>', CONTROL_WORDS.get(name, _words(name))) for name in CONTROL
    ]
    for name in EVENT_NAMES:
      names.append((f'<|event_{name}|>', 'favourite' if name == 'fav' else _words(name)))
    for bucket in range(GAPS):
      middle_s = 60 * (2 ** ((bucket + 0.5) / 3) - 1)
      names.append((f'<|gap_{bucket}|>', f'{_duration(middle_s)} later'))
    for bucket in range(COUNTS):
      names.append((f'<|count_{bucket}|>', f'{2**bucket} times' if bucket else 'once'))
    names += [(f'<|role_{name.lower()}|>', _words(name)) for name in self.roles]
    names += [(f'<|world_{world}|>', f'world {world}') for world in range(WORLDS)]
    for letter in 'abcdefgh'[: self.levels]:
      for code in range(self.codes):
        names.append((f'<s_{letter}_{code}>', f'item code {letter} {code}'))
    return names

  def control(self, name: str) -> int:
    """Return the token of a name in CONTROL."""
    return self.blocks['control'][0] + CONTROL.index(name)

  def event(self, event: Tokens) -> Tokens:
    """Return the tokens of event codes."""
    return self.blocks['event'][0] + event

  def gap(self, bucket: Tokens) -> Tokens:
    """Return the tokens of time-gap buckets."""
    return self.blocks['gap'][0] + bucket

  def count(self, bucket: Tokens) -> Tokens:
    """Return the tokens of repeat-count buckets."""
    return self.blocks['count'][0] + bucket

  def role(self, role: Tokens) -> Tokens:
    """Return the tokens of roles."""
    return self.blocks['role'][0] + role

  def world(self, world: Tokens) -> Tokens:
    """Return the tokens of worlds."""
    return self.blocks['world'][0] + world

  def sid(self, codes_xL: Tokens) -> Tokens:
    """Return the tokens of codes [..., levels'] of the first levels' <= levels levels."""
    offsets = self.codes * np.arange(codes_xL.shape[-1], dtype=np.int32)
    return codes_xL + self.blocks['sid0'][0] + offsets


def _words(name: str) -> str:
  return name.lower().replace('_', ' ')


def _duration(seconds: float) -> str:
  for unit, length in (('days', 86_400), ('hours', 3_600)):
    if seconds >= length:
      return f'{seconds / length:.0f} {unit}'
  return f'{seconds / 60:.0f} minutes' if seconds >= 60 else f'{seconds:.0f} seconds'
