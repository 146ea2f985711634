"""An outside annotator that answers well and badly: what is kept, and what is rejected and why."""

import json

import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.files import DataError
from rolegen_jax.text import annotations
from rolegen_jax.text.items import ItemWords
from tests import tiny
from tests.text import catalogue

LAST = 4  # events that a prompt shows
N_EXAMPLES = 6


@pytest.fixture(scope='module')
def table():
  return catalogue.log_and_examples()[2].evenly(N_EXAMPLES)


@pytest.fixture(scope='module')
def prompts(table, tmp_path_factory):
  path = tmp_path_factory.mktemp('annotate') / 'prompts.jsonl'
  words = ItemWords.of(table.log.items)
  assert annotations.write_prompts(table, words, LAST, path) == N_EXAMPLES
  return [json.loads(line) for line in path.read_text().splitlines()]


def good_answer(table, example: int) -> list[dict]:
  """A valid line for every event."""
  rows = annotations._event_rows(table, example, LAST)
  return [
    dict(
      event=number,
      role='CONVERT' if table.log.event[row] == tiny.PURCHASE else 'EXPLORE',
      rationale=f'because {number}',
    )
    for number, row in enumerate(rows, 1)
  ]


def json_lines(rows) -> str:
  return '\n'.join(json.dumps(row) for row in rows)


def test_prompts_show_the_trajectory_the_purchase_and_the_roles(table, prompts):
  words = ItemWords.of(table.log.items)
  for example, row in enumerate(prompts):
    text = row['prompt']
    assert all(f'{name}: ' in text for name in ROLE_NAMES)
    assert '{"event": 1, "role": ' in text
    event_rows = annotations._event_rows(table, example, LAST)
    for number, event_row in enumerate(event_rows, 1):
      line = next(line for line in text.splitlines() if line.startswith(f'{number}. '))
      event = EVENT_NAMES[table.log.event[event_row]]
      assert f' {event}: {words.described(table.log.item[event_row])}' in line
    assert f'bought: {words.described(table.target[example])}.' in text
    assert row['occasion'] == table.timestamp[example]
  assert len({row['id'] for row in prompts}) == N_EXAMPLES


def test_good_answers_become_roles_and_rationales(table, prompts, tmp_path):
  answers = [
    dict(id=row['id'], answer=f'Sure!\n```json\n{json_lines(good_answer(table, example))}\n```')
    for example, row in enumerate(prompts)
  ]
  annotations.write_lines(answers, tmp_path / 'answers.jsonl')
  kept, rejected = annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  rows_of = [annotations._event_rows(table, example, LAST) for example in range(N_EXAMPLES)]
  assert not rejected and len(kept) == sum(map(len, rows_of))
  annotations.write_lines(kept, tmp_path / 'annotations.jsonl')
  result = annotations.read_annotations(table, tmp_path / 'annotations.jsonl')
  assert not result.rejected
  for example, rows in enumerate(rows_of):
    roles = [ROLE_NAMES.index(line['role']) for line in good_answer(table, example)]
    assert result.roles[example].tolist() == [-1] * (LAST - len(rows)) + roles
    rationales = [f'because {number}' for number in range(1, 1 + len(rows))]
    assert [result.said[example, row] for row in rows] == rationales


def test_bad_answers_are_rejected_each_for_its_reason(table, prompts, tmp_path):
  example = next(
    example
    for example in range(N_EXAMPLES)
    if table.log.event[annotations._event_rows(table, example, LAST)[0]] != tiny.PURCHASE
  )
  good_line = good_answer(table, example)[0]
  lines = [
    dict(event=1, role='CONVERT', rationale='x'),
    dict(event=99, role='EXPLORE'),
    dict(event=1, role='HERO'),
    dict(event=1, role='EXPLORE', rationale=3),
    dict(event=1, role='EXPLORE', rationale='x' * 401),
    good_line,
    good_line,
  ]
  answers = [
    dict(id=prompts[example]['id'], answer=json_lines(lines) + '\n{"event": 1,'),
    dict(id=prompts[example]['id'], answer=''),
    dict(id='nobody', answer=''),
    dict(id=prompts[example - 1]['id']),
  ]
  annotations.write_lines(answers, tmp_path / 'answers.jsonl')
  kept, rejected = annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  assert [row['rationale'] for row in kept] == ['because 1']
  reasons = {rejection.reason for rejection in rejected}
  assert reasons >= {
    'CONVERT on an event that is not a purchase',
    'no such event',
    'no such role',
    'rationale is not text',
    'rationale above 400 characters',
    'event annotated before',
    'not JSON',
    'answered before',
    'no prompt of this id',
    'no answer',
    'not answered',
  }
  summary = annotations.summary(rejected, len(kept))
  assert summary.startswith(f'1 annotations kept, {len(rejected)} rejections')
  assert all(reason in summary for reason in reasons)


@pytest.fixture
def event(table):
  """(example, the fields that name its last event, which is no purchase)."""
  log = table.log
  example = next(
    example for example in range(N_EXAMPLES) if log.event[table.end[example] - 1] != tiny.PURCHASE
  )
  row = int(table.end[example]) - 1
  return example, dict(
    user=log.users[int(table.user[example])],
    timestamp=int(log.timestamp[row]),
    item=log.items['item_id'][int(log.item[row])],
  )


def test_annotations_hold_for_one_conversion_or_for_all(table, event, tmp_path):
  example, fields = event
  path = tmp_path / 'annotations.jsonl'
  of_this = dict(role='TRIGGER', occasion=int(table.timestamp[example]))
  annotations.write_lines([fields | dict(role='EXPLORE'), fields | of_this], path)
  result = annotations.read_annotations(table, path)
  assert result.roles[example, -1] == ROLE_NAMES.index('TRIGGER')
  assert (result.roles[example, :-1] == -1).all() and not result.said

  of_another = dict(role='EXPLORE', occasion=1)
  annotations.write_lines([fields | dict(role='EXPLORE'), fields | of_another], path)
  result = annotations.read_annotations(table, path)
  assert result.roles[example, -1] == ROLE_NAMES.index('EXPLORE')


def test_annotations_that_match_nothing_are_rejected(table, event, tmp_path):
  _, fields = event
  path = tmp_path / 'annotations.jsonl'
  wrong = [
    fields | dict(role='HERO'),
    fields | dict(role='EXPLORE', user='x'),
    fields | dict(role='EXPLORE', timestamp=5),
    dict(role='EXPLORE'),
  ]
  annotations.write_lines([*wrong, fields | dict(role='EXPLORE')], path)
  rejected = annotations.read_annotations(table, path).rejected
  reasons = ['no such role', 'no such user', 'no such event', 'field user']
  assert [rejection.reason for rejection in rejected] == reasons
  annotations.write_lines(wrong, path)
  message = 'no row matches an event of the log; the first: line 1, no such role'
  with pytest.raises(DataError, match=message):
    annotations.read_annotations(table, path)


def test_files_that_are_not_json_lines_are_refused(table, tmp_path):
  (tmp_path / 'answers.jsonl').write_text('{"id": "a"}\nnot json\n')
  with pytest.raises(DataError, match='answers.jsonl, line 2: '):
    annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  with pytest.raises(DataError, match='cannot be read'):
    annotations.read_answers(table, LAST, tmp_path / 'nothing.jsonl')
