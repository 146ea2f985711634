"""Answers of an outside LLM that are kept in a bucket."""

import json
import pathlib
import re
import shutil
import time

import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import storage
from rolegen_jax.text import annotations, answers_file
from rolegen_jax.text.endpoint import ask
from tests.text import asking
from tests.text.chat_server import completion, serving


def test_answers_are_put_into_the_bucket_while_others_are_waited_for(s3_url, monkeypatch):
  prompts, good, answers = asking.prompts(), asking.good_answers(), f'{s3_url}/answers.jsonl'
  monkeypatch.setattr(answers_file, 'SEND_EVERY_S', 0.1)
  last, seen = prompts[-1]['prompt'], []

  def reply(request):
    deadline = time.monotonic() + 30
    while request.prompt == last and not seen and time.monotonic() < deadline:
      if storage.path(answers).exists():
        text = storage.path(answers).read_text()
        seen.extend(text.splitlines() if text.count('\n') == len(prompts) - 1 else ())
      time.sleep(0.1)
    return completion(good[request.prompt])

  with serving(reply) as server:
    ask(asking.one_by_one(server), prompts, answers)
  assert [json.loads(line)['id'] for line in seen] == asking.ids(prompts[:-1])


def test_answers_that_the_bucket_does_not_take_are_kept_here(s3_url, monkeypatch):
  prompts, good, answers = asking.prompts(), asking.good_answers(), f'{s3_url}/answers.jsonl'

  def refuse(self):
    raise OSError('no space')

  monkeypatch.setattr(storage.Spool, 'flush', refuse)
  with serving(lambda request: completion(good[request.prompt])) as server:
    with pytest.raises(ConfigError, match=r"OSError\('no space'\).*all answers are in") as error:
      ask(asking.one_by_one(server), prompts, answers)
  copy = re.search(r'all answers are in (\S+):', str(error.value))[1]
  assert len(asking.rows_of(pathlib.Path(copy))) == len(prompts)
  shutil.rmtree(pathlib.Path(copy).parent)


def test_answers_that_came_before_a_failure_are_in_the_bucket_and_not_asked_again(s3_url):
  prompts, good, answers = asking.prompts(), asking.good_answers(), f'{s3_url}/answers.jsonl'
  broken = prompts[2]['prompt']

  def fail_once(request):
    is_down = request.prompt == broken
    return (500, {}, {}) if is_down else completion(good[request.prompt])

  with serving(fail_once) as server, pytest.raises(ConfigError, match='given up'):
    ask(asking.one_by_one(server), prompts, answers)
  kept = storage.path(answers).read_text()
  assert [json.loads(line)['id'] for line in kept.splitlines()] == asking.ids(prompts[:2])
  storage.path(answers).write_text(kept + '{"id": "cut o')  # as by a kill
  with serving(lambda request: completion(good[request.prompt])) as server:
    report = ask(asking.one_by_one(server), prompts, answers)
  assert server.prompts == [prompt['prompt'] for prompt in prompts[2:]]
  assert 'answered before: 2 prompts' in report
  summary = annotations.import_answers(
    asking.table(), asking.LAST, answers, f'{s3_url}/annotations.jsonl'
  )
  assert summary.endswith('annotations kept, 0 rejections')
  assert not (storage.path(s3_url) / '.answers.jsonl.lock').exists()
