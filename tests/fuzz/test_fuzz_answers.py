"""Mutated answers, annotations and lists of users: all of a file is used, reported or refused."""

import collections
import json
import random
from types import SimpleNamespace

import mutate
import polars as pl
import pytest

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.serving.audience import _read_users
from rolegen_jax.text import annotations
from tests import tiny
from tests.text import catalogue

LAST, EXAMPLES = 4, 5
ODD = ('\u2028', '\x85', '\\', '"', '\ud83d', '\0', '```', '{', '}', '[1]', "'", '\t', '\U0001f375')
# What a service or a model may have instead of an answer.
NO_ANSWER = (None, '', ' \n', {}, [], '\u2028', dict(content=None), dict(message={}))
OTHER_IDS = ('nobody', '', None, 7, 1e999, ['x'], {'a': 1}, 'x' * 500)


@pytest.fixture(scope='module')
def table():
  return catalogue.log_and_examples()[2].evenly(EXAMPLES)


def event_rows(table, example) -> range:
  """The rows of the log that a prompt shows."""
  end, first = int(table.end[example]), int(table.log.offsets[table.user[example]])
  return range(max(first, end - LAST), end)


def roles(rng, table, example) -> list[dict]:
  """A right line for every event of a prompt."""
  lines = []
  for number, row in enumerate(event_rows(table, example), 1):
    is_bought = table.log.event[row] == tiny.PURCHASE
    role = 'CONVERT' if is_bought else rng.choice(ROLE_NAMES[:-1])
    said = rng.choice(('', 'why', f'odd {rng.choice(ODD)} x', 'x' * 400))
    lines.append(dict(event=number, role=role, rationale=said))
  return lines


def spoiled(rng, line) -> dict:
  """A line on an event that must be rejected."""
  wrong = rng.choice(
    (
      dict(role='HERO'),
      dict(role=None),
      dict(role=['ANCHOR']),
      dict(role='ANCHOR' if line['role'] == 'CONVERT' else 'CONVERT'),
      dict(event=99),
      dict(event=-1),
      dict(event=1.5),
      dict(event=True),
      dict(event=None),
      dict(event='9' * 30),
      dict(event=1e300),
      dict(rationale=3),
      dict(rationale=[]),
      dict(rationale='x' * 401),
    )
  )
  return line | wrong


def written(rng, lines) -> str:
  """The lines as a language model may write them."""
  style = rng.choice(('lines', 'array', 'fence', 'object', 'by number', 'list', 'commas'))
  # In a list, -1 is the first event behind a bullet.
  is_listed = all(line['rationale'] == 'why' and line['event'] != -1 for line in lines)
  if style == 'list' and is_listed:
    return '\n'.join(f'{x["event"]}. **{x["role"]}**: {x["rationale"]}' for x in lines)
  if style == 'by number' and len({line['event'] for line in lines}) == len(lines):
    return json.dumps({str(x['event']): {k: x[k] for k in ('role', 'rationale')} for x in lines})
  if style == 'array':
    return json.dumps(lines, indent=rng.choice((None, 2)))
  if style == 'object':
    return json.dumps(dict(annotations=lines))
  text = '\n'.join(json.dumps(line, ensure_ascii=rng.random() < 0.5) for line in lines)
  return f'Sure!\n```json\n{text}\n```\nBye.' if style == 'fence' else text


def wrapped(rng, prompt_id, text) -> dict:
  """A row of an answers file: ours, or that of a batch service."""
  body = dict(choices=[dict(message=dict(content=text)), dict(message=dict(content='other'))])
  parts = [dict(type='thinking', thinking='{"event": 1}'), dict(type='text', text=text)]
  return rng.choice(
    (
      dict(id=prompt_id, answer=text),
      dict(id='req', custom_id=prompt_id, response=dict(status_code=200, body=body), error=None),
      dict(custom_id=prompt_id, result=dict(type='succeeded', message=dict(content=parts))),
      dict(key=prompt_id, response=dict(candidates=[dict(content=dict(parts=[dict(text=text)]))])),
    )
  )


def failed(rng, prompt_id) -> dict:
  return rng.choice(
    (
      dict(custom_id=prompt_id, error=dict(message='quota')),
      dict(custom_id=prompt_id, response=dict(status_code=429, body={})),
      dict(custom_id=prompt_id, result=dict(type='errored')),
      *(dict(id=prompt_id, answer=nothing) for nothing in NO_ANSWER[:3]),
      *(dict(custom_id=prompt_id, response=nothing) for nothing in NO_ANSWER),
      dict(id=prompt_id),
    )
  )


