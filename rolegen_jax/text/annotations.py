"""Roles and rationales from an outside annotator: prompts for it, its answers, and annotations.

Three files of JSON lines:

  prompts      {id, user, occasion, prompt}
               `prompt` is the whole text to send.
  answers      {id, answer}
               `answer` is the text that the outside LLM returned.
  annotations  {user, timestamp, item, role, rationale, occasion?}
               One event each. `occasion` is the time of the conversion that the role is meant for;
               a row without one holds for every conversion that has the event among its latest.

User and item ids are those of the log, times are whole seconds UTC. A role that the event cannot
have and a rationale that is not a short text are rejected.
"""

from __future__ import annotations

import collections
import datetime
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.examples import PURCHASE, ExampleTable
from rolegen_jax.data.files import DataError, renamed
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords

MAX_RATIONALE = 400  # characters
MAX_QUOTE = 200  # characters of rejected content that are kept
# Field of an annotation -> its types.
FIELDS: dict[str, tuple[type, ...]] = dict(
  user=(int, str), timestamp=(int,), item=(int, str), role=(str,)
)


class Rejected(NamedTuple):
  """One line or answer that was not used."""

  where: str  # id of the prompt, or line of the file
  reason: str  # a few words, to be counted
  content: str  # what was there


class Annotations(NamedTuple):
  """What an annotations file says about N examples."""

  # int32 [N, M], -1 = not annotated.
  roles: np.ndarray
  # (example, row of the log) -> rationale.
  said: dict[tuple[int, int], str]
  rejected: list[Rejected]


# Prompts


def write_prompts(
  table: ExampleTable, words: ItemWords | None, role_events: int, path: str | os.PathLike
) -> int:
  """Write a prompt for every example of the table and return the number of prompts."""
  write_lines((_prompt(table, words, role_events, example) for example in range(len(table))), path)
  return len(table)


def _prompt(
  table: ExampleTable, words: ItemWords | None, role_events: int, example: int
) -> dict[str, Any]:
  template = prompts.templates()['annotate']
  log = table.log
  roles = [
    template['role'].format(name=name, meaning=template['roles'][name]) for name in ROLE_NAMES
  ]
  events = [
    template['event'].format(
      number=number,
      when=_format_time(log.timestamp[row]),
      event=EVENT_NAMES[log.event[row]],
      item=_item_label(log, words, log.item[row]),
    )
    for number, row in enumerate(_event_rows(table, example, role_events), 1)
  ]
  text = template['prompt'].format(
    events='\n'.join(events),
    roles='\n'.join(roles),
    when=_format_time(table.timestamp[example]),
    bought=_item_label(log, words, table.target[example]),
  )
  return dict(
    id=_prompt_id(table, example),
    user=_user_id(table, example),
    occasion=int(table.timestamp[example]),
    prompt=text.strip(),
  )


# Answers


def read_answers(
  table: ExampleTable, role_events: int, path: str | os.PathLike
) -> tuple[list[dict], list[Rejected]]:
  """Return (annotations, rejections) of answers to `write_prompts` of the same table.

  Raises DataError where the file is not JSON lines.
  """
  example_of_id = {_prompt_id(table, example): example for example in range(len(table))}
  annotations: list[dict] = []
  rejected: list[Rejected] = []
  answered = set()
  for line_number, answer in read_lines(path):
    prompt_id = str(answer.get('id'))

    def reject(reason: str, content: object, where: str = prompt_id) -> None:
      rejected.append(Rejected(where, reason, str(content)[:MAX_QUOTE]))

    text = answer.get('answer')
    if prompt_id not in example_of_id:
      reject('no prompt of this id', prompt_id, f'line {line_number}')
    elif prompt_id in answered:
      reject('answered before', f'line {line_number}')
    elif not isinstance(text, str):
      reject('no answer', text)
    else:
      answered.add(prompt_id)
      annotations += _parse_answer(table, example_of_id[prompt_id], role_events, text, reject)
  unanswered = [
    Rejected(prompt_id, 'not answered', '')
    for prompt_id in example_of_id
    if prompt_id not in answered
  ]
  return annotations, rejected + unanswered


def _parse_answer(
  table: ExampleTable,
  example: int,
  role_events: int,
  answer: str,
  reject: Callable[[str, object], None],
) -> Iterator[dict[str, Any]]:
  """Yield the annotations of an answer's lines. Text around them, e.g. a code fence, is skipped."""
  log, rows = table.log, _event_rows(table, example, role_events)
  annotated = set()
  for line in answer.splitlines():
    if not line.strip().startswith('{'):
      continue
    try:
      fields = json.loads(line.strip().rstrip(','))
    except json.JSONDecodeError:
      reject('not JSON', line)
      continue
    number, role, rationale = fields.get('event'), fields.get('role'), fields.get('rationale', '')
    if not isinstance(number, int) or not 1 <= number <= len(rows):
      reject('no such event', line)
      continue
    row = rows[number - 1]
    problem = _find_problem(role, rationale, log.event[row])
    if number in annotated:
      reject('event annotated before', line)
    elif problem is not None:
      reject(problem, line)
    else:
      annotated.add(number)
      yield dict(
        user=_user_id(table, example),
        timestamp=int(log.timestamp[row]),
        item=log.items['item_id'][int(log.item[row])],
        role=role,
        rationale=rationale.strip(),
        occasion=int(table.timestamp[example]),
      )
  for number in range(1, 1 + len(rows)):
    if number not in annotated:
      reject('event without a valid line', f'event {number}')


