"""An outside annotator that answers well and badly: what is kept, and what is rejected and why."""

import contextlib
import json

import numpy as np
import pytest

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES, ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.text import annotations
from rolegen_jax.text.items import ItemWords
from rolegen_jax.text.records import read_records
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


def test_an_answer_that_numbers_events_from_zero_labels_none(table, prompts, tmp_path):
  """It would label every event as the one before it."""
  lines = [dict(event=number, role='EXPLORE') for number in range(LAST)]
  whole = [dict(id=prompts[1]['id'], answer=json_lines(good_answer(table, 1)))]
  annotations.write_lines(
    [dict(id=prompts[0]['id'], answer=json_lines(lines)), *whole], tmp_path / 'answers.jsonl'
  )
  kept, rejected = annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  assert len(kept) == len(good_answer(table, 1))
  assert [row.reason for row in rejected if row.where == prompts[0]['id']][0] == 'numbered from 0'


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
  message = 'nothing in it can be used; most often .1 of 4.: no such role: line 1: '
  with pytest.raises(DataError, match=message):
    annotations.read_annotations(table, path)


def test_annotations_come_in_other_layouts_too(table, event, tmp_path):
  """Ids as text, a role in small letters, an array, a byte-order mark, a sentence with a break."""
  example, fields = event
  path = tmp_path / 'annotations.jsonl'
  as_text = dict(user=str(fields['user']), item=str(fields['item']), role='explore')
  said = 'because\u2028of \x00 this \ud83d'
  row = fields | as_text | dict(rationale=said)
  path.write_text(f'\ufeff[{json.dumps(row)}\r\n]\r\n', encoding='utf-8')
  result = annotations.read_annotations(table, path)
  assert result.roles[example, -1] == ROLE_NAMES.index('EXPLORE') and result.kept == 1
  assert result.said[example, int(table.end[example]) - 1] == 'because of   this \ufffd'


def test_every_line_of_an_annotations_file_is_used_or_reported(table, event, tmp_path):
  _, fields = event
  path, good = tmp_path / 'annotations.jsonl', fields | dict(role='EXPLORE')
  lines = {
    'replaced by a later line': good,
    'not of the latest events of a conversion that the run learns from': good | dict(occasion=1),
    'field occasion': good | dict(occasion='soon'),
    'field user': good | dict(user=True),
    'field timestamp': good | dict(timestamp=1.5),
  }
  annotations.write_lines([*lines.values(), good], path)
  result = annotations.read_annotations(table, path)
  assert {rejection.reason for rejection in result.rejected} == set(lines)
  assert (result.kept, len(result.rejected)) == (1, len(lines))


def test_annotations_of_other_conversions_are_an_error(table, event, tmp_path):
  _, fields = event
  path = tmp_path / 'annotations.jsonl'
  annotations.write_lines([fields | dict(role='EXPLORE', occasion=1)], path)
  with pytest.raises(DataError, match='nothing in it can be used.*not of the latest events of a'):
    annotations.read_annotations(table, path)
  path.write_text('\ufeff\n')
  with pytest.raises(DataError, match='annotations.jsonl: holds no JSON object; each must be'):
    annotations.read_annotations(table, path)


def batch_row(prompt: dict, content: str) -> dict:
  body = {'choices': [{'message': {'content': content}}]}
  response = {'status_code': 200, 'body': body}
  return {'id': 'batch_req_1', 'custom_id': prompt['id'], 'response': response, 'error': None}


def test_answers_of_a_service_become_the_same_annotations(table, prompts, tmp_path):
  """As a batch, in a fence, with separators of lines in them, raw and escaped."""
  path = tmp_path / 'answers.jsonl'
  texts = [json_lines(good_answer(table, example)) for example in range(N_EXAMPLES)]
  ours = [dict(id=prompt['id'], answer=text) for prompt, text in zip(prompts, texts)]
  batch = [batch_row(prompt, text) for prompt, text in zip(prompts, texts)]
  broken = [text.replace('because', 'be\u2028ca\x85use') for text in texts]
  files = {
    'ours': json_lines(ours),
    'array in a fence': f'Here:\n```json\n{json.dumps(ours, indent=2)}\n```\nDone.',
    'batch': json_lines(batch),
  }
  for name, content in files.items():
    path.write_text(content, encoding='utf-8')
    kept, rejected = annotations.read_answers(table, LAST, path)
    assert not rejected and len(kept) == sum(text.count('event') for text in texts), name
  rows = [dict(id=prompt['id'], answer=text) for prompt, text in zip(prompts, broken)]
  for escape in (False, True):
    path.write_text('\n'.join(json.dumps(row, ensure_ascii=escape) for row in rows), 'utf-8')
    again, rejected = annotations.read_answers(table, LAST, path)
    assert not rejected
    assert [row['rationale'].replace('be ca use', 'because') for row in again] == [
      row['rationale'] for row in kept
    ]


