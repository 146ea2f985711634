"""Draws docs/performance/NAME.png from every experiments/benchmarks/NAME.json that has a module NAME_plot.py beside it.

  python -m experiments.benchmarks.draw

Such a module has `draw(found, figure)`: the JSON's content, and the file to write. A result that is not there is passed over.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import pkgutil

from rolegen_jax import commands
from rolegen_jax.config import ConfigError

FOLDER = pathlib.Path(__file__).parent
PICTURES = FOLDER.parents[1] / 'docs' / 'performance'
LIMIT = 200_000  # bytes of a picture


def draw(results: pathlib.Path, pictures: pathlib.Path) -> list[str]:
  """A line for each benchmark that can be drawn, by name. Raises ConfigError naming a picture that is too large to be committed."""
  import experiments.benchmarks

  lines = []
  for name in sorted(m.name.removesuffix('_plot') for m in pkgutil.iter_modules(experiments.benchmarks.__path__) if m.name.endswith('_plot')):
    result, picture = results / f'{name}.json', pictures / f'{name}.png'
    if not result.exists():
      lines.append(f'{name}: no {result.name}; python -m experiments.benchmarks.{name} makes it')
      continue
    picture.parent.mkdir(parents=True, exist_ok=True)
    importlib.import_module(f'experiments.benchmarks.{name}_plot').draw(json.loads(result.read_text()), picture)
    size = picture.stat().st_size
    if size > LIMIT:
      raise ConfigError(f'{picture}: {size} bytes; must be at most {LIMIT}: draw less, or at fewer dots per inch')
    lines.append(f'{name}: {size / 1000:.0f} kB -> {picture}')
  return lines


def main() -> None:
  for line in draw(FOLDER, PICTURES):
    print(line)


if __name__ == '__main__':
  commands.run(main)
