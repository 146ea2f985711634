"""The one token space of both models. Nobody else adds an offset.

| control | events | gaps | counts | roles | worlds | SID level 0 | ... | SID level L-1 | text pieces | padding |
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, Config, digest

CONTROL = ('PAD', 'BOS', 'REASON', 'INTENT', 'PATH', 'END', 'UNKNOWN_ROLE')
GAPS = 64  # time-gap buckets, three an octave from one minute: bucket 63 is about four years
CONTROL_SAYS = dict(
  PAD='padding', BOS='begin', UNKNOWN_ROLE='unknown role'
)  # others say their own name
COUNTS = 8  # repeat-count buckets: 1, 2, 3-4, 5-8, ...
WORLDS = 16  # world marks; 0 is the factual world
ROUND = 128  # total size is a multiple, so that the tensor axis divides it and the MXU is full


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  levels: int  # SID codes per item
  codes: int  # codes per level
  text_pieces: int = 0  # rows of a pretrained text vocabulary
  tokenizer: str = ''  # hash of what cuts text into them
  roles: tuple[str, ...] = ROLE_NAMES

  @classmethod
  def of(cls, config: Config) -> 'Vocabulary':
    r = config.reasoner
    return cls(
      levels=config.semantic_ids.levels,
      codes=config.semantic_ids.codes,
      text_pieces=r.text_pieces,
      tokenizer=r.tokenizer,
    )

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
    """Tokens before the text block."""
    return self.blocks['text'][0]

  @property
  def size(self) -> int:
    """Rows of the token table: all blocks, and room to read as many rows as there are roles from any block's start, rounded up."""
    used = sum(size for _, size in self.blocks.values()) + max(len(self.roles) - self.codes, 0)
    return -(-used // ROUND) * ROUND

  @property
  def without_text(self) -> 'Vocabulary':
    """The same tokens at the same places, for a model that reads no text: the text block is the last."""
    return dataclasses.replace(self, text_pieces=0, tokenizer='')

  @property
  def digest(self) -> str:
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
    """(name, what it says in words) of every token before the text block. Names are those that a text tokenizer gets, unique in it;
    semantic-ID codes are named as OpenOneRec names them: <s_a_0> is the first code of the first level."""
    words = lambda name: name.lower().replace('_', ' ')
    found = [
      (f'<|control_{name.lower()}|>', CONTROL_SAYS.get(name, words(name))) for name in CONTROL
    ]
    found += [
      (f'<|event_{name}|>', 'favourite' if name == 'fav' else words(name)) for name in EVENT_NAMES
    ]
    found += [
      (f'<|gap_{bucket}|>', f'{_duration(60 * (2 ** ((bucket + 0.5) / 3) - 1))} later')
      for bucket in range(GAPS)
    ]
    found += [
      (f'<|count_{bucket}|>', f'{2**bucket} times' if bucket else 'once')
      for bucket in range(COUNTS)
    ]
    found += [(f'<|role_{name.lower()}|>', words(name)) for name in self.roles]
    found += [(f'<|world_{world}|>', f'world {world}') for world in range(WORLDS)]
    letters = 'abcdefgh'[: self.levels]
    return found + [
      (f'<s_{letter}_{code}>', f'item code {letter} {code}')
      for letter in letters
      for code in range(self.codes)
    ]

  def control(self, name: str) -> int:
    return self.blocks['control'][0] + CONTROL.index(name)

  # The following take a Python int or an integer array (numpy or jax) of any shape and return the same.
  def event(self, event):
    return self.blocks['event'][0] + event

  def gap(self, bucket):
    return self.blocks['gap'][0] + bucket

  def count(self, bucket):
    return self.blocks['count'][0] + bucket

  def role(self, role):
    return self.blocks['role'][0] + role

  def world(self, world):
    return self.blocks['world'][0] + world

  def sid(self, codes_xL):
    """Tokens of codes [..., levels'] for the first levels' <= levels levels."""
    return (
      codes_xL + self.blocks['sid0'][0] + self.codes * np.arange(codes_xL.shape[-1], dtype=np.int32)
    )


def _duration(seconds: float) -> str:
  for unit, length in (('days', 86_400), ('hours', 3_600)):
    if seconds >= length:
      return f'{seconds / length:.0f} {unit}'
  return f'{seconds / 60:.0f} minutes' if seconds >= 60 else f'{seconds:.0f} seconds'
