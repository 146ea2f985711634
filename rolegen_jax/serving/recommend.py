"""Batch recommendation: the users to recommend for, and the table that is written.

Columns:
  user_id
  rank        1.., in falling order of rank_score
  item_id
  log_prob    log p of the item among all that were scored; does not fall along a list
  rank_score  what the order is by: log_prob plus what the item opens, less exposure (`slate.py`)
  opens       how much of interest contact with the item moves (`slate.py`)
  world       first world whose path holds the item; 0 = the factual one; -1 = none
  terms       what each expert adds to log_prob, nats, less its mean over the items that were found
              for the user: only differences between items of one user mean something
  seen        whether the user touched the item before
  carried_by  the latest events that carried the item most: how long ago, role towards it, and how
              many nats it loses without the event, of log p among the items found and without
              what chains name (`reasoning/explain.py`)
  why         the largest positive terms in words, the candidates' named by the world of the item
              and what was done in it; then seen and carried_by

Shapes: U users, I items, N users that are recommended for, K items found for each, R
recommendations, W worlds, E experts.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
from typing import Any

import numpy as np
import polars as pl
from jax.sharding import Mesh

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError, DataConfig
from rolegen_jax.data.examples import PURCHASE, ExampleTable, inference_examples
from rolegen_jax.data.files import DataError, write_parquet
from rolegen_jax.data.lines import read_text, split_lines
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.models.experts import EXPERTS
from rolegen_jax.reasoning import looks
from rolegen_jax.reasoning.explain import Explanations, explanations
from rolegen_jax.reasoning.predict import Predictions, predict
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.serving.history_filter import holds, without_history
from rolegen_jax.serving.slate import Opened, Slates, slates

VIEW = EVENT_NAMES.index('view')
DAY = 86_400  # seconds
SHOWN_TERMS, SMALLEST = 3, 0.05  # terms in words, at most; nats that are worth a word
SHOWN_EVENTS = 3  # that carried an item, at most
MAX_COMPARED = 20_000  # ids among which the nearest to an unknown one is looked for


# Six are the parts of a trained run, which has no type of its own at this level.
def recommend(
  rolegen: RoleGen,
  params: dict,
  log: InteractionLog,
  excitation: Excitation,
  trie: Trie,
  mesh: Mesh,
  users: str,
  output: str | os.PathLike,
  top: int = 10,
  bars_history: bool = False,
) -> pl.DataFrame:
  """Write the table of the `top` items of each user to `output` and return it.

  users: all, dormant, or a file of user ids. bars_history: whether lists leave out what the users'
  histories hold. Raises DataError naming the line of an unknown id.
  """
  config = rolegen.config
  if top > config.backbone.beam:
    raise ConfigError(f'--top={top}: must be at most backbone.beam={config.backbone.beam}')
  now = int(log.timestamp.max()) + 1
  chosen = choose_users(log, users, config.data, now)
  table = inference_examples(
    log,
    chosen,
    log.offsets[chosen + 1],
    np.full(len(chosen), now),
    config.reasoner.role_events,
    config.reasoner.candidates,
    excitation,
  )
  predictions = predict(rolegen, params, table, trie, mesh, config.backbone.beam)
  item, log_prob = predictions.item, predictions.score
  if bars_history:
    item, log_prob = without_history(item, log_prob, log, table.user, table.end)
  if looks.are_known(params):
    attribute = excitation.attribute_IxA
    share = looks.opened_by_looks(rolegen, params, table, item, attribute, trie, mesh)
    opened = Opened.for_users(share, item)
  else:
    opened = Opened.at_large(excitation.opens, item)
  shown = slates(
    item,
    log_prob,
    opened,
    config.serving.exploration_weight,
    config.serving.exposure_penalty,
    top,
    len(log.items),
  )
  _say_short_lists(log, table.user, shown.item[:, :top])
  why = explanations(rolegen, params, table, shown.item, trie, mesh, top)
  frame = explained_table(log, table, predictions, shown, why)
  write_parquet(frame, output)
  return frame


def _say_short_lists(log: InteractionLog, user: np.ndarray, item_NxK: np.ndarray) -> None:
  """Say how many users got fewer items than were asked for, and who got none."""
  n_items = (item_NxK >= 0).sum(1)
  n_short, nothing = int((n_items < item_NxK.shape[1]).sum()), user[n_items == 0]
  if n_short:
    ids = ', '.join(str(log.users[int(index)]) for index in nothing[:10])
    none = f', {len(nothing)} of them none: {ids}' if len(nothing) else ''
    say(f'{n_short} users got fewer than {item_NxK.shape[1]} items{none}; raise backbone.beam')


# Users


def choose_users(log: InteractionLog, users: str, data: DataConfig, now: int) -> np.ndarray:
  """Return the indices int32 of the users that `users` names, see `recommend`.

  Raises DataError when there is none, or naming the line of an unknown id.
  """
  if users == 'all':
    chosen = np.arange(len(log.users))
  elif users == 'dormant':
    chosen = np.flatnonzero(dormant(log, data, now))
  else:
    chosen = _read_users(log, storage.path(users))
  if not len(chosen):
    raise DataError(f'--users={users}: no such user in the log')
  return chosen.astype(np.int32)


def dormant(log: InteractionLog, data: DataConfig, now: int) -> np.ndarray:
  """Return bool [U]: who would be dormant if they bought at time `now`.

  By the rules of cohorts D1 and D3 (never bought) and D2 (bought long ago).
  """
  return np.concatenate([_dormant(part.log, data, now) for part in log.parts()])


def _dormant(log: InteractionLog, data: DataConfig, now: int) -> np.ndarray:
  n_users = len(log.users)
  last_purchase = np.full(n_users, -1, np.int64)
  bought = log.event == PURCHASE
  np.maximum.at(last_purchase, log.user[bought], log.timestamp[bought])
  viewed_since = (log.event == VIEW) & (log.timestamp > last_purchase[log.user])
  views = np.bincount(log.user[viewed_since], weights=log.count[viewed_since], minlength=n_users)
  never = last_purchase < 0
  long_ago = now - last_purchase >= data.reactivation_min_days * DAY
  return np.where(
    never,
    views >= data.first_conversion_min_views,
    long_ago & (views >= data.reactivation_min_views),
  )


def _read_users(log: InteractionLog, path: pathlib.Path) -> np.ndarray:
  """Return the distinct indices of the users whose ids a file lists, one per line.

  Ids are taken as they stand, else without the spaces around them. Empty lines are skipped, and
  users that are named again are reported.
  """
  text = read_text(path, '--users=all, dormant or a text file of one user id per line')
  index_of = {str(user): index for index, user in enumerate(log.users)}
  chosen = []
  for number, line in enumerate(split_lines(text), 1):
    index = index_of.get(line)
    if index is None:
      user = line.strip()
      if not user:
        continue
      index = index_of.get(user)
      if index is None:
        right = _right_user(user, index_of)
        raise DataError(f'{path}: line {number}: user_id {user!r} is not in the log; {right}')
    chosen.append(index)
  if not chosen:
    raise DataError(f'{path}: names no user; must have one user id per line')
  distinct = np.unique(np.array(chosen, np.int64))
  if len(distinct) < len(chosen):
    say(f'{path}: {len(chosen) - len(distinct)} lines name a user again; each is listed once')
  return distinct


def _right_user(user: str, index_of: dict[str, int]) -> str:
  """Return what would be right in place of an unknown user id."""
  if user.lower() in ('user_id', 'user', 'userid', 'id'):
    return 'must be one user id per line, without a header'
  parts = [part.strip(' "\'') for part in re.split(r'[,;\t\r]', user)]
  if len(parts) > 1 and any(part in index_of for part in parts):
    return 'must be one user id per line, and nothing else'
  bare = user.strip('"\'\u201c\u201d\ufeff\u200b\u200e\u200f ')
  variants = [bare, bare.lower(), bare.upper(), re.sub(r'\.0*$', '', bare)]
  variants += [variant.lstrip('+0') or '0' for variant in variants]
  nearest = next((variant for variant in variants if variant in index_of), None)
  if nearest is None and len(index_of) <= MAX_COMPARED:
    nearest = next(iter(difflib.get_close_matches(user, index_of, 1)), None)
  return f'the nearest is {nearest!r}' if nearest else 'must be a user_id of its events'


# The table


def explained_table(
  log: InteractionLog,
  table: ExampleTable,
  predictions: Predictions,
  shown: Slates,
  explained: Explanations,
) -> pl.DataFrame:
  """Return the table of the module docstring."""
  item = shown.item[:, : explained.effect.shape[1]]
  example, rank = np.nonzero(item >= 0)
  listed = item[example, rank]
  assert predictions.candidates is not None  # they are of the reasoner and the backbone
  in_world_RxW = (predictions.candidates[example] == listed[:, None, None]).any(-1)
  world = np.where(in_world_RxW.any(1), in_world_RxW.argmax(1), -1)
  seen = holds(log, table.user, log.offsets[table.user + 1], item)[example, rank]
  terms_NxKxE = _relative_terms(predictions)
  place = (predictions.item[example] == listed[:, None]).argmax(1)
  terms = pl.DataFrame(terms_NxKxE[example, place], schema=list(EXPERTS)).to_struct('terms')
  carried = [carried_by(log, table, explained, int(i), int(k)) for i, k in zip(example, rank)]
  done = [_interventions(log, table, predictions, index) for index in range(len(table))]
  largest = [
    _largest_terms(terms_NxKxE[index], found, of_world, done[index])
    for index, found, of_world in zip(example, place, world)
  ]
  why = [
    _explain(of_experts, events, was_seen)
    for of_experts, events, was_seen in zip(largest, carried, seen)
  ]
  event_type = pl.Struct(
    dict(
      item_id=log.items['item_id'].dtype,
      event=pl.String,
      days_ago=pl.Float64,
      role=pl.String,
      nats=pl.Float64,
    )
  )
  return pl.DataFrame(
    dict(
      user_id=log.users.gather(table.user[example]),
      rank=(rank + 1).astype(np.int32),
      item_id=log.items['item_id'].gather(listed),
      log_prob=shown.log_prob[example, rank],
      rank_score=shown.rank_score[example, rank],
      opens=shown.opens[example, rank],
      world=world.astype(np.int32),
      terms=terms,
      seen=seen,
      carried_by=pl.Series(carried, dtype=pl.List(event_type)),
      why=why,
    )
  )


def _relative_terms(predictions: Predictions) -> np.ndarray:
  """Return the terms fp32 [N, K, E] less their means over each list; 0 in an empty slot."""
  is_item = (predictions.item >= 0)[..., None]
  count = np.maximum(is_item.sum(1, keepdims=True), 1)
  assert predictions.terms is not None
  mean = np.where(is_item, predictions.terms, 0).sum(1, keepdims=True) / count
  return np.where(is_item, predictions.terms - mean, 0).astype(np.float32)


def _largest_terms(terms_KxE: np.ndarray, place: int, world: int, done: list[str]) -> str:
  """Return the largest terms of the item at a place of a user's list, in words.

  Experts that say the same of the whole list tell nothing of it. done: what is done in each world.
  """
  of_candidates = f'world {world} ({done[world] if world else "factual"})'
  tells = (np.ptp(terms_KxE, axis=0) >= SMALLEST) & (terms_KxE[place] >= SMALLEST)
  tells[EXPERTS.index('candidates')] &= world >= 0
  tells = np.flatnonzero(tells)
  largest = tells[np.argsort(-terms_KxE[place, tells], kind='stable')][:SHOWN_TERMS]
  return ', '.join(
    f'{of_candidates if EXPERTS[expert] == "candidates" else EXPERTS[expert]} '
    + f'{terms_KxE[place, expert]:+.1f}'
    for expert in largest
  )


def carried_by(
  log: InteractionLog, table: ExampleTable, explained: Explanations, example: int, place: int
) -> list[dict[str, Any]]:
  """Return the events without which an item would lose most, with their roles towards it."""
  effect, role = explained.effect[example, place], explained.role[example, place]
  order = np.argsort(-effect, kind='stable')[:SHOWN_EVENTS]
  first_row = table.end[example] - len(effect)
  return [
    dict(
      item_id=log.items['item_id'][int(log.item[first_row + slot])],
      event=EVENT_NAMES[log.event[first_row + slot]],
      days_ago=round(int(table.timestamp[example] - log.timestamp[first_row + slot]) / DAY, 1),
      role=ROLE_NAMES[role[slot]] if role[slot] >= 0 else 'UNKNOWN',
      nats=round(float(effect[slot]), 3),
    )
    for slot in order
    if effect[slot] >= SMALLEST
  ]


def _interventions(
  log: InteractionLog, table: ExampleTable, predictions: Predictions, example: int
) -> list[str]:
  """Return what is done in each of a user's worlds, in words."""
  forced_role, removed = predictions.forced_role, predictions.removed
  forced_intent = predictions.forced_intent
  assert forced_role is not None and removed is not None and forced_intent is not None
  done = []
  for world in range(removed.shape[1]):
    changed = np.flatnonzero(removed[example, world] | (forced_role[example, world] >= 0))
    if not len(changed):
      code = forced_intent[example, world]
      done.append(f'intent set to coarse code {code}' if code >= 0 else 'no intervention')
      continue
    place = changed[0]
    row = table.end[example] - removed.shape[2] + place
    event = f'{EVENT_NAMES[log.event[row]]} of {log.items["item_id"][int(log.item[row])]}'
    is_removed = removed[example, world, place]
    role = ROLE_NAMES[forced_role[example, world, place]]
    done.append(f'without the {event}' if is_removed else f'the {event} as {role}')
  return done


def _explain(terms: str, carried: list[dict[str, Any]], seen: bool) -> str:
  """Return what the columns terms (in words), seen and carried_by of a row say, in words."""
  parts = [*([terms] if terms else []), 'seen before' if seen else 'new to the user']
  if carried:
    events = (
      f'{e["event"]} of {e["item_id"]} {e["days_ago"]:.0f} d ago as {e["role"]} {e["nats"]:+.1f}'
      for e in carried
    )
    parts.append(f'carried by {", ".join(events)}')
  return '; '.join(parts)
