"""Rollouts of worlds that share their prompt, against worlds that each read all of it and keep a cache of their own.

  python -m experiments.benchmarks.shared_prefix

Times of both in turn, their ratio, temporaries of the compiled programs, over worlds, history and compute type (which is that of the
cache); and how far log-probs are from those of the training forward. Each finished point is kept in
experiments/benchmarks/shared_prefix.json: the same command continues. `python -m experiments.benchmarks.draw` makes the picture.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from rolegen_jax import commands

_WORLDS = flags.DEFINE_list('worlds', ['2', '4', '8', '16'], 'Worlds of a user.')
_EVENTS = flags.DEFINE_list('events', ['16', '64', '128'], 'Events of the prompt; five tokens each.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Compute types.')
_ITEMS = flags.DEFINE_integer('items', 10_000, 'Items of the catalogue.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed rounds of a point.', lower_bound=3)
_SET = flags.DEFINE_multi_string('set', [], 'Replace one field of the base config. May be repeated.')
_FOLDER = flags.DEFINE_string('folder', str(pathlib.Path(__file__).parent), 'Where shared_prefix.json is kept.')


def main() -> None:
  from experiments.benchmarks import measure, shared_prefix_parts as parts

  path = pathlib.Path(_FOLDER.value) / 'shared_prefix.json'
  kept = json.loads(path.read_text()) if path.exists() else {}
  save = lambda found: measure.keep('shared_prefix', found, folder=path.parent)
  axes = dict(dtype=_DTYPES.value, events=[int(n) for n in _EVENTS.value], worlds=[int(n) for n in _WORLDS.value])
  found = parts.measured(parts.base(_SET.value), _ITEMS.value, axes, _REPEATS.value, kept, save)
  save(found)
  print(parts.table(found))
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