def _find_problem(role: object, rationale: object, event: int) -> str | None:
  """Return why an event cannot have this role and rationale; None when it can."""
  if role not in ROLE_NAMES:
    return 'no such role'
  if role == 'CONVERT' and event != PURCHASE:
    return 'CONVERT on an event that is not a purchase'
  if role != 'CONVERT' and event == PURCHASE:
    return 'a purchase that is not CONVERT'
  if not isinstance(rationale, str):
    return 'rationale is not text'
  if len(rationale) > MAX_RATIONALE:
    return f'rationale above {MAX_RATIONALE} characters'
  return None


# Annotations


def read_annotations(table: ExampleTable, path: str | os.PathLike) -> Annotations:
  """Return what the file says about the last M events of the table's examples.

  Rows that match nothing are rejected; of two rows on one event, the later one holds. Raises
  DataError where the file is not JSON lines, or when not a single row matches.
  """
  log, n_events = table.log, table.roles.shape[1]
  users = {user: index for index, user in enumerate(log.users)}
  items = {item: index for index, item in enumerate(log.items['item_id'])}
  rejected: list[Rejected] = []
  # (row of the log, occasion or None) -> (role, rationale).
  labels: dict[tuple[int, Any], tuple[int, str]] = {}
  for line_number, fields in read_lines(path):
    rows, problem = _match_rows(fields, log, users, items)
    if problem is not None:
      rejected.append(Rejected(f'line {line_number}', problem, json.dumps(fields)[:MAX_QUOTE]))
      continue
    label = ROLE_NAMES.index(fields['role']), fields.get('rationale', '').strip()
    labels |= {(row, fields.get('occasion')): label for row in rows}
  if not labels:
    first = f'; the first: {rejected[0].where}, {rejected[0].reason}' if rejected else ''
    raise DataError(
      f'{path}: no row matches an event of the log{first}; '
      'each line must be {user, timestamp, item, role, rationale}'
    )
  roles, rationales = np.full_like(table.roles, -1), {}
  for example in range(len(table)):
    for row in _event_rows(table, example, n_events):
      of_any_occasion = labels.get((row, None), (-1, ''))
      role, rationale = labels.get((row, int(table.timestamp[example])), of_any_occasion)
      roles[example, row - table.end[example] + n_events] = role
      if rationale:
        rationales[example, row] = rationale
  return Annotations(roles, rationales, rejected)


def _match_rows(
  fields: dict, log: InteractionLog, users: dict[Any, int], items: dict[Any, int]
) -> tuple[list[int], str | None]:
  """Return (rows of the log that an annotation is about, None), or ([], the problem with it)."""
  for name, kinds in FIELDS.items():
    if not isinstance(fields.get(name), kinds):
      return [], f'field {name}'
  if fields['user'] not in users:
    return [], 'no such user'
  if fields['item'] not in items:
    return [], 'no such item'
  begin, end = log.offsets[users[fields['user']] :][:2]
  same_time = log.timestamp[begin:end] == fields['timestamp']
  same_item = log.item[begin:end] == items[fields['item']]
  rows = begin + np.flatnonzero(same_time & same_item)
  if not len(rows):
    return [], 'no such event'
  rationale = fields.get('rationale', '')
  problems = [_find_problem(fields['role'], rationale, log.event[row]) for row in rows]
  if all(problems):
    return [], problems[0]
  return [int(row) for row, problem in zip(rows, problems) if problem is None], None


# Shared


def summary(rejected: list[Rejected], kept: int) -> str:
  """Return as text how many were kept, and rejected for which reason, with the first of each."""
  counts = collections.Counter(rejection.reason for rejection in rejected)
  first = {rejection.reason: rejection for rejection in reversed(rejected)}
  lines = [
    f'  {count:6}  {reason}: {first[reason].where}: {first[reason].content}'.rstrip(': ')
    for reason, count in counts.most_common()
  ]
  return '\n'.join([f'{kept} annotations kept, {len(rejected)} rejections', *lines])


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
  """Yield (line number, object) of a file of JSON lines. Raises DataError."""
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path}: cannot be read ({error}); must be a file of JSON lines') from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      content = json.loads(line)
    except json.JSONDecodeError as error:
      raise DataError(f'{path}, line {number}: {error}; must be one JSON object') from error
    if not isinstance(content, dict):
      raise DataError(f'{path}, line {number}: {line[:80]!r}; must be one JSON object')
    yield number, content


def write_lines(rows: Iterable[dict], path: str | os.PathLike) -> None:
  """Write a file of JSON lines, whole or not at all."""
  lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
  with renamed(path) as temporary:
    temporary.write_text(''.join(lines), encoding='utf-8')


def _event_rows(table: ExampleTable, example: int, n_events: int) -> range:
  """Return the rows of the log that are the last events of an example's history."""
  end = int(table.end[example])
  return range(int(max(end - n_events, table.log.offsets[table.user[example]])), end)


def _user_id(table: ExampleTable, example: int) -> Any:
  return table.log.users[int(table.user[example])]


def _prompt_id(table: ExampleTable, example: int) -> str:
  item = table.log.items['item_id'][int(table.target[example])]
  return f'{_user_id(table, example)}@{table.timestamp[example]}/{item}'


def _item_label(log: InteractionLog, words: ItemWords | None, item: int) -> str:
  description = words.described(int(item)) if words else ''
  return description or f'item {log.items["item_id"][int(item)]}'


def _format_time(timestamp: int) -> str:
  time = datetime.datetime.fromtimestamp(int(timestamp), datetime.timezone.utc)
  return time.strftime('%Y-%m-%d %H:%M')
