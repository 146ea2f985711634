"""What the fuzz tests share: seeds, mutations of bytes, and how a call on mutated input may end."""

import gzip
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from rolegen_jax.cli import entry


class Outcome(NamedTuple):
  """How a call ended: with a value, or refused with one line."""

  value: Any
  refusal: str = ''


def seeds(count: int) -> pytest.MarkDecorator:
  """Run a test once per seed; all but the first tenth of them only in `make test-all`."""
  later = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(count // 10, count)]
  return pytest.mark.parametrize('seed', [*range(count // 10), *later])


def attempt(call: Callable[[], Any]) -> Outcome:
  """Call, and return how it ended. What no command ends with in one line is raised."""
  try:
    return Outcome(call())
  except Exception as error:
    if entry._code(error) != entry.BAD_INPUT:
      raise
    (line,) = str(error).splitlines()
    return Outcome(None, line)


# Bytes


def flipped(rng: random.Random, content: bytes) -> bytes:
  """Flip one bit of each of a few bytes."""
  changed = bytearray(content)
  for _ in range(rng.randint(1, 3) if content else 0):
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
  """Keep the beginning only."""
  return content[: rng.randrange(len(content) + 1)]


def without_some(rng: random.Random, content: bytes) -> bytes:
  """Drop a few bytes in the middle."""
  first = rng.randrange(len(content) + 1)
  return content[:first] + content[first + rng.randint(1, 8) :]


def with_more(rng: random.Random, content: bytes) -> bytes:
  """Insert bytes that text files do not expect, or a piece of the file itself."""
  place, piece = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
  odd = (b'\0', b'\r', b'\n', b'\x1f', b'\x85', b'"', b',', b'\xff\xfe', '\u2028'.encode())
  more = rng.choice((*odd, content[piece : piece + rng.randint(1, 40)]))
  return content[:place] + more + content[place:]


BYTES = (flipped, cut, without_some, with_more)


def mutated(rng: random.Random, content: bytes) -> bytes:
  """Apply one of BYTES."""
  return rng.choice(BYTES)(rng, content)


def zipped(content: bytes, members: int = 1) -> bytes:
  """Compress by gzip, in so many members one behind the other."""
  size = -(-len(content) // members) or 1
  parts = [content[start : start + size] for start in range(0, len(content), size)]
  return b''.join(gzip.compress(part) for part in parts or [b''])
