"""Answers in the wrappings of services, and what is said in them, however it is laid out."""

import json

import pytest

from rolegen_jax.text.responses import Response, events, unwrap

TEXT = '{"event": 1, "role": "EXPLORE", "rationale": "looks"}'


def openai_batch(content, status=200, error=None):
  body = {'id': 'chatcmpl-1', 'choices': [{'message': {'role': 'assistant', 'content': content}}]}
  response = {'status_code': status, 'request_id': 'r', 'body': body}
  return {'id': 'batch_req_1', 'custom_id': 'u@5/3', 'response': response, 'error': error}


def openai_responses(*output):
  response = {'status_code': 200, 'body': {'output': list(output), 'text': {'format': {}}}}
  return {'id': 'batch_req_1', 'custom_id': 'u@5/3', 'response': response, 'error': None}


def anthropic(content, kind='succeeded'):
  message = {'id': 'msg_1', 'role': 'assistant', 'content': content, 'stop_reason': 'end_turn'}
  return {'custom_id': 'u@5/3', 'result': {'type': kind, 'message': message}}


def gemini(*parts):
  candidate = {'content': {'role': 'model', 'parts': list(parts)}, 'finishReason': 'STOP'}
  return {'key': 'u@5/3', 'response': {'candidates': [candidate], 'usageMetadata': {}}}


WRAPPED = {
  'ours': {'id': 'u@5/3', 'answer': TEXT},
  'ours, another word': {'id': 'u@5/3', 'response': TEXT},
  'ours, a whole reply': {'id': 'u@5/3', 'answer': openai_batch(TEXT)['response']['body']},
  'OpenAI batch': openai_batch(TEXT),
  'OpenAI responses': openai_responses(
    {'type': 'reasoning', 'content': [{'type': 'reasoning_text', 'text': 'hm'}]},
    {'type': 'message', 'content': [{'type': 'output_text', 'text': TEXT}]},
  ),
  'Anthropic batch': anthropic(
    [{'type': 'thinking', 'thinking': '?'}, {'type': 'text', 'text': TEXT}]
  ),
  'Gemini batch': gemini({'text': 'hm', 'thought': True}, {'text': TEXT[:9]}, {'text': TEXT[9:]}),
}


@pytest.mark.parametrize('record', WRAPPED.values(), ids=WRAPPED)
def test_the_wrappings_of_services(record):
  assert unwrap(record) == Response('u@5/3', TEXT, '')


def test_failed_requests_say_why():
  failed = [
    openai_batch(None, error={'code': 'batch_expired', 'message': 'too late'}),
    openai_batch(None, status=429),
    anthropic([], 'expired'),
    {'custom_id': 'u@5/3', 'result': {'type': 'errored', 'error': {'message': 'overloaded'}}},
    {'key': 'u@5/3', 'error': {'code': 8, 'message': 'quota'}},
  ]
  for record, word in zip(failed, ['too late', '429', 'expired', 'overloaded', 'quota']):
    response = unwrap(record)
    assert response.id == 'u@5/3' and response.text is None and word in response.failure


@pytest.mark.parametrize(
  'record',
  [
    {'id': 'a', 'answer': None},
    {'id': 'a', 'prompt': 'x'},
    {'id': 'a', 'answer': 3},
    {'id': 'a', 'response': {'body': {'choices': []}}},
    {
      'id': 'a',
      'response': {'body': {'choices': [{'message': {'content': None, 'refusal': 'no'}}]}},
    },
  ],
)
def test_no_answer(record):
  assert unwrap(record) == Response('a', None, '')


def test_answers_that_are_json_rather_than_text():
  rows = [{'event': 1, 'role': 'EXPLORE'}]
  assert list(events(unwrap({'id': 5, 'answer': rows}).text)) == [(json.dumps(rows[0]), rows[0])]
  assert unwrap({'answer': TEXT}).id == ''


