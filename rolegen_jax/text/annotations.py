"""Roles and rationales from an outside annotator: prompts for it, its answers, and the annotations that a run reads.

Three files of JSON lines:

  prompts      {id, user, occasion, prompt}            what to ask; `prompt` is the whole text
  answers      {id, answer}                            what came back; `answer` is the text of the outside LLM
  annotations  {user, timestamp, item, role, rationale, occasion?}   one event each; `occasion` is the time of the conversion that the
               role is meant for, and a row without one speaks of every conversion that has the event among its latest

User and item are those of the log, times whole seconds UTC. A role that the event cannot have, or a sentence that is none, is rejected.
"""

from __future__ import annotations

import collections
import datetime
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.examples import PURCHASE, ExampleTable
from rolegen_jax.data.files import DataError, renamed
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords

CONVERT = ROLE_NAMES.index('CONVERT')
LONGEST = 400  # characters of a rationale
FIELDS = dict(user=(int, str), timestamp=int, item=(int, str), role=str)


class Rejected(NamedTuple):
  where: str  # id of the prompt, or line of the file
  reason: str  # a few words, to be counted
  found: str  # what was there


class Annotations(NamedTuple):
  roles: np.ndarray  # int32 [N, M], -1 = not annotated
  said: dict[tuple[int, int], str]  # (case, row of the log) -> rationale
  rejected: list[Rejected]


def write_prompts(
  table: ExampleTable, words: ItemWords | None, role_events: int, path: str | os.PathLike
) -> int:
  """A prompt for every case of the table; the number of them."""
  said = prompts.templates()['annotate']
  roles = '\n'.join(
    said['role'].format(name=name, meaning=said['roles'][name]) for name in ROLE_NAMES
  )
  found = []
  for example in range(len(table)):
    log, rows = table.log, enumerate(_rows(table, example, role_events), 1)
    line = lambda row: dict(
      when=_when(log.timestamp[row]),
      event=EVENT_NAMES[log.event[row]],
      item=_label(log, words, log.item[row]),
    )
    events = '\n'.join(said['event'].format(number=number, **line(row)) for number, row in rows)
    text = said['prompt'].format(
      events=events,
      roles=roles,
      when=_when(table.timestamp[example]),
      bought=_label(log, words, table.target[example]),
    )
    found.append(
      dict(
        id=_id(table, example),
        user=_user(table, example),
        occasion=int(table.timestamp[example]),
        prompt=text.strip(),
      )
    )
  write_lines(found, path)
  return len(found)


def read_answers(
  table: ExampleTable, role_events: int, path: str | os.PathLike
) -> tuple[list[dict], list[Rejected]]:
  """(annotations, what was rejected) of answers to `write_prompts` of the same table. Raises DataError where the file is no JSON lines."""
  examples, kept, rejected, seen = (
    {_id(table, example): example for example in range(len(table))},
    [],
    [],
    set(),
  )
  for number, answer in read_lines(path):
    name = str(answer.get('id'))
    reject = lambda reason, found: rejected.append(Rejected(name, reason, str(found)[:200]))
    if name not in examples:
      rejected.append(Rejected(f'line {number}', 'no prompt of this id', name[:200]))
    elif name in seen:
      reject('answered before', f'line {number}')
    elif not isinstance(answer.get('answer'), str):
      reject('no answer', answer.get('answer'))
    else:
      seen.add(name)
      kept += _events(table, examples[name], role_events, answer['answer'], reject)
  return kept, rejected + [
    Rejected(name, 'not answered', '') for name in examples if name not in seen
  ]


def _events(
  table: ExampleTable, example: int, role_events: int, answer: str, reject
) -> Iterator[dict]:
  """Annotations of one answer's lines. What is around them, a code fence say, is passed over."""
  rows, told = _rows(table, example, role_events), set()
  for line in answer.splitlines():
    if not line.strip().startswith('{'):
      continue
    try:
      said = json.loads(line.strip().rstrip(','))
    except json.JSONDecodeError:
      reject('no JSON', line)
      continue
    number, role, why = said.get('event'), said.get('role'), said.get('rationale', '')
    if not isinstance(number, int) or not 1 <= number <= len(rows):
      reject('no such event', line)
    elif number in told:
      reject('event told twice', line)
    elif (wrong := _wrong(role, why, table.log.event[rows[number - 1]])) is not None:
      reject(wrong, line)
    else:
      told.add(number)
      row, log = rows[number - 1], table.log
      where = dict(
        user=_user(table, example),
        timestamp=int(log.timestamp[row]),
        item=log.items['item_id'][int(log.item[row])],
      )
      yield where | dict(role=role, rationale=why.strip(), occasion=int(table.timestamp[example]))
  for number in range(1, 1 + len(rows)):
    if number not in told:
      reject('event without a valid line', f'event {number}')


