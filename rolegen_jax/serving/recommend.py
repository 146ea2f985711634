"""Batch recommendation: who is asked, and the table that is written.

Columns: user_id, rank (1.., as `slate.py` orders), item_id, score (log p), opens (new interest that contact with the item opens), world
(first counterfactual world whose path holds the item; 0 = the factual one; -1 = none: the backbone's own), seen (the user touched it
before), pivots (the events at which worlds were changed, with their factual roles), why (the same in words).
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
import polars as pl
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError, DataConfig
from rolegen_jax.data.examples import PURCHASE, ExampleTable, inference_examples
from rolegen_jax.data.files import DataError, write_parquet
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.reasoning.predict import Predictions, predict
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.serving.slate import slates

VIEW = EVENT_NAMES.index('view')
DAY = 86_400  # seconds


def recommend(
  rolegen: RoleGen,
  params,
  log,
  excitation: Excitation,
  trie,
  mesh: Mesh,
  users: str,
  output: str | os.PathLike,
  top: int = 10,
) -> pl.DataFrame:
  """Writes and returns the table for `users`: all, dormant or a file of ids. Raises DataError naming an unknown id's line."""
  config = rolegen.config
  if top > config.backbone.beam:
    raise ConfigError(f'--top={top}: must be at most backbone.beam={config.backbone.beam}')
  now = int(log.timestamp.max()) + 1
  chosen = choose_users(log, users, config.data, now)
  r = config.reasoner
  table = inference_examples(
    log,
    chosen,
    log.offsets[chosen + 1],
    np.full(len(chosen), now),
    r.role_events,
    r.candidates,
    excitation,
  )
  found = predict(rolegen, params, table, trie, mesh, config.backbone.beam)
  order = slates(
    found.item,
    found.score,
    excitation.opens,
    config.serving.exploration_weight,
    config.serving.exposure_penalty,
    top,
  )
  found = found._replace(
    **{name: np.take_along_axis(getattr(found, name), order, axis=1) for name in ('item', 'score')}
  )
  frame = _frame(log, table, found, excitation.opens, top)
  write_parquet(frame, output)
  return frame


def choose_users(log, users: str, data: DataConfig, now: int) -> np.ndarray:
  """int32 indices of the users asked for. Raises DataError when there is none, or naming the line of an unknown id."""
  if users == 'all':
    chosen = np.arange(len(log.users))
  elif users == 'dormant':
    chosen = np.flatnonzero(dormant(log, data, now))
  else:
    chosen = _from_file(log, pathlib.Path(users))
  if not len(chosen):
    raise DataError(f'--users={users}: no such user in the log')
  return chosen.astype(np.int32)


def dormant(log, data: DataConfig, now: int) -> np.ndarray:
  """bool [U]: who would be dormant if they bought now, by the rules of cohorts D1, D3 (never bought) and D2 (long ago)."""
  users = len(log.users)
  last = np.full(users, -1, np.int64)
  bought = log.event == PURCHASE
  np.maximum.at(last, log.user[bought], log.timestamp[bought])
  since = (log.event == VIEW) & (log.timestamp > last[log.user])
  views = np.bincount(log.user[since], weights=log.count[since], minlength=users)
  never = last < 0
  long_ago = now - last >= data.reactivation_min_days * DAY
  return np.where(
    never,
    views >= data.first_conversion_min_views,
    long_ago & (views >= data.reactivation_min_views),
  )


def _from_file(log, path: pathlib.Path) -> np.ndarray:
  try:
    lines = path.read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(
      f'--users={path}: cannot be read ({error}); must be all, dormant or a text file of user ids'
    ) from error
  index = {str(user): i for i, user in enumerate(log.users)}
  chosen = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    if line.strip() not in index:
      raise DataError(f'{path}: line {number}: user_id {line.strip()!r} is not in the log')
    chosen.append(index[line.strip()])
  return np.unique(np.array(chosen, np.int64))


def _frame(
  log, table: ExampleTable, found: Predictions, opens_I: np.ndarray, top: int
) -> pl.DataFrame:
  item = found.item[:, :top]
  example, rank = np.nonzero(item >= 0)
  listed = item[example, rank]
  in_world = (found.candidates[example] == listed[:, None, None]).any(-1)  # [R, W]
  world = np.where(in_world.any(1), in_world.argmax(1), -1)
  touched = np.unique(log.user.astype(np.int64) * len(log.items) + log.item)
  seen = np.isin(table.user[example].astype(np.int64) * len(log.items) + listed, touched)
  pivots = [_pivots(log, table, found, i) for i in range(len(table))]
  why = [_why(pivots[c], w, s) for c, w, s in zip(example, world, seen)]
  kind = pl.List(
    pl.Struct({'item_id': log.items['item_id'].dtype, 'event': pl.String, 'role': pl.String})
  )
  return pl.DataFrame(
    dict(
      user_id=log.users.gather(table.user[example]),
      rank=(rank + 1).astype(np.int32),
      item_id=log.items['item_id'].gather(listed),
      score=found.score[:, :top][example, rank],
      opens=opens_I[listed],
      world=world.astype(np.int32),
      seen=seen,
      pivots=pl.Series([pivots[c] for c in example], dtype=kind),
      why=why,
    )
  )


def _pivots(log, table: ExampleTable, found: Predictions, example: int) -> list[dict]:
  """The events at which this user's worlds were changed, with the roles that they had in fact."""
  m = found.roles.shape[1]
  changed = (found.forced_role[example] >= 0) | found.removed[example]
  at = np.flatnonzero(changed.any(0))
  row = table.end[example] - m + at
  ids = log.items['item_id']
  return [
    dict(
      item_id=ids[int(log.item[r])],
      event=EVENT_NAMES[log.event[r]],
      role=ROLE_NAMES[found.roles[example, a]],
    )
    for a, r in zip(at, row)
  ]


def _why(pivots: list[dict], world: int, seen: bool) -> str:
  source = (
    'the backbone alone'
    if world < 0
    else 'the factual path'
    if world == 0
    else f'counterfactual world {world}'
  )
  events = ', '.join(f'{p["role"]} {p["item_id"]} ({p["event"]})' for p in pivots)
  return f'from {source}; {"seen before" if seen else "new to the user"}' + (
    f'; pivots: {events}' if events else ''
  )