ONE = {'event': 1, 'role': 'ANCHOR', 'rationale': 'a {b}, ]'}
TWO = {'event': 2, 'role': 'EXPLORE', 'rationale': 'c'}
LAID_OUT = {
  'lines': f'{json.dumps(ONE)}\n{json.dumps(TWO)}',
  'lines in a fence': f'Sure!\n```json\n{json.dumps(ONE)}\n{json.dumps(TWO)}\n```\nDone.',
  'array': json.dumps([ONE, TWO]),
  'indented array in a fence': f'```\n{json.dumps([ONE, TWO], indent=2)}\n```',
  'array that was cut off': json.dumps([ONE, TWO])[:-1] + ', ',
  'commas': f'{json.dumps(ONE)},\n{json.dumps(TWO)},',
  'trailing commas': json.dumps([ONE, TWO], indent=1).replace('\n }', ',\n }'),
  'in an object': json.dumps({'events': [ONE, TWO]}),
  'numbered': f'1. {json.dumps(ONE)}\n2. {json.dumps(TWO)}',
  'one line': json.dumps(ONE) + json.dumps(TWO),
  'after a draft': f'<think>{json.dumps(ONE | dict(role="x"))}</think>\n{json.dumps([ONE, TWO])}',
  'after a draft that the prompt opened': f'{json.dumps(TWO)}</think>\n{json.dumps([ONE, TWO])}',
  'after a draft in a draft': f'<think>a <think>b</think>{{c}}</think>{json.dumps([ONE, TWO])}',
  'between drafts': f'<think>{{</think>{json.dumps(ONE)}<think>{{</think>{json.dumps(TWO)}',
  'after a draft, in a fence': f'hm {{}}</THINK>Sure:\n```json\n{json.dumps([ONE, TWO])}\n```\nOk?',
}


@pytest.mark.parametrize('answer', LAID_OUT.values(), ids=LAID_OUT)
def test_objects_of_an_answer(answer):
  assert [fields for _, fields in events(answer)] == [ONE, TWO]


@pytest.mark.parametrize(
  'answer',
  [
    '{"1": "ANCHOR", "event 2": "EXPLORE"}',
    '{"1": {"role": "ANCHOR"}, "2": {"Role": "EXPLORE"}}',
    '1. ANCHOR\n2. EXPLORE\n',
  ],
)
def test_numbers_as_keys(answer):
  said = [(fields['event'], fields['role']) for _, fields in events(answer)]
  assert said == [('1', 'ANCHOR'), ('2', 'EXPLORE')]


def test_a_sign_is_part_of_a_number_that_is_a_key():
  answer = '{"-1": {"role": "ANCHOR"}, "event-2": {"role": "EXPLORE"}}'
  assert [fields['event'] for _, fields in events(answer) if fields['role']] == ['2']


@pytest.mark.parametrize(
  'answer',
  [
    '1. Anchor: first look\n2. Explore: leads (to) nothing',
    'The roles:\n'
    '- **Event 1**: **ANCHOR** - first look\n'
    '- **Event 2**: **EXPLORE** \u2013 leads (to) nothing',
    '| # | role | why |\n|---|---|---|\n'
    '| 1 | ANCHOR | first look |\n'
    '| 2 | EXPLORE | leads (to) nothing |',
    '1) `ANCHOR`, first look\r\n2) `EXPLORE`, leads (to) nothing\r\n',
  ],
)
def test_lists(answer):
  said = [tuple(fields.values()) for _, fields in events(answer)]
  assert [(number, role.upper()) for number, role, _ in said] == [('1', 'ANCHOR'), ('2', 'EXPLORE')]
  assert [rationale for _, _, rationale in said] == ['first look', 'leads (to) nothing']


@pytest.mark.parametrize('opening', ['<think>\n', ''])
def test_lists_of_a_draft_are_no_answer(opening):
  answer = f'{opening}1. TRIGGER: maybe\n</think>\n1. EXPLORE: looks'
  assert [fields['role'] for _, fields in events(answer)] == ['EXPLORE']


@pytest.mark.parametrize('draft', ['1. TRIGGER: maybe', json.dumps(ONE)])
def test_a_draft_that_was_cut_off_has_no_answer(draft):
  assert not list(events(f'<think>\n{draft}\n'))


def test_prose_is_no_list():
  assert not list(events('1. Compare this with the lamp\n2. It was bought on day 3: EXPLORE it'))


def test_objects_that_are_damaged_or_speak_of_no_event_are_given_back():
  answer = f'{json.dumps(ONE)}\n{{"event": 2, "role"\n{{"role": "ANCHOR"}}'
  assert list(events(answer)) == [
    (json.dumps(ONE), ONE),
    ('{"event": 2, "role"', None),
    ('{"role": "ANCHOR"}', {'role': 'ANCHOR'}),
  ]