def _wrong(role, why, event: int) -> str | None:
  """Why an event cannot have this role and rationale; None when it can."""
  if role not in ROLE_NAMES:
    return 'no such role'
  if (role == 'CONVERT') != (event == PURCHASE):
    return (
      'CONVERT on what is no purchase' if role == 'CONVERT' else 'a purchase that is not CONVERT'
    )
  if not isinstance(why, str):
    return 'rationale is no text'
  if len(why) > LONGEST:
    return f'rationale above {LONGEST} characters'
  return None


def read_annotations(table: ExampleTable, path: str | os.PathLike) -> Annotations:
  """What the file says of the last M events of the table's cases. Rows that fit nothing are rejected; of two on one event, the later holds.

  Raises DataError where the file is no JSON lines, or not one row fits.
  """
  log, m = table.log, table.roles.shape[1]
  users = {user: number for number, user in enumerate(log.users)}
  items = {item: number for number, item in enumerate(log.items['item_id'])}
  rejected, told = [], {}  # (row of the log, occasion or None) -> (role, rationale)
  for number, said in read_lines(path):
    reject = lambda reason: rejected.append(
      Rejected(f'line {number}', reason, json.dumps(said)[:200])
    )
    wrong = next(
      (name for name, kind in FIELDS.items() if not isinstance(said.get(name), kind)), None
    )
    if wrong:
      reject(f'field {wrong}')
    elif said['user'] not in users or said['item'] not in items:
      reject('no such user' if said['user'] not in users else 'no such item')
    else:
      begin, end = log.offsets[users[said['user']] :][:2]
      at = begin + np.flatnonzero(
        (log.timestamp[begin:end] == said['timestamp'])
        & (log.item[begin:end] == items[said['item']])
      )
      why = said.get('rationale', '')
      reasons = [_wrong(said['role'], why, log.event[row]) for row in at]
      if not len(at):
        reject('no such event')
      elif all(reasons):
        reject(reasons[0])
      else:
        label = ROLE_NAMES.index(said['role']), why.strip()
        told |= {
          (int(row), said.get('occasion')): label
          for row, reason in zip(at, reasons)
          if reason is None
        }
  if not told:
    reason = f'; the first: {rejected[0].where}, {rejected[0].reason}' if rejected else ''
    raise DataError(
      f'{path}: no row fits an event of the log{reason}; must be {{user, timestamp, item, role, rationale}} a line'
    )
  roles, sentences = np.full_like(table.roles, -1), {}
  for example in range(len(table)):
    for row in _rows(table, example, m):
      role, why = told.get((row, int(table.timestamp[example])), told.get((row, None), (-1, '')))
      roles[example, row - table.end[example] + m] = role
      if why:
        sentences[example, row] = why
  return Annotations(roles, sentences, rejected)


def summary(rejected: list[Rejected], kept: int) -> str:
  """How many were kept, and rejected for which reason, with the first of each, as text."""
  reasons = collections.Counter(r.reason for r in rejected)
  first = {r.reason: r for r in reversed(rejected)}
  lines = [
    f'  {count:6}  {reason}: {first[reason].where}: {first[reason].found}'.rstrip(': ')
    for reason, count in reasons.most_common()
  ]
  return '\n'.join([f'{kept} annotations kept, {len(rejected)} rejections', *lines])


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
  """(number of the line, object) of a file of JSON lines. Raises DataError."""
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path}: cannot be read ({error}); must be a file of JSON lines') from error
  for number, line in enumerate(lines, 1):
    if line.strip():
      try:
        found = json.loads(line)
      except json.JSONDecodeError as error:
        raise DataError(f'{path}, line {number}: {error}; must be one JSON object') from error
      if not isinstance(found, dict):
        raise DataError(f'{path}, line {number}: {line[:80]!r}; must be one JSON object')
      yield number, found


def write_lines(rows: Iterable[dict], path: str | os.PathLike) -> None:
  with renamed(path) as temporary:
    temporary.write_text(
      ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8'
    )


def _rows(table: ExampleTable, example: int, last: int) -> range:
  """Rows of the log that are the last events of a case's history."""
  return range(
    int(max(table.end[example] - last, table.log.offsets[table.user[example]])),
    int(table.end[example]),
  )


def _user(table: ExampleTable, example: int):
  return table.log.users[int(table.user[example])]


def _id(table: ExampleTable, example: int) -> str:
  return f'{_user(table, example)}@{table.timestamp[example]}/{table.log.items["item_id"][int(table.target[example])]}'


def _label(log, words: ItemWords | None, item: int) -> str:
  return (words and words.described(int(item))) or f'item {log.items["item_id"][int(item)]}'


def _when(timestamp: int) -> str:
  return datetime.datetime.fromtimestamp(int(timestamp), datetime.timezone.utc).strftime(
    '%Y-%m-%d %H:%M'
  )
