"""Answers of an outside LLM that are kept in a bucket."""

import json

import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.runtime import storage
from rolegen_jax.text import annotations
from rolegen_jax.text.endpoint import ask
from tests.text import asking
from tests.text.chat_server import completion, serving


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
