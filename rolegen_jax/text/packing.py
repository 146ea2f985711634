"""Examples of any length as rows of one length. Examples of a row are told apart by `segment`: none sees another.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy.ndarray on the host, jax.Array on the device


class TextExample(NamedTuple):
  tokens: np.ndarray  # int32 [n], of the one vocabulary
  taught: np.ndarray  # bool [n]: what is to be predicted from all that is before; never the first
  task: int


class Packed(NamedTuple):
  token: Array  # int32 [B, T]
  segment: Array  # int32 [B, T], 1.. per example; 0 = padding
  task: Array  # int32 [B, T], 1 + the task of a token that is to be predicted; 0 = a token that is given


def text_example(question: Iterable[int], answer: Iterable[int], task: int) -> TextExample:
  question, answer = list(question), list(answer)
  return TextExample(
    np.array(question + answer, np.int32),
    np.arange(len(question) + len(answer)) >= len(question),
    task,
  )


def pack(rows: list[list[TextExample]], width: int) -> Packed:
  """Each list of examples as a row, one after the other. Raises ValueError where they are too long."""
  packed = Packed(*(np.zeros((len(rows), width), np.int32) for _ in Packed._fields))
  for row, examples in enumerate(rows):
    start = 0
    for number, (tokens, taught, task) in enumerate(examples, 1):
      to = slice(start, start + len(tokens))
      if to.stop > width:
        raise ValueError(f'examples of {to.stop} tokens in a row of {width}')
      packed.token[row, to], packed.segment[row, to], packed.task[row, to] = (
        tokens,
        number,
        np.where(taught, 1 + task, 0),
      )
      start = to.stop
  return packed


def in_order(examples: list[TextExample], width: int) -> list[list[int]]:
  """Numbers of the examples as rows of at most `width` tokens, each row filled until the next example does not fit."""
  rows, room = [], 0
  for number, found in enumerate(examples):
    if len(found.tokens) > room:
      rows.append([])
      room = width
    rows[-1].append(number)
    room -= len(found.tokens)
  return rows
