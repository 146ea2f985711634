"""Rollouts of the tiny reasoner, compiled once for all tests of this folder."""

import functools

import jax

from rolegen_jax.runtime.compile import jit
from tests import tiny


@functools.cache
def compiled(*settings: str):
  run = lambda params, examples, trie, key, intervene, noise: tiny.rolegen(*settings).reason(
    params, examples, trie, key, intervene, noise
  )
  return jit(run)


def reason(
  examples,
  key: int = 0,
  intervene: bool = True,
  noise: float = 1.0,
  trie=None,
  seed: int = 0,
  settings: tuple[str, ...] = (),
):
  trie = tiny.trie() if trie is None else trie
  return jax.device_get(
    compiled(*settings)(
      tiny.params('reasoner', seed), examples, trie, jax.random.key(key), intervene, noise
    )
  )
