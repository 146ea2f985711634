"""Rollouts of the tiny reasoner, compiled once for all tests of this folder."""

import functools

import jax

from rolegen_jax.compile import jit
from tests import tiny


@functools.cache
def compiled(*settings: str):
  run = lambda params, cases, trie, key, intervene, noise: tiny.rolegen(*settings).reason(params, cases, trie, key, intervene, noise)
  return jit(run)


def reason(cases, key: int = 0, intervene: bool = True, noise: float = 1.0, trie=None, seed: int = 0, settings: tuple[str, ...] = ()):
  trie = tiny.trie() if trie is None else trie
  return jax.device_get(compiled(*settings)(tiny.params('reasoner', seed), cases, trie, jax.random.key(key), intervene, noise))
