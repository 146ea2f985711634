"""An outside annotator that answers well and badly: what is kept, what is rejected and why, and what a run makes of it."""

import json

import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.data.files import DataError
from rolegen_jax.text import annotations
from rolegen_jax.text.items import ItemWords
from tests import tiny
from tests.text import catalogue

LAST = 4


@pytest.fixture(scope='module')
def table():
  return catalogue.log_and_examples()[2].evenly(6)


@pytest.fixture(scope='module')
def asked(table, tmp_path_factory):
  path = tmp_path_factory.mktemp('annotate') / 'prompts.jsonl'
  assert annotations.write_prompts(table, ItemWords.of(table.log.items), LAST, path) == 6
  return [json.loads(line) for line in path.read_text().splitlines()]


def answer(table, example: int, role: str = 'EXPLORE', why: str = 'because') -> list[dict]:
  rows = annotations._rows(table, example, LAST)
  told = lambda row: 'CONVERT' if table.log.event[row] == tiny.PURCHASE else role
  return [
    dict(event=number, role=told(row), rationale=f'{why} {number}')
    for number, row in enumerate(rows, 1)
  ]


def lines(rows) -> str:
  return '\n'.join(json.dumps(row) for row in rows)


def test_prompts_show_the_trajectory_the_purchase_and_the_roles(table, asked):
  words = ItemWords.of(table.log.items)
  for example, row in enumerate(asked):
    assert (
      all(f'{name}: ' in row['prompt'] for name in ROLE_NAMES)
      and '{"event": 1, "role": ' in row['prompt']
    )
    for number, at in enumerate(annotations._rows(table, example, LAST), 1):
      line = next(line for line in row['prompt'].splitlines() if line.startswith(f'{number}. '))
      assert f' {EVENT_NAMES[table.log.event[at]]}: {words.described(table.log.item[at])}' in line
    assert (
      f'bought: {words.described(table.target[example])}.' in row['prompt']
      and row['occasion'] == table.timestamp[example]
    )
  assert len({row['id'] for row in asked}) == 6


def test_good_answers_come_back_as_roles_and_sentences(table, asked, tmp_path):
  given = [
    dict(id=row['id'], answer=f'Sure!\n```json\n{lines(answer(table, example))}\n```')
    for example, row in enumerate(asked)
  ]
  annotations.write_lines(given, tmp_path / 'answers.jsonl')
  kept, rejected = annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  assert not rejected and len(kept) == sum(
    len(annotations._rows(table, example, LAST)) for example in range(6)
  )
  annotations.write_lines(kept, tmp_path / 'annotations.jsonl')
  found = annotations.read_annotations(table, tmp_path / 'annotations.jsonl')
  assert not found.rejected
  for example in range(6):
    rows = annotations._rows(table, example, LAST)
    expected = [ROLE_NAMES.index(told['role']) for told in answer(table, example)]
    assert found.roles[example].tolist() == [-1] * (LAST - len(rows)) + expected
    assert [found.said[example, row] for row in rows] == [
      f'because {number}' for number in range(1, 1 + len(rows))
    ]


def test_bad_answers_are_rejected_each_for_its_reason(table, asked, tmp_path):
  plain = next(
    example
    for example in range(6)
    if table.log.event[annotations._rows(table, example, LAST)[0]] != tiny.PURCHASE
  )
  good = answer(table, plain)
  bad = [
    dict(event=1, role='CONVERT', rationale='x'),
    dict(event=99, role='EXPLORE'),
    dict(event=1, role='HERO'),
    dict(event=1, role='EXPLORE', rationale=3),
    dict(event=1, role='EXPLORE', rationale='x' * 401),
    good[0],
    good[0],
  ]
  given = [
    dict(id=asked[plain]['id'], answer=lines(bad) + '\n{"event": 1,'),
    dict(id=asked[plain]['id'], answer=''),
    dict(id='nobody', answer=''),
    dict(id=asked[plain - 1]['id']),
  ]
  annotations.write_lines(given, tmp_path / 'answers.jsonl')
  kept, rejected = annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  assert [row['rationale'] for row in kept] == ['because 1']
  reasons = {r.reason for r in rejected}
  assert reasons >= {
    'CONVERT on what is no purchase',
    'no such event',
    'no such role',
    'rationale is no text',
    'rationale above 400 characters',
    'event told twice',
    'no JSON',
    'answered before',
    'no prompt of this id',
    'no answer',
    'not answered',
  }
  said = annotations.summary(rejected, len(kept))
  assert said.startswith(f'1 annotations kept, {len(rejected)} rejections') and all(
    reason in said for reason in reasons
  )


def test_annotations_of_one_conversion_or_of_all(table, tmp_path):
  example = next(
    example for example in range(6) if table.log.event[table.end[example] - 1] != tiny.PURCHASE
  )
  row = int(table.end[example]) - 1
  log = table.log
  said = dict(
    user=log.users[int(table.user[example])],
    timestamp=int(log.timestamp[row]),
    item=log.items['item_id'][int(log.item[row])],
  )
  path = tmp_path / 'annotations.jsonl'
  annotations.write_lines(
    [
      said | dict(role='EXPLORE'),
      said | dict(role='TRIGGER', occasion=int(table.timestamp[example])),
    ],
    path,
  )
  found = annotations.read_annotations(table, path)
  assert (
    found.roles[example, -1] == ROLE_NAMES.index('TRIGGER')
    and (found.roles[example, :-1] == -1).all()
    and not found.said
  )
  annotations.write_lines(
    [said | dict(role='EXPLORE'), said | dict(role='EXPLORE', occasion=1)], path
  )
  assert annotations.read_annotations(table, path).roles[example, -1] == ROLE_NAMES.index('EXPLORE')
  wrong = [
    said | dict(role='HERO'),
    said | dict(role='EXPLORE', user='x'),
    said | dict(role='EXPLORE', timestamp=5),
    dict(role='EXPLORE'),
  ]
  annotations.write_lines([*wrong, said | dict(role='EXPLORE')], path)
  assert [r.reason for r in annotations.read_annotations(table, path).rejected] == [
    'no such role',
    'no such user',
    'no such event',
    'field user',
  ]
  annotations.write_lines(wrong, path)
  with pytest.raises(
    DataError, match='no row fits an event of the log; the first: line 1, no such role'
  ):
    annotations.read_annotations(table, path)


def test_files_that_are_no_json_lines(table, tmp_path):
  (tmp_path / 'answers.jsonl').write_text('{"id": "a"}\nnot json\n')
  with pytest.raises(DataError, match='answers.jsonl, line 2: '):
    annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  with pytest.raises(DataError, match='cannot be read'):
    annotations.read_answers(table, LAST, tmp_path / 'nothing.jsonl')