def test_answers_of_which_nothing_can_be_used_are_an_error(table, prompts, tmp_path):
  path, output = tmp_path / 'answers.jsonl', tmp_path / 'annotations.jsonl'
  failed = batch_row(prompts[1], '') | {'error': {'message': 'quota'}}
  rows = [dict(id=f'other {i}', answer='') for i in range(3)] + [failed, dict(answer='x')]
  annotations.write_lines(rows, path)
  message = (
    r'answers.jsonl: nothing in it can be used; most often \(3 of 5\): no prompt of this id: '
    r'line 1: other 0; each object must be \{id, answer\} to a prompt of this run'
  )
  with pytest.raises(DataError, match=message):
    annotations.import_answers(table, LAST, path, output)
  assert not output.exists()
  rejected = [json.loads(line) for line in open(f'{output}.rejected.jsonl', encoding='utf-8')]
  reasons = ['no prompt of this id'] * 3 + ['the request failed', 'no id']
  assert [row['reason'] for row in rejected] == reasons + ['not answered'] * N_EXAMPLES
  assert 'quota' in rejected[3]['content']
  path.write_text('')
  with pytest.raises(DataError, match='holds no JSON object'):
    annotations.import_answers(table, LAST, path, output)


def test_answers_are_never_replaced(table, prompts, tmp_path):
  path = tmp_path / 'a.jsonl.rejected.jsonl'
  annotations.write_lines([dict(id=prompts[0]['id'], answer='')], path)
  before = path.read_bytes()
  for output in (path, tmp_path / 'a.jsonl'):
    with pytest.raises(ConfigError, match='would replace --answers=.*; must be another'):
      annotations.import_answers(table, LAST, path, output)
  assert path.read_bytes() == before


def test_times_of_any_year_are_written():
  assert annotations._format_time(1_704_070_590) == '2024-01-01 00:56'
  assert annotations._format_time(2**40) == '36812-02-20 00:36'


def test_imported_answers_are_written_beside_what_was_rejected(table, prompts, tmp_path):
  path, output = tmp_path / 'answers.jsonl', tmp_path / 'annotations.jsonl'
  text = json_lines(good_answer(table, 0)).replace('because', '\ud83d\u2028')
  annotations.write_lines([dict(id=prompts[0]['id'], answer=text)], path)
  summary = annotations.import_answers(table, LAST, path, output)
  n_events = len(annotations._event_rows(table, 0, LAST))
  assert summary.startswith(f'{n_events} annotations kept, {N_EXAMPLES - 1} rejections\n')
  assert annotations.read_annotations(table, output).kept == n_events
  assert len(open(f'{output}.rejected.jsonl', encoding='utf-8').readlines()) == N_EXAMPLES - 1


def test_files_that_are_not_json_lines_are_refused(table, tmp_path):
  (tmp_path / 'answers.jsonl').write_text('{"id": "a"}\nnot json\n')
  with pytest.raises(DataError, match='answers.jsonl, line 2: '):
    annotations.read_answers(table, LAST, tmp_path / 'answers.jsonl')
  with pytest.raises(DataError, match='cannot be read'):
    annotations.read_answers(table, LAST, tmp_path / 'nothing.jsonl')


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
  """The file after one to four accidents: bytes lost, changed, doubled, or odd ones inserted."""
  odd = [b'\xef\xbb\xbf', b'\xe2\x80\xa8', b'\x00', b'\xff', b'\\ud800', b'```', b'{', b'[', b'"']
  odd += [b'\r\n', b'\x0c', b',', b'9' * 5000, b'{"a":' * 3000, b'null', b'true', b'1e999']
  for _ in range(rng.integers(1, 5)):
    begin, end = np.sort(rng.integers(0, len(content) + 1, 2))
    end = min(int(end), begin + int(rng.choice([1, 9, 10**6])))
    replacement = [odd[rng.integers(len(odd))], b'', 2 * content[begin:end]][rng.integers(3)]
    content = content[:begin] + replacement + content[end:]
  return content


@pytest.mark.parametrize('count', [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_happens_to_a_file_all_of_it_is_used_reported_or_refused(
  table, prompts, tmp_path, count
):
  rng = np.random.default_rng(count)
  texts = [json_lines(good_answer(table, example)) for example in range(N_EXAMPLES)]
  rows = [dict(id=prompt['id'], answer=text) for prompt, text in zip(prompts, texts)]
  batch = [batch_row(prompt, text) for prompt, text in zip(prompts, texts)]
  path = tmp_path / 'mutated.jsonl'
  annotations.write_lines(rows, path)
  annotations.write_lines(annotations.read_answers(table, LAST, path)[0], path)
  labels = path.read_bytes()
  files = [
    json_lines(rows).encode(),
    json_lines(batch).encode(),
    json.dumps(rows, indent=1).encode(),
  ]
  for _ in range(count):
    path.write_bytes(mutated(files[rng.integers(len(files))], rng))
    with contextlib.suppress(DataError):
      kept, rejected = annotations.read_answers(table, LAST, path)
      seen = {(row['user'], row['occasion']) for row in kept} | {r.where for r in rejected}
      assert len(seen) >= N_EXAMPLES
      annotations.summary(rejected, len(kept)).encode()
      annotations.write_lines((r._asdict() for r in rejected), tmp_path / 'rejected.jsonl')
    path.write_bytes(mutated(labels, rng))
    with contextlib.suppress(DataError):
      result = annotations.read_annotations(table, path)
      assert result.kept + len(result.rejected) == len(read_records(path)) and result.kept
