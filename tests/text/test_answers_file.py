"""The file of a server's answers: how it continues, what it refuses, and what becomes of it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.text import annotations
from rolegen_jax.text.endpoint import Endpoint, Prices, ask, estimate
from tests.text import asking
from tests.text.asking import LAST, N_EXAMPLES, ids, one_by_one, rows_of
from tests.text.chat_server import completion, serving

ASK = """
import json, signal, sys
from rolegen_jax.text.endpoint import Endpoint, ask
# Where the tests run in the background of a shell, Ctrl-C is ignored unless this is said.
signal.signal(signal.SIGINT, signal.default_int_handler)
url, prompts, answers = sys.argv[1:]
ask(Endpoint(url, 'm', concurrency=2), json.loads(prompts), answers)
"""


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT], ids=['killed', 'Ctrl-C'])
def test_a_run_that_was_stopped_asks_only_for_the_rest(prompts, good, answers, number):
  stopped = threading.Event()

  def reply(request):
    if len(server.requests) > 3:
      stopped.wait(30)
    return completion(good[request.prompt])

  with serving(reply) as server:
    arguments = [sys.executable, '-c', ASK, server.url, json.dumps(prompts), str(answers)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL) as process:
      while not (answers.exists() and len(answers.read_bytes().splitlines()) == 3):
        assert process.poll() is None
        time.sleep(0.02)
      process.send_signal(number)
      assert process.wait(10) == -number
    stopped.set()
    kept, asked = rows_of(answers), len(server.requests)
    report = ask(one_by_one(server), prompts, answers)
    assert 'asked now: 3 prompts' in report
    assert 'answered before: 3 prompts, 300 prompt tokens' in report
    again = [prompt['id'] for prompt in prompts if prompt['prompt'] in server.prompts[asked:]]
    assert sorted(again + ids(kept)) == sorted(ids(prompts))
    assert rows_of(answers)[:3] == kept and len(rows_of(answers)) == N_EXAMPLES
    ask(one_by_one(server), prompts, answers)
    assert len(server.requests) == asked + 3  # all is answered


def test_a_line_that_was_cut_off_is_asked_for_again(prompts, good, answers, capfd):
  with serving(lambda request: completion(good[request.prompt])) as server:
    ask(one_by_one(server), prompts[:3], answers)
    content = answers.read_bytes()
    last = len(content.splitlines(keepends=True)[-1])
    letter = content.rfind('\u00fc'.encode())  # two bytes
    assert letter > len(content) - last
    for end in (len(content) - last + 1, len(content) - last // 2, letter + 1, len(content) - 2):
      answers.write_bytes(content[:end])
      before = len(server.requests)
      ask(one_by_one(server), prompts[:3], answers)
      assert server.prompts[before:] == [prompts[2]['prompt']]
      assert answers.read_bytes() == content
      assert 'bytes of an unfinished answer at its end are dropped' in capfd.readouterr().err
    answers.write_bytes(content[:-1])  # whole, but for its line feed
    ask(one_by_one(server), prompts[:4], answers)
    assert ids(rows_of(answers)) == ids(prompts[:4])


def test_answers_to_something_else_are_refused_and_left_alone(prompts, good, answers):
  with serving(lambda request: completion(good[request.prompt])) as server:
    ask(one_by_one(server), prompts, answers)
    content, asked = answers.read_bytes(), len(server.requests)
    changed = [prompts[0] | dict(prompt='other words'), *prompts[1:]]
    others = [
      ('line 6: id .* is of no prompt of this run', prompts[:5], 'm'),
      ('line 1: answers another prompt of id ', changed, 'm'),
      ('line 1: is by --model=m, not n', prompts, 'n'),
    ]
    for (message, asked_for, model), call in itertools.product(others, (ask, estimate)):
      with pytest.raises(DataError, match=f'answers.jsonl, {message}.*must be a new file'):
        call(Endpoint(server.url, model), asked_for, answers)
    assert answers.read_bytes() == content
    for wrong in (json.dumps(prompts[0]), 'some notes', '{"id": 1}\nsome notes', 'x\n{"id": 1'):
      answers.write_text(wrong)
      with pytest.raises(DataError, match='answers.jsonl, line '):
        ask(one_by_one(server), prompts, answers)
      assert answers.read_text() == wrong
    assert len(server.requests) == asked


def test_what_a_batch_service_answered_is_not_asked_again(prompts, good, tmp_path, answers):
  body = completion(good[prompts[0]['prompt']])
  batch = [
    {'id': 'r1', 'custom_id': prompts[0]['id'], 'response': {'status_code': 200, 'body': body}},
    {'id': 'r2', 'custom_id': prompts[1]['id'], 'response': None, 'error': {'code': 'expired'}},
  ]
  answers.write_text('\n'.join(map(json.dumps, batch)))
  with serving(lambda request: completion(good[request.prompt])) as server:
    report = ask(one_by_one(server), prompts, answers)
  assert server.prompts == [prompt['prompt'] for prompt in prompts[1:]]
  assert '(of the 0 answers of which the server says it)' in report.splitlines()[1]
  summary = annotations.import_answers(
    asking.table(), LAST, answers, tmp_path / 'annotations.jsonl'
  )
  assert summary.splitlines()[1].split()[:4] == ['1', 'the', 'request', 'failed:']


def test_bad_answers_are_reported_by_reason(prompts, good, tmp_path, answers):
  bad = {
    '<think>I never finish {"event": 1, "role": "EXPLORE"}': ('stop', 'event without a valid'),
    '{"event": 1, "role"': ('length', 'not JSON'),
    '{"event": 1, "role": "HERO"}': ('stop', 'no such role'),
    '{"event": 0, "role": "EXPLORE"}': ('stop', 'numbered from 0'),
  }
  contents = {prompt['prompt']: text for prompt, text in zip(prompts, [None, *bad])}

  def reply(request):
    content = contents.get(request.prompt, good[request.prompt])
    return completion(content, bad.get(content, ('stop',))[0])

  with serving(reply) as server:
    report = ask(one_by_one(server), prompts, answers)
    output = tmp_path / 'annotations.jsonl'
    summary = annotations.import_answers(asking.table(), LAST, answers, output)
    rejected = rows_of(tmp_path / 'annotations.jsonl.rejected.jsonl')
    expected = ['no answer', *(reason for _, reason in bad.values())]
    for prompt, reason in zip(prompts, expected):
      reasons = [row['reason'] for row in rejected if row['where'] == prompt['id']]
      assert reasons[0].startswith(reason)
      assert reason in summary
    assert '1 answers reached the limit of tokens' in report
    assert len(rows_of(output)) == prompts[-1]['events']
    before = len(server.requests)
    ask(one_by_one(server), prompts, answers)
    assert server.prompts[before:] == [prompts[0]['prompt']]  # of which nothing came


def test_a_dry_run_asks_nothing(prompts, good, answers):
  n_bytes = sum(len(prompt['prompt'].encode()) for prompt in prompts)
  n_events = sum(prompt['events'] for prompt in prompts)
  with serving(lambda request: completion(good[request.prompt])) as server:
    first, sent, received, cost = estimate(
      one_by_one(server), prompts, answers, Prices(3, 0)
    ).splitlines()
    assert not server.requests and not list(answers.parent.iterdir())
    assert first == '6 prompts to ask, 0 answered before; nothing was sent'
    assert sent.startswith(f'about {n_bytes // 3} prompt tokens, estimated as one for each 3 bytes')
    assert 25 * n_events < int(received.split()[1]) < 60 * n_events
    assert cost == f'cost {n_bytes / 1e6:.4g} at 3 and 0 per million tokens'
    ask(one_by_one(server), prompts[:2], answers)
    content = answers.read_bytes()[:-5]
    answers.write_bytes(content)
    lines = estimate(one_by_one(server), prompts, answers).splitlines()
    assert lines[0].startswith('5 prompts to ask, 1 answered before') and len(lines) == 3
    assert len(server.requests) == 2 and answers.read_bytes() == content


def test_two_do_not_ask_for_one_file(prompts, good, answers):
  def reply(request):
    if len(server.requests) == 1:
      try:
        ask(one_by_one(server), prompts, answers)
      except ConfigError as error:
        refusals.append(str(error))
    return completion(good[request.prompt])

  refusals = []
  with serving(reply) as server:
    ask(one_by_one(server), prompts[:1], answers)
  assert refusals[0].startswith(f'--answers={answers}: is being written (process ')
  assert len(server.requests) == 1
