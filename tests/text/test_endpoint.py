"""Asking a server for answers: a real one, which answers well, late, badly, or not at all."""

import itertools
import json
import threading
import time

import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.text import annotations, endpoint
from rolegen_jax.text.endpoint import Endpoint, Prices, ask
from tests.text import asking
from tests.text.asking import LAST, N_EXAMPLES, ids, one_by_one, rows_of
from tests.text.chat_server import completion, serving

KEY = 'sk-Zu93-not_to_be.seen'


SHAPES = (
  'ANSWER',
  '<think>\n{"event": 1, "role": "ANCHOR"}\n</think>\nANSWER',
  'draft: {"event": 1, "role": "ANCHOR"}</think>ANSWER',
  'Sure!\n```json\nANSWER\n```\nAnything else?',
)


def test_answers_in_every_shape_become_annotations(prompts, good, tmp_path, answers):
  def reply(request):
    return completion(next(shapes).replace('ANSWER', good[request.prompt]))

  shapes, parameters = itertools.cycle(SHAPES), {'temperature': 0}
  with serving(reply) as server:
    report = ask(one_by_one(server, parameters=parameters), prompts, answers, Prices(2.5, 10))
  assert sorted(server.prompts) == sorted(good)
  for request in server.requests:
    assert request.path == '/v1/chat/completions'
    assert (request.body['model'], request.body['temperature']) == ('m', 0)
    assert len(request.body['messages']) == 1 and request.body['messages'][0]['role'] == 'user'
  first, second = report.splitlines()
  assert first.startswith('asked now: 6 prompts in ')
  assert '600 prompt tokens, 60 completion tokens, cost 0.0021 at 2.5 and 10 per million' in first
  assert second.startswith('answered before: 0 prompts, 0 prompt tokens')
  assert set(rows_of(answers)[0]) > {'id', 'answer', 'prompt_tokens', 'completion_tokens'}
  summary = annotations.import_answers(
    asking.table(), LAST, answers, tmp_path / 'annotations.jsonl'
  )
  n_events = sum(prompt['events'] for prompt in prompts)
  assert n_events > N_EXAMPLES and summary == f'{n_events} annotations kept, 0 rejections'
  written = annotations.read_annotations(asking.table(), tmp_path / 'annotations.jsonl')
  assert written.kept == n_events and not written.rejected


def test_as_many_requests_as_asked_for_are_under_way(prompts, good, answers):
  def reply(request):
    three.wait()
    time.sleep(0.05)
    return completion(good[request.prompt])

  three = threading.Barrier(3, timeout=10)
  with serving(reply) as server:
    ask(one_by_one(server, concurrency=3), prompts, answers)
  assert server.most_under_way == 3
  assert sorted(ids(rows_of(answers))) == sorted(ids(prompts))


def test_a_busy_server_is_asked_again_when_it_says(prompts, good, answers):
  def reply(request):
    if len(server.requests) == 1:
      return 429, {'Retry-After': 0.8}, {'error': {'message': 'slow down'}}
    return completion(good[request.prompt])

  with serving(reply) as server:
    ask(one_by_one(server), prompts[:2], answers)
  first, second, third = server.requests
  assert first.prompt == second.prompt != third.prompt
  assert second.at_s - first.at_s > 0.8  # back-off alone would be half a second at most
  assert ids(rows_of(answers)) == ids(prompts[:2])


def too_late(request):
  time.sleep(1.0)
  return completion('too late')


def down(request):
  return 500, {}, {'error': {'message': 'out of memory'}}


@pytest.mark.parametrize(
  'reply, said', [(down, 'out of memory'), (too_late, 'timed out')], ids=['500', 'timeout']
)
def test_a_server_that_goes_on_failing_is_given_up(prompts, good, answers, reply, said):
  broken = prompts[2]['prompt']
  with serving(lambda r: reply(r) if r.prompt == broken else completion(good[r.prompt])) as server:
    with pytest.raises(ConfigError) as error:
      ask(one_by_one(server, timeout_s=0.7), prompts, answers)
  message = str(error.value)
  assert f'--endpoint={server.url} --model=m, prompt {prompts[2]["id"]}: given up' in message
  assert said in message and 'the same command asks for the rest' in message
  assert '\n' not in message
  assert server.prompts == [prompt['prompt'] for prompt in prompts[:3]] + [broken]
  assert ids(rows_of(answers)) == ids(prompts[:2])


def test_failures_that_pass_are_survived(prompts, good, answers):
  failures = iter([down, too_late, lambda request: (503, {}, 'starting')])

  def reply(request):
    failure = next(failures, None)
    return failure(request) if failure else completion(good[request.prompt])

  with serving(reply) as server:
    ask(one_by_one(server, concurrency=3, retries=2, timeout_s=0.7), prompts, answers)
  assert len(server.requests) == N_EXAMPLES + 3
  assert sorted(ids(rows_of(answers))) == sorted(ids(prompts))


def test_a_server_that_is_not_there_is_named(prompts, answers):
  with serving(None) as server:
    pass
  with pytest.raises(ConfigError, match=f'--endpoint={server.url} .*Connection error'):
    ask(one_by_one(server, retries=0), prompts, answers)


