"""Packing: text examples of any length as rows of one length.

The examples of a row are told apart by `segment`: none attends to another.

Shapes: B rows, T tokens per row, n tokens of an example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # np.ndarray on the host, jax.Array on the device


class TextExample(NamedTuple):
  """A question and its answer."""

  # int32 [n], of the one vocabulary.
  tokens: np.ndarray
  # bool [n]: whether to predict the token from all tokens before it; never the first.
  taught: np.ndarray
  # Index into config.WORD_TASKS.
  task: int


class Packed(NamedTuple):
  """Rows of examples."""

  # int32 [B, T].
  token: Array
  # int32 [B, T], 1.. per example of the row; 0 = padding.
  segment: Array
  # int32 [B, T], 1 + the task of a token to predict; 0 = a token that is given.
  task: Array


@dataclasses.dataclass(frozen=True)
class PackedTable:
  """Packed rows by number, as what runs over a table of examples reads them."""

  packed: Packed

  def __len__(self) -> int:
    return len(self.packed.token)

  def rows(self, index: np.ndarray, width: int) -> Packed:
    """Return the rows of these numbers; they are as wide as they are."""
    del width
    return Packed(*(x[index] for x in self.packed))


def text_example(question: Iterable[int], answer: Iterable[int], task: int) -> TextExample:
  """Return an example in which the tokens of `answer` are predicted."""
  question, answer = list(question), list(answer)
  n = len(question) + len(answer)
  return TextExample(np.array(question + answer, np.int32), np.arange(n) >= len(question), task)


def pack(rows: list[list[TextExample]], width: int) -> Packed:
  """Pack each list of examples into a row of `width` tokens, one after the other.

  Raises ValueError where they do not fit.
  """
  packed = Packed(*(np.zeros((len(rows), width), np.int32) for _ in Packed._fields))
  for row, examples in enumerate(rows):
    start = 0
    for segment, example in enumerate(examples, 1):
      stop = start + len(example.tokens)
      if stop > width:
        raise ValueError(f'examples of {stop} tokens in a row of {width}')
      packed.token[row, start:stop] = example.tokens
      packed.segment[row, start:stop] = segment
      packed.task[row, start:stop] = np.where(example.taught, 1 + example.task, 0)
      start = stop
  return packed


def in_order(examples: list[TextExample], width: int) -> list[list[int]]:
  """Group the indices of examples, in order, into rows of at most `width` tokens.

  Each row is filled until the next example does not fit.
  """
  rows: list[list[int]] = []
  room = 0
  for index, example in enumerate(examples):
    if len(example.tokens) > room:
      rows.append([])
      room = width
    rows[-1].append(index)
    room -= len(example.tokens)
  return rows