def as_file(rng, rows) -> bytes:
  style = rng.choice(('lines', 'lines', 'array', 'fence', 'pretty'))
  escaped = rng.random() < 0.5
  lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
  text = rng.choice(('\n', '\r\n', '\n\n')).join(lines) + rng.choice(('', '\n'))
  if style == 'array':
    text = json.dumps(rows, indent=rng.choice((None, 2)))
  if style == 'pretty':
    text = '\n'.join(json.dumps(row, indent=2) for row in rows)
  if style == 'fence':
    text = f'Here:\n```json\n{text}\n```\nDone.'
  # Half of a pair of surrogates is no UTF-8; JSON has an escape for it.
  return rng.choice((b'', b'\xef\xbb\xbf')) + text.encode('utf-8', 'backslashreplace')


def shown(said: str) -> str:
  """A rationale as it is kept: one line."""
  return annotations.one_line(said)


@mutate.seeds(150)
def test_every_answer_is_kept_or_rejected(table, tmp_path, attempt, seed):
  rng = random.Random(seed)
  words = annotations.ItemWords.of(table.log.items)
  annotations.write_prompts(table, words, LAST, tmp_path / 'prompts.jsonl')
  ids = [
    json.loads(x)['id'] for x in (tmp_path / 'prompts.jsonl').read_text('utf-8').split('\n') if x
  ]
  rows, right, asked = [], {}, collections.Counter()
  for example, prompt_id in enumerate(ids):
    case = rng.choice(('right', 'right', 'right', 'spoiled', 'failed', 'other id', 'none', 'twice'))
    lines = roles(rng, table, example)
    good = {line['event']: line for line in lines}
    if case == 'spoiled':
      at = rng.randrange(len(lines))
      del good[lines[at]['event']]
      lines[at] = spoiled(rng, lines[at])
    if case == 'failed':
      rows.append(failed(rng, prompt_id))
    elif case == 'other id':
      rows.append(dict(id=rng.choice(OTHER_IDS), answer=written(rng, lines)))
    elif case != 'none':
      rows.append(wrapped(rng, prompt_id, written(rng, lines)))
      right |= {(example, number): line for number, line in good.items()}
      asked[example] = len(lines)
      if case == 'twice':
        rows.append(wrapped(rng, prompt_id, written(rng, roles(rng, table, example))))
  path, output = tmp_path / 'answers.jsonl', tmp_path / 'annotations.jsonl'
  content = as_file(rng, rows)
  path.write_bytes(content)
  read = attempt(lambda: annotations.read_answers(table, LAST, path))
  assert not read.refusal
  kept, rejected = read.value
  reasons = collections.Counter(rejection.reason for rejection in rejected)
  whole = ('no id', 'no prompt of this id', 'answered before', 'the request failed', 'no answer')
  answered = EXAMPLES - reasons[annotations.NOT_ANSWERED]
  assert answered + sum(reasons[reason] for reason in whole) == len(rows)
  assert answered == len(asked)
  assert len(kept) + reasons['event without a valid line'] == sum(asked.values())
  assert in_order(kept) == in_order(expected(table, *place, line) for place, line in right.items())
  check_import(table, path, output, content, read.value, attempt)


def expected(table, example, number, line) -> dict:
  """The annotation that a right line becomes."""
  log, row = table.log, event_rows(table, example)[number - 1]
  return dict(
    user=log.users[int(table.user[example])],
    timestamp=int(log.timestamp[row]),
    item=log.items['item_id'][int(log.item[row])],
    role=line['role'],
    rationale=shown(line['rationale']),
    occasion=int(table.timestamp[example]),
  )


def in_order(rows) -> list[str]:
  return sorted(json.dumps(row, sort_keys=True) for row in rows)


def check_import(table, path, output, content, read, attempt) -> None:
  """The command writes what was read, beside what was rejected, and it can be read back."""
  kept, rejected = read
  done = attempt(lambda: annotations.import_answers(table, LAST, path, output))
  assert path.read_bytes() == content
  assert bool(done.refusal) == (not kept) == (not output.exists())
  beside = output.with_name(f'{output.name}.rejected.jsonl')
  assert beside.read_text('utf-8').count('\n') == len(rejected)
  if not kept:
    return
  assert in_order(json.loads(x) for x in output.read_text('utf-8').split('\n') if x) == in_order(
    kept
  )
  again = annotations.read_annotations(table, output)
  replaced = [x for x in again.rejected if x.reason == 'replaced by a later line']
  assert again.rejected == replaced and again.kept + len(replaced) == len(kept)