@pytest.mark.parametrize(
  'status, right',
  [
    (401, r'variable OPENAI_API_KEY \(it is not set\) must hold a key of the server'),
    (404, r'--endpoint must be the URL up to /chat/completions.* --model one that .*/v1/models'),
  ],
)
def test_what_no_retry_can_mend_stops_at_once(prompts, good, answers, status, right, monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)

  def reply(request):
    if request.prompt in known:
      return completion(good[request.prompt])
    return status, {}, {'error': {'message': f'reason {status}'}}

  known = [prompt['prompt'] for prompt in prompts[:2]]
  message = f'--model=m, prompt .*: .*reason {status}.*; .*{right}'
  with serving(reply) as server:
    with pytest.raises(ConfigError, match=message):
      ask(one_by_one(server, retries=8), prompts, answers)
    assert len(server.requests) == 3 and ids(rows_of(answers)) == ids(prompts[:2])
    known.clear()
    with pytest.raises(ConfigError, match=message):
      ask(one_by_one(server, concurrency=2), prompts, answers)
    assert len(server.requests) <= 5 and ids(rows_of(answers)) == ids(prompts[:2])


def test_a_prompt_that_is_refused_holds_up_no_other(prompts, good, answers, capfd):
  long = {prompt['prompt'] for prompt in prompts[1:3]}

  def reply(request):
    if request.prompt in long:
      return 400, {}, {'error': {'message': 'too long'}}
    return completion(good[request.prompt])

  with serving(reply) as server:
    ask(one_by_one(server), prompts, answers)
    assert len(server.requests) == len(prompts)
    assert ids(rows_of(answers)) == [p['id'] for p in prompts if p['prompt'] not in long]
    said = capfd.readouterr().err
    assert '2 prompts were refused' in said and f'prompt {prompts[1]["id"]}' in said
    ask(one_by_one(server), prompts, answers)
    assert server.prompts[len(prompts) :] == [prompt['prompt'] for prompt in prompts[1:3]]


@pytest.mark.parametrize('concurrency', [2, 50])
def test_where_all_prompts_are_refused_the_settings_are_wrong(prompts, answers, concurrency):
  with serving(lambda request: (400, {}, {'error': {'message': 'no such field'}})) as server:
    with pytest.raises(ConfigError, match='no such field.*--parameters must be fields that'):
      ask(one_by_one(server, concurrency=concurrency), prompts, answers)
    assert len(server.requests) < 2 * concurrency and not answers.read_bytes()


@pytest.mark.parametrize('body', ['<html>Hello</html>', {'error': 'busy'}, {'choices': []}, [1]])
def test_a_reply_of_another_format_is_told(prompts, answers, body):
  with serving(lambda request: body) as server:
    with pytest.raises(ConfigError, match='no chat completion: .*chat-completions format'):
      ask(one_by_one(server), prompts, answers)
  assert len(server.requests) == 1 and not answers.read_bytes()


def test_the_key_goes_into_the_header_and_nowhere_else(
  prompts, good, answers, monkeypatch, capfd, caplog
):
  def reply(request):
    if len(server.requests) == 1:
      return completion(good[request.prompt])
    return 401, {}, {'error': {'message': f'wrong: {request.headers["Authorization"]}'}}

  monkeypatch.setenv('OPENAI_API_KEY', 'another')
  monkeypatch.setenv('MY_KEY', KEY + '\n')
  caplog.set_level('DEBUG')
  with serving(reply) as server:
    asked = one_by_one(server, key_variable='MY_KEY')
    with pytest.raises(ConfigError, match=r'wrong: Bearer \*\*\*.*MY_KEY must hold') as error:
      ask(asked, prompts, answers)
  assert [request.headers['Authorization'] for request in server.requests] == [f'Bearer {KEY}'] * 2
  assert not any(KEY in json.dumps(request.body) for request in server.requests)
  printed = capfd.readouterr()
  files = [path for path in answers.parent.rglob('*') if path.is_file()]
  texts = [path.read_text(encoding='utf-8') for path in files]
  texts += [str(error.value), repr(error.value.__cause__), repr(asked), caplog.text, *printed]
  assert answers in files and caplog.text and not any(KEY in text for text in texts)


def test_a_server_without_a_key_is_asked_without_one(prompts, good, answers, monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  with serving(lambda request: completion(good[request.prompt], usage=None)) as server:
    report = ask(one_by_one(server), prompts[:1], answers)
  assert len(rows_of(answers)) == 1 and rows_of(answers)[0]['prompt_tokens'] is None
  assert '(of the 0 answers of which the server says it)' in report.splitlines()[0]


WRONG = 'localhost:8000/v1,ftp://h/v1,http://,http://h:x/v1,http://h/v1?key=1,http://[::1/v1'


@pytest.mark.parametrize(
  'url', [*WRONG.split(','), 'http://a b/v1', 'http://h/v1/chat/completions']
)
def test_urls_that_are_none_of_a_server_are_refused(url):
  with pytest.raises(ConfigError, match=r'--endpoint=.*: must be http\(s\)://HOST'):
    Endpoint(url, 'm').validated()


def test_wrong_settings_name_their_flag_and_no_secret(monkeypatch):
  with pytest.raises(ConfigError, match=r'--endpoint: holds a password') as error:
    Endpoint(f'https://me:{KEY}@h/v1', 'm').validated()
  assert KEY not in str(error.value)
  with pytest.raises(ConfigError, match='--model= : must be the name'):
    Endpoint('http://h/v1', ' ').validated()
  with pytest.raises(ConfigError, match='--parameters: holds stream; must be fields but model'):
    Endpoint('http://h/v1', 'm', parameters={'stream': True}).validated()
  monkeypatch.setenv('OPENAI_API_KEY', f'{KEY}\u00fc')
  with pytest.raises(ConfigError, match=r'\$OPENAI_API_KEY: .*must be the key alone') as error:
    Endpoint('http://h/v1', 'm').validated()
  assert KEY not in str(error.value)


def test_a_client_that_is_not_installed_is_named(monkeypatch):
  endpoint.require_package()
  monkeypatch.setattr(endpoint, 'PACKAGE', 'a_package_that_nobody_has')
  with pytest.raises(ConfigError, match='needs the package .*-r requirements-annotate.txt$'):
    endpoint.require_package()
