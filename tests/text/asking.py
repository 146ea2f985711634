"""Prompts for a server of tests, and how it answers them well."""

import functools
import json
import pathlib

from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.text import annotations
from rolegen_jax.text.endpoint import Endpoint
from rolegen_jax.text.items import ItemWords
from tests import tiny
from tests.text import catalogue
from tests.text.chat_server import Server

LAST = 4  # events that a prompt shows
N_EXAMPLES = 6


@functools.cache
def table() -> ExampleTable:
  return catalogue.log_and_examples()[2].evenly(N_EXAMPLES)


@functools.cache
def prompts() -> list[dict]:
  return annotations.prompt_rows(table(), ItemWords.of(table().log.items), LAST)


@functools.cache
def good_answers() -> dict[str, str]:
  """Prompt -> a valid answer."""
  answers = {}
  for example, prompt in enumerate(prompts()):
    events = table().log.event[annotations._event_rows(table(), example, LAST)]
    roles = ['CONVERT' if event == tiny.PURCHASE else 'EXPLORE' for event in events]
    answers[prompt['prompt']] = '\n'.join(
      json.dumps(dict(event=number, role=role, rationale=f'as \u00fc {number}'), ensure_ascii=False)
      for number, role in enumerate(roles, 1)
    )
  return answers


def one_by_one(server: Server, **settings) -> Endpoint:
  """The server, asked for one prompt after another unless `settings` say otherwise."""
  return Endpoint(server.url, 'm', **(dict(concurrency=1, retries=1) | settings)).validated()


def rows_of(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def ids(rows: list[dict]) -> list[str]:
  return [row['id'] for row in rows]
