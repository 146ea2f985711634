"""Why these items: what `recommend` says of three dormant users of each log.

  RUN=runs/quality/ijcai15/points/seed0  # and those of the other experiments
  rolegen recommend --workdir=$RUN --users=dormant --output=$RUN/recommendations.parquet
  python -m experiments.benchmarks.explanations --sweeps=runs/quality

Nothing is computed here: the file of recommendations is turned into tables of docs/explanations.md.
Of a public log neither ids nor dates are printed: items are letters, in the order of their
appearance. Titles are those of the simulated log. What is missing keeps its table.
"""

from __future__ import annotations

import json
import pathlib
import re
import string
from collections.abc import Callable
from typing import Any

import polars as pl

from experiments import quality as experiment
from experiments.benchmarks import harness
from experiments.benchmarks.quality_report import write_blocks
from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime.progress import say

USERS, ITEMS = 3, 2  # of each log; first items of each user's list

_SWEEPS = path_flag(
  'sweeps', 'runs/quality', 'Folder of the sweeps, each named like its experiment.'
)
_TABLES = path_flag('tables', str(harness.ROOT / 'docs/explanations.md'), 'Page of the tables.')


def main() -> None:
  runs, blocks = pathlib.Path(_SWEEPS.value), {}
  for name in experiment.EXPERIMENTS:
    run = runs / name / 'points/seed0'
    path = run / 'recommendations.parquet'
    if path.exists():
      blocks[name] = table(pl.read_parquet(path), titles(run)) + f'\n\n{made_by(run)}'
    else:
      say(f'{name}: no {path}; its table stays as it was')
  if not blocks:
    raise ConfigError(f'--sweeps={runs}: no recommendations.parquet; must be written by recommend')
  write_blocks(blocks, pathlib.Path(_TABLES.value))
  print(f'-> {_TABLES.value}')


def titles(run: pathlib.Path) -> dict | None:
  """Return the title of each item of a simulated log; None of a real one."""
  config = json.loads((run / 'config.json').read_text())
  if config['data']['format'] != 'simulated':
    return None
  items = pl.read_parquet(run / 'data/log_items.parquet')
  return dict(zip(items['item_id'], items['title']))


def made_by(run: pathlib.Path) -> str:
  """Return a line on the models that say so."""
  made = json.loads((run / 'report.json').read_text())['provenance']
  return f'Models of seed {made["seed"]}, commit {made["commit"][:7]}.'


def table(frame: pl.DataFrame, title_of: dict | None) -> str:
  """Return a Markdown table of the first items of a few users, evenly spaced over the frame.

  frame: what `rolegen recommend` writes. title_of: of the items, where they may be named.
  """
  users = frame['user_id'].unique(maintain_order=True)
  chosen = users.gather_every(max(len(users) // USERS, 1)).head(USERS)
  lines = ['| user | item | evidence | carried by |', '|---|---|---|---|']
  for number, user in enumerate(chosen, 1):
    name = names(title_of)
    listed = frame.filter(pl.col('user_id') == user).sort('rank').head(ITEMS)
    for row in listed.iter_rows(named=True):
      cells = (
        f'{number}',
        f'{row["rank"]}. {name(row["item_id"])}',
        evidence(row),
        events(row, name),
      )
      lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def names(title_of: dict | None) -> Callable[[Any], str]:
  """Return what items are called: by title, else by letter, the first is A."""
  letters: dict[Any, str] = {}

  def name(item: Any) -> str:
    if title_of is not None:
      return title_of[item]
    return letters.setdefault(item, string.ascii_uppercase[len(letters)])

  return name


def evidence(row: dict) -> str:
  """Return the experts' terms in words, and whether the user knows the item.

  An intervention is named without the item that it is about.
  """
  terms, _, _ = row['why'].partition('; carried by')
  return re.sub(r' of .+?(?=\)| as )', '', terms)


def events(row: dict, name: Callable[[Any], str]) -> str:
  """Return the events that carried the item."""
  carried = [
    f'{e["event"]} of {name(e["item_id"])}, {e["days_ago"]:g} d ago, {e["role"]} {e["nats"]:+.2f}'
    for e in row['carried_by']
  ]
  return '; '.join(carried) or 'no single event'


if __name__ == '__main__':
  entry.run(main)
