"""Roles and rationales from an outside annotator: prompts for it, its answers, and annotations.

Three files of JSON objects:

  prompts      {id, user, occasion, events, prompt}
               `prompt` is the whole text to send, `events` the number of events it asks about.
  answers      {id, answer}
               `answer` is the text that the outside LLM returned. What `endpoint.py` adds is
               ignored. The rows that batch services write are read too (`responses.py`), with our
               id as theirs.
  annotations  {user, timestamp, item, role, rationale, occasion?}
               One event each. `occasion` is the time of the conversion that the role is meant for;
               a row without one holds for every conversion that has the event among its latest.

User and item ids are those of the log, times are whole seconds UTC. A role that the event cannot
have and a rationale that is not a short text are rejected. Everything that is not used is counted
by its reason; a file of which nothing can be used is an error.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError
from rolegen_jax.data.examples import PURCHASE, ExampleTable
from rolegen_jax.data.files import DataError
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.text import prompts, responses
from rolegen_jax.text.items import ItemWords, one_line
from rolegen_jax.text.records import read_records, write_lines

MAX_RATIONALE = 400  # characters
MAX_QUOTE = 200  # characters of rejected content that are kept
NOT_ANSWERED = 'not answered'
# Field of an annotation -> its types.
FIELDS: dict[str, tuple[type, ...]] = dict(
  user=(int, str),
  timestamp=(int,),
  item=(int, str),
  role=(str,),
  occasion=(int, type(None)),
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
  # Objects of the file that label an event of some example.
  kept: int


class _Label(NamedTuple):
  role: int
  rationale: str
  number: int  # of the object in its file


# Prompts


def write_prompts(
  table: ExampleTable, words: ItemWords | None, role_events: int, path: str | os.PathLike
) -> int:
  """Write a prompt for every example of the table and return the number of prompts."""
  write_lines(prompt_rows(table, words, role_events), path)
  return len(table)


def prompt_rows(
  table: ExampleTable, words: ItemWords | None, role_events: int
) -> list[dict[str, Any]]:
  """Return the objects of a prompts file, one for every example of the table."""
  return [_prompt(table, words, role_events, example) for example in range(len(table))]


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
    events=len(events),
    prompt=text.strip(),
  )


# Answers


def import_answers(
  table: ExampleTable,
  role_events: int,
  answers: str | os.PathLike,
  output: str | os.PathLike,
) -> str:
  """Write the annotations of an answers file, and what was rejected to `output`.rejected.jsonl.

  Return the summary. Raises DataError, and writes no annotations, when not one can be used.
  """
  rejected_path = f'{os.fspath(output)}.rejected.jsonl'
  for path in (output, rejected_path):
    if os.path.exists(path) and os.path.exists(answers) and os.path.samefile(path, answers):
      raise ConfigError(f'--output={output}: would replace --answers={answers}; must be another')
  annotations, rejected = read_answers(table, role_events, answers)
  write_lines((rejection._asdict() for rejection in rejected), rejected_path)
  if not annotations:
    right = f'{{id, answer}} to a prompt of this run and of as many --examples ({len(table)})'
    raise _nothing_kept(answers, rejected, right)
  write_lines(annotations, output)
  return summary(rejected, len(annotations))


def read_answers(
  table: ExampleTable, role_events: int, path: str | os.PathLike
) -> tuple[list[dict], list[Rejected]]:
  """Return (annotations, rejections) of answers to `write_prompts` of the same table.

  Raises DataError where the file is not made of JSON objects.
  """
  example_of_id = {_prompt_id(table, example): example for example in range(len(table))}
  annotations: list[dict] = []
  rejected: list[Rejected] = []
  answered = set()
  for line, record in read_records(path):
    prompt_id, text, failure = responses.unwrap(record)

    def reject(reason: str, content: object, where: str = prompt_id) -> None:
      rejected.append(Rejected(where, reason, str(content)[:MAX_QUOTE]))

    if not prompt_id:
      reject('no id', json.dumps(record), f'line {line}')
    elif prompt_id not in example_of_id:
      reject('no prompt of this id', prompt_id, f'line {line}')
    elif prompt_id in answered:
      reject('answered before', f'line {line}')
    elif failure:
      reject('the request failed', failure)
    elif text is None or not text.strip():
      reject('no answer', json.dumps(record))
    else:
      answered.add(prompt_id)
      annotations += _parse_answer(table, example_of_id[prompt_id], role_events, text, reject)
  unanswered = [
    Rejected(prompt_id, NOT_ANSWERED, '')
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
  """Yield the annotations of an answer. Text around them, e.g. a code fence, is skipped."""
  log, rows = table.log, _event_rows(table, example, role_events)
  annotated = set()
  said = list(responses.events(answer))
  if any(fields and _whole_number(fields.get('event')) == 0 for _, fields in said):
    reject('numbered from 0', answer)  # which would label every event as the one before it
    said = []
  for written, fields in said:
    if fields is None:
      reject('not JSON', written)
      continue
    number = _whole_number(fields.get('event'))
    if number is None or not 1 <= number <= len(rows):
      reject('no such event', written)
      continue
    row = rows[number - 1]
    role, rationale, problem = _label(fields, log.event[row])
    if number in annotated:
      reject('event annotated before', written)
    elif problem is not None:
      reject(problem, written)
    else:
      annotated.add(number)
      yield dict(
        user=_user_id(table, example),
        timestamp=int(log.timestamp[row]),
        item=log.items['item_id'][int(log.item[row])],
        role=role,
        rationale=rationale,
        occasion=int(table.timestamp[example]),
      )
  for number in range(1, 1 + len(rows)):
    if number not in annotated:
      reject('event without a valid line', f'event {number}')


def _label(fields: dict[str, Any], event: int) -> tuple[str, str, str | None]:
  """Return (role, rationale, why an event cannot have them; None when it can).

  Role names may be written in small letters or between Markdown's marks; a rationale is one line.
  """
  role, rationale = fields.get('role'), fields.get('rationale')
  if rationale is not None and not isinstance(rationale, str):
    return '', '', 'rationale is not text'
  name = role.strip('*_`"\' \t\r\n').upper() if isinstance(role, str) else ''
  said = one_line(rationale or '')
  if name not in ROLE_NAMES:
    return name, said, 'no such role'
  if name == 'CONVERT' and event != PURCHASE:
    return name, said, 'CONVERT on an event that is not a purchase'
  if name != 'CONVERT' and event == PURCHASE:
    return name, said, 'a purchase that is not CONVERT'
  if len(said) > MAX_RATIONALE:
    return name, said, f'rationale above {MAX_RATIONALE} characters'
  return name, said, None


def _whole_number(value: object) -> int | None:
  """Return an integer, also one that is written as text or as a float, else None."""
  if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
    return int(value)
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return value if isinstance(value, int) and not isinstance(value, bool) else None


# Annotations


def read_annotations(table: ExampleTable, path: str | os.PathLike) -> Annotations:
  """Return what the file says about the last M events of the table's examples.

  Lines that match nothing are rejected; of two lines on one event, the later one holds. Raises
  DataError where the file is not made of JSON objects, or when not a single one can be used.
  """
  log, n_events = table.log, table.roles.shape[1]
  # All ids of a log are of one type; files may write numbers as text.
  users = {str(user): index for index, user in enumerate(log.users)}
  items = {str(item): index for index, item in enumerate(log.items['item_id'])}
  rejected: list[Rejected] = []
  # (row of the log, occasion or None) -> the last label.
  labels: dict[tuple[int, int | None], _Label] = {}
  records = read_records(path)
  matched = []
  for number, (line, fields) in enumerate(records):
    said, problem = _match_rows(fields, log, users, items)
    if problem is not None:
      rejected.append(_rejected_record(line, problem, fields))
      continue
    matched.append(number)
    for row, role, rationale in said:
      labels[row, fields.get('occasion')] = _Label(role, rationale, number)
  roles, rationales, used = np.full_like(table.roles, -1), {}, set()
  for example in range(len(table)):
    for row in _event_rows(table, example, n_events):
      general = labels.get((row, None))
      label = labels.get((row, int(table.timestamp[example])), general)
      if label is None:
        continue
      used |= {label.number, (general or label).number}
      roles[example, row - table.end[example] + n_events] = label.role
      if label.rationale:
        rationales[example, row] = label.rationale
  holding = {label.number for label in labels.values()}
  for number in matched:
    if number not in used:
      of_no_use = 'not of the latest events of a conversion that the run learns from'
      reason = of_no_use if number in holding else 'replaced by a later line'
      rejected.append(_rejected_record(records[number][0], reason, records[number][1]))
  if not used:
    right = '{user, timestamp, item, role, rationale} of an event of this log'
    raise _nothing_kept(path, rejected, right)
  return Annotations(roles, rationales, rejected, len(used))


def _rejected_record(line: int, reason: str, fields: dict) -> Rejected:
  return Rejected(f'line {line}', reason, json.dumps(fields)[:MAX_QUOTE])


def _match_rows(
  fields: dict, log: InteractionLog, users: dict[str, int], items: dict[str, int]
) -> tuple[list[tuple[int, int, str]], str | None]:
  """Return ([(row of the log, role, rationale)], None), or ([], the problem with an annotation)."""
  for name, kinds in FIELDS.items():
    value = fields.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
      return [], f'field {name}'
  if str(fields['user']) not in users:
    return [], 'no such user'
  if str(fields['item']) not in items:
    return [], 'no such item'
  begin, end = log.offsets[users[str(fields['user'])] :][:2]
  same_time = log.timestamp[begin:end] == fields['timestamp']
  same_item = log.item[begin:end] == items[str(fields['item'])]
  rows = begin + np.flatnonzero(same_time & same_item)
  if not len(rows):
    return [], 'no such event'
  labels = [(int(row), *_label(fields, log.event[row])) for row in rows]
  good = [
    (row, ROLE_NAMES.index(role), rationale)
    for row, role, rationale, problem in labels
    if problem is None
  ]
  return good, None if good else labels[0][-1]


# Shared


def summary(rejected: list[Rejected], kept: int) -> str:
  """Return as text how many were kept, and rejected for which reason, with the first of each."""
  counts = collections.Counter(rejection.reason for rejection in rejected)
  lines = [f'  {count:6}  {_first(rejected, reason)}' for reason, count in counts.most_common()]
  return '\n'.join([f'{kept} annotations kept, {len(rejected)} rejections', *lines])


def _first(rejected: list[Rejected], reason: str) -> str:
  """Return a reason and the first that was rejected for it, on one line."""
  first = next(rejection for rejection in rejected if rejection.reason == reason)
  return one_line(f'{reason}: {first.where}: {first.content}'.rstrip(': '))


def _nothing_kept(path: str | os.PathLike, rejected: list[Rejected], right: str) -> DataError:
  """Return the error for a file of which nothing can be used; `right` is what it must hold."""
  reasons = [rejection.reason for rejection in rejected if rejection.reason != NOT_ANSWERED]
  if not reasons:
    return DataError(f'{path}: holds no JSON object; each must be {right}')
  (reason, count), *_ = collections.Counter(reasons).most_common(1)
  return DataError(
    f'{path}: nothing in it can be used; most often ({count} of {len(reasons)}): '
    f'{_first(rejected, reason)}; each object must be {right}'
  )


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
  return description or one_line(f'item {log.items["item_id"][int(item)]}')


def _format_time(timestamp: int) -> str:
  return str(np.datetime64(int(timestamp), 's').astype('datetime64[m]')).replace('T', ' ')
