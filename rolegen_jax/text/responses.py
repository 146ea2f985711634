"""Answers as language models give them, and as the services around the models store them.

`unwrap` reads one object of an answers file: our own {id, answer}, or a row that a batch service
wrote, with our id as its `custom_id` (OpenAI, Anthropic) or `key` (Gemini). `events` reads what one
answer says about the events of its prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.text.records import DECODER

# A service's row has an `id` of its own beside the one that it was given.
IDS = ('custom_id', 'id', 'key')
REPLIES = ('answer', 'response', 'result')
# Where a reply, or a part of one, has its text: the first that is there.
_INNER = ('body', 'choices', 'candidates', 'output', 'message', 'content', 'parts', 'text')
_ALTERNATIVES = ('choices', 'candidates')  # the first of them is the answer
_THOUGHTS = ('reasoning', 'thinking', 'redacted_thinking')  # parts that are not the answer

# A string, which stays, or a comma before a closing bracket.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')
# `1. TRIGGER: why`, `- **Event 1**: Trigger - why`, `| 1 | TRIGGER | why |`.
_LISTED = re.compile(
  r'^[^\w\n]*(?:event[^\w\n]*)?(\d{1,6})[^\w\n]+'
  rf'({"|".join(ROLE_NAMES)})\b[*_`"\']*[ \t\r]*(?:$|[-:|,;(\u2013\u2014](.*)$)',
  re.IGNORECASE | re.MULTILINE,
)
# What reasoning models write before their answer. Where a chat template opens it in the prompt, the
# answer has the closing tag alone; a draft that was never closed has no answer behind it.
_THINKING = re.compile(r'<(think|thinking)>.*?(</\1>|\Z)', re.IGNORECASE | re.DOTALL)
_OPENED_BEFORE = re.compile(r'\A.*</(think|thinking)>', re.IGNORECASE | re.DOTALL)
# A sign is part of a number, unless it is between `event` and the number.
_EVENT_KEY = re.compile(r'(?:\W*event\W*|[^\w-]*)(\d{1,6})\W*', re.IGNORECASE)


class Response(NamedTuple):
  """One object of an answers file."""

  id: str  # of the prompt; '' = none was given
  text: str | None  # None = there is no answer
  failure: str  # what the service says about a request that failed; '' = it did not


def unwrap(record: dict[str, Any]) -> Response:
  """Return what an object of an answers file holds, in whatever wrapping."""
  given = next((record[name] for name in IDS if record.get(name) is not None), '')
  try:
    answer = record.get('answer')
    failure = _failure(record) if answer is None else ''
    reply = next((record[name] for name in REPLIES if record.get(name) is not None), record)
    text = None if failure else _text(reply)
    if text is None and isinstance(answer, (dict, list)):
      text = json.dumps(answer)  # the roles themselves, not as text
  except RecursionError:
    return Response(str(given), None, 'nested too deeply')
  return Response(str(given), text, failure)


def _failure(record: dict[str, Any]) -> str:
  response, result = record.get('response'), record.get('result')
  if record.get('error'):
    return json.dumps(record['error'])
  if isinstance(response, dict) and response.get('status_code', 200) != 200:
    return json.dumps(response)
  if isinstance(result, dict) and result.get('type', 'succeeded') != 'succeeded':
    return json.dumps(result)
  return ''


def _text(reply: Any) -> str | None:
  if isinstance(reply, str):
    return reply
  if isinstance(reply, list):
    return ''.join(_text(part) or '' for part in reply if not _is_thought(part)) or None
  if not isinstance(reply, dict):
    return None
  for name in _INNER:
    inner = reply.get(name)
    if inner is not None:
      return _text(inner[:1] if name in _ALTERNATIVES and isinstance(inner, list) else inner)
  return None


def _is_thought(part: Any) -> bool:
  return isinstance(part, dict) and (part.get('type') in _THOUGHTS or part.get('thought') is True)


def events(answer: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
  """Yield (what is written, its fields) for everything that an answer says about an event.

  The fields {event, role, rationale} come from JSON objects, wherever they stand; in an answer
  without any, from the lines of a list. They are None where an object is no valid JSON.
  """
  answer = _OPENED_BEFORE.sub('', _THINKING.sub('', answer))
  spoken = list(_objects(answer))
  yield from spoken
  if not spoken:
    for line in _LISTED.finditer(answer):
      number, role, rationale = line.groups()
      rationale = (rationale or '').strip(' \t\r*_`|()')
      yield line[0].strip(), dict(event=number, role=role, rationale=rationale)


def _objects(answer: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
  position = 0
  while (start := answer.find('{', position)) >= 0:
    try:
      try:
        value, position = DECODER.raw_decode(answer, start)
      except json.JSONDecodeError:
        answer = answer[:start] + _TRAILING_COMMA.sub(r'\1', answer[start:])
        value, position = DECODER.raw_decode(answer, start)
      found: list = list(_of_events(value)) or [value]
    except (ValueError, RecursionError):
      end = answer.find('\n', start)
      position = end if end >= 0 else len(answer)
      found = [None]
    for fields in found:
      yield answer[start:position], fields


def _of_events(value: Any) -> Iterator[dict[str, Any]]:
  """Yield the objects with a field `event` in a value; an event's number may also be their key."""
  if isinstance(value, list):
    for part in value:
      yield from _of_events(part)
  if not isinstance(value, dict):
    return
  fields = {str(key).lower(): inner for key, inner in value.items()}
  if 'event' in fields:
    yield fields
    return
  for key, inner in fields.items():
    number = _EVENT_KEY.fullmatch(key)
    if number and isinstance(inner, str):
      yield dict(event=number[1], role=inner)
    elif number and isinstance(inner, dict):
      yield {str(name).lower(): said for name, said in inner.items()} | dict(event=number[1])
    else:
      yield from _of_events(inner)