@mutate.seeds(150)
def test_every_annotation_is_kept_or_rejected(table, tmp_path, attempt, seed):
  rng = random.Random(seed)
  rows = [
    expected(table, example, line['event'], line)
    for example in range(EXAMPLES)
    for line in roles(rng, table, example)
  ]
  rows = rng.sample(rows, rng.randint(1, len(rows)))
  n_wrong = rng.randint(0, 3)
  for at in rng.sample(range(len(rows)), min(n_wrong, len(rows))):
    rows[at] |= rng.choice(WRONG_FIELDS)
    if rng.random() < 0.2:
      del rows[at][rng.choice(('user', 'timestamp', 'item', 'role'))]
  is_damaged = rng.random() < 0.3
  path, content = tmp_path / 'annotations.jsonl', as_file(rng, rows)
  path.write_bytes(mutate.mutated(rng, content) if is_damaged else content)
  read = attempt(lambda: annotations.read_annotations(table, path))
  if is_damaged:
    return
  wrong = sum(row not in in_log(table) for row in rows)
  if read.refusal:
    assert wrong == len(rows) and 'nothing in it can be used' in read.refusal
    return
  found = read.value
  assert found.kept + len(found.rejected) == len(rows)
  replaced = sum(x.reason == 'replaced by a later line' for x in found.rejected)
  assert len(found.rejected) - replaced == wrong


# The occasion of another time leaves a row that is right, and of no use.
WRONG_FIELDS = [
  *(dict(user=value) for value in ('nobody', None, True, 1.0, [1], '')),
  *(dict(item=value) for value in ('nothing', None, False, {}, -1)),
  *(dict(timestamp=value) for value in (0, -1, 2**70, '1', None, 1.0, True)),
  *(dict(role=value) for value in ('HERO', '', None, 1, ['ANCHOR'])),
  *(dict(rationale=value) for value in (1, [], 'x' * 401)),
  *(dict(occasion=value) for value in (1, -1, '1', 1.5, True, [])),
]


def in_log(table) -> list[dict]:
  """Every row that is right for the table, of any role and rationale, is one of these."""
  return Right(table)


class Right:
  """The annotations that name an event of the table with a role that it can have."""

  def __init__(self, table):
    self._events = {}
    for example in range(EXAMPLES):
      for row in event_rows(table, example):
        made = expected(table, example, row - event_rows(table, example)[0] + 1, NOTHING)
        self._events.setdefault(key(made), set()).add(table.log.event[row] == tiny.PURCHASE)

  def __contains__(self, row: dict) -> bool:
    said, role = row.get('rationale'), row.get('role')
    if said is not None and (not isinstance(said, str) or len(said) > 400):
      return False
    if not isinstance(role, str) or role not in ROLE_NAMES or len(row) < 6:
      return False
    return (role == 'CONVERT') in self._events.get(key(row), ())


NOTHING = dict(role='', rationale='')


def key(row: dict) -> str:
  return json.dumps([row[name] for name in ('user', 'timestamp', 'item', 'occasion')])


NUMBERS = SimpleNamespace(users=pl.Series([7, 42, 1001, 2002, 30303, -5]))
NAMES = SimpleNamespace(users=pl.Series(['Ann', ' Bob ', 'a,b', 'x\u2028y', 'user_id', '"q"', '7']))
NO_USERS = ('user', '8', '07', '7.0', 'Ann,Bob', "'7'", '7;42', '\u0667', 'x' * 300, '7 42', '+7')


@mutate.seeds(100)
def test_every_line_of_a_list_of_users_is_a_user(tmp_path, attempt, capsys, seed):
  rng = random.Random(seed)
  log = rng.choice((NUMBERS, NAMES))
  named = rng.choices([str(user) for user in log.users], k=rng.randint(0, 8))
  lines = [
    rng.choice((user, user, f' {user}\t' if user == user.strip() else user)) for user in named
  ]
  lines += [''] * rng.randint(0, 3)
  wrong = [name for name in NO_USERS if name not in set(log.users.cast(pl.String))]
  is_right = rng.random() < 0.6
  lines += [] if is_right else [rng.choice(wrong)]
  rng.shuffle(lines)
  content = rng.choice(('\n', '\r\n')).join(lines) + rng.choice(('', '\n'))
  encoding = rng.choice(('utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-32'))
  path, data = tmp_path / 'users.txt', content.encode(encoding)
  is_damaged = rng.random() < 0.3
  path.write_bytes(mutate.mutated(rng, data) if is_damaged else data)
  read = attempt(lambda: _read_users(log, path))
  if is_damaged:
    if read.refusal:
      return
    text = path.read_bytes().decode('utf-8-sig')
    named = [line.removesuffix('\r') for line in text.split('\n')]
    known = set(log.users.cast(pl.String))
    named = [line if line in known else line.strip() for line in named]
    named = [line for line in named if line]
  elif not is_right or not named or encoding in ('utf-16', 'utf-32'):
    assert (
      read.refusal
      and 'users.txt' in read.refusal
      and 'must' in read.refusal
      or 'nearest' in read.refusal
    )
    return
  found = [str(log.users[int(index)]) for index in read.value]
  assert len(found) == len(set(found)) and set(found) == set(named)
  again = len(named) - len(found)
  assert (f'{again} lines name a user again' in capsys.readouterr().err) == (again > 0)
