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
COUNTS = 8  # repeat-count buckets: 1, 2, 3-4, 5-8, ...
WORLDS = 16  # world marks; 0 is the factual world
ROUND = 128  # total size is a multiple, so that the tensor axis divides it and the MXU is full


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  levels: int  # SID codes per item
  codes: int  # codes per level
  text_pieces: int = 0
  roles: tuple[str, ...] = ROLE_NAMES

  @classmethod
  def of(cls, config: Config) -> 'Vocabulary':
    return cls(levels=config.semantic_ids.levels, codes=config.semantic_ids.codes)

  @functools.cached_property
  def blocks(self) -> dict[str, tuple[int, int]]:
    """Block name -> (first token, size), in order."""
    sizes = dict(control=len(CONTROL), event=len(EVENT_NAMES), gap=GAPS, count=COUNTS, role=len(self.roles), world=WORLDS)
    sizes |= {f'sid{level}': self.codes for level in range(self.levels)}
    sizes['text'] = self.text_pieces
    starts = np.concatenate([[0], np.cumsum(list(sizes.values()))])
    return {name: (int(start), size) for (name, size), start in zip(sizes.items(), starts)}

  @property
  def size(self) -> int:
    """Rows of the token table: all blocks, and room to read as many rows as there are roles from any block's start, rounded up."""
    used = sum(size for _, size in self.blocks.values()) + max(len(self.roles) - self.codes, 0)
    return -(-used // ROUND) * ROUND

  @property
  def digest(self) -> str:
    return digest([list(CONTROL), list(EVENT_NAMES), GAPS, COUNTS, list(self.roles), WORLDS, self.levels, self.codes, self.text_pieces])

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
    return codes_xL + self.blocks['sid0'][0] + self.codes * np.arange(codes_xL.shape[-1], dtype=np.int32)
