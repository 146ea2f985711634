"""Prompts asked of a server in OpenAI's chat-completions format, each answer kept as it comes.

The client is the official `openai` package rather than plain HTTP, because it already retries with
exponential back-off, waits as Retry-After says, and knows which errors a retry can mend.

The answers file has one JSON object a line, which `annotations.import_answers` reads:

  {id, answer, model, prompt_digest, finish_reason, prompt_tokens, completion_tokens}

`id` is that of the prompt, `answer` the text that came, null where none did. The rest is as the
server reports it, null where it does not. What the file answers is not asked again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import DataError, require_writable
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import progress, say
from rolegen_jax.text import responses
from rolegen_jax.text.answers_file import Answers, locked
from rolegen_jax.text.items import one_line
from rolegen_jax.text.records import read_begun

if TYPE_CHECKING:
  import openai

PACKAGE = 'openai'
OURS = ('model', 'messages', 'stream')  # fields of a request that --parameters may not hold
MAX_QUOTE = 300  # characters of what a server says that an error repeats
# What can be in a header, and looks the same wherever a server quotes it.
_KEY = re.compile(r'[!#-&(-\[\]-~]*')

# For estimates only. Times, prices and JSON make more tokens than prose does.
BYTES_PER_TOKEN = 3
RATIONALE = 80  # characters of one short sentence
_ANSWER_LINE = json.dumps(dict(event=10, role='REINFORCE', rationale='x' * RATIONALE)) + '\n'


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A server, and how it is asked."""

  url: str  # up to, and without, /chat/completions
  model: str
  key_variable: str = 'OPENAI_API_KEY'  # environment variable; where it is unset, no key is known
  concurrency: int = 8  # requests under way at a time
  retries: int = 8  # of a request, at most
  timeout_s: float = 600.0  # of a request
  parameters: dict[str, Any] = dataclasses.field(default_factory=dict)  # further fields of requests

  def validated(self) -> Endpoint:
    """Return it unchanged. Raises ConfigError naming the flag that is wrong."""
    right = 'http(s)://HOST[:PORT]/PATH up to /chat/completions, such as http://localhost:8000/v1'
    try:
      url = urllib.parse.urlsplit(self.url)
      known = url.scheme in ('http', 'https') and url.hostname and url.port != 0
      known = known and self.url.isprintable() and ' ' not in self.url
    except ValueError:  # a port that is no number, half an IPv6 address
      known = False
    if not known or url.query or url.fragment or url.path.rstrip('/').endswith('/completions'):
      raise ConfigError(f'--endpoint={self.url}: must be {right}')
    if '@' in url.netloc:
      raise ConfigError(
        f'--endpoint: holds a password; must be {right}, with the key in ${self.key_variable}'
      )
    if not self.model.strip():
      raise ConfigError(f'--model={self.model}: must be the name by which the server knows it')
    wrong = sorted(set(OURS) & set(self.parameters))
    if wrong:
      raise ConfigError(f'--parameters: holds {wrong[0]}; must be fields but {", ".join(OURS)}')
    self.key()
    return self

  def key(self) -> str:
    """Return the key of the environment, '' where there is none. Raises ConfigError."""
    key = os.environ.get(self.key_variable, '').strip()
    if not _KEY.fullmatch(key):
      raise ConfigError(
        f'${self.key_variable}: holds a blank, a quote, a backslash, or what is no ASCII; '
        'must be the key alone'
      )
    return key


class PromptRefused(ConfigError):
  """The server refuses this prompt, or, if it has answered none yet, perhaps all."""


class Prices(NamedTuple):
  """What a million tokens cost, in any currency."""

  prompt: float
  completion: float

  def of(self, prompt_tokens: int, completion_tokens: int) -> str:
    """Return the cost of so many tokens as text."""
    cost = (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
    return f'cost {cost:.4g} at {self.prompt:g} and {self.completion:g} per million tokens'


def require_package() -> None:
  """Raise ConfigError where the client is not installed."""
  if importlib.util.find_spec(PACKAGE) is None:
    raise ConfigError(
      f'--endpoint: needs the package {PACKAGE}, which is not installed; '
      'run: pip install -r requirements-annotate.txt'
    )


def estimate(
  endpoint: Endpoint,
  prompts: list[dict[str, Any]],
  answers: str | os.PathLike,
  prices: Prices | None = None,
) -> str:
  """Return what asking for what is not answered yet would take, without asking.

  prompts: objects of a prompts file. Raises DataError as `ask` does.
  """
  before, _ = _answered(endpoint, prompts, answers)
  left = [prompt for prompt in prompts if prompt['id'] not in before]
  n_bytes = sum(len(prompt['prompt'].encode()) for prompt in left)
  n_events = sum(prompt['events'] for prompt in left)
  sent, received = n_bytes // BYTES_PER_TOKEN, n_events * len(_ANSWER_LINE) // BYTES_PER_TOKEN
  lines = [
    f'{len(left)} prompts to ask, {len(before)} answered before; nothing was sent',
    f'about {sent} prompt tokens, estimated as one for each {BYTES_PER_TOKEN} bytes of the prompts',
    f'about {received} completion tokens, estimated likewise from the format asked for: '
    f'{n_events} lines with rationales of {RATIONALE} characters; drafts of reasoning models '
    'come on top',
  ]
  return '\n'.join(lines + ([prices.of(sent, received)] if prices else []))


def ask(
  endpoint: Endpoint,
  prompts: list[dict[str, Any]],
  answers: str | os.PathLike,
  prices: Prices | None = None,
) -> str:
  """Ask for what the answers file does not answer yet, and return a report.

  Each answer is appended as soon as it comes, in a bucket within half a minute: after an error,
  Ctrl-C or a kill, the same call asks for the rest. A prompt that the server refuses, but not all
  others, stays without an answer.
  Raises ConfigError when the server refuses all or goes on failing, and DataError when the file
  holds answers to other prompts or of another model.

  prompts: objects of a prompts file.
  """
  require_writable(answers)
  path = storage.path(answers)
  with locked(path):
    before, size = _answered(endpoint, prompts, answers)
    left = [prompt for prompt in prompts if prompt['id'] not in before]
    started = time.monotonic()
    kept = Answers(path, size)
    try:
      now = asyncio.run(_ask_all(endpoint, left, kept, len(before))) if left else []
    finally:
      kept.close()
  seconds = time.monotonic() - started
  lines = [
    f'asked now: {len(now)} prompts in {seconds:.0f} s, {_tokens(now, prices)}',
    f'answered before: {len(before)} prompts, {_tokens([*before.values()], prices)}',
  ]
  cut_off = sum(row.get('finish_reason') == 'length' for row in [*now, *before.values()])
  if cut_off:
    lines.append(f'{cut_off} answers reached the limit of tokens and are cut off')
  return '\n'.join(lines)


# The answers file


def _answered(
  endpoint: Endpoint, prompts: list[dict[str, Any]], answers: str | os.PathLike
) -> tuple[dict[str, dict[str, Any]], int]:
  """Return the objects of the file by the prompts that they answer, and the bytes of all objects.

  Raises DataError where one does not belong to these prompts and this model.
  """
  digests = {prompt['id']: _digest(prompt['prompt']) for prompt in prompts}
  answered = {}
  records, size = read_begun(answers)
  for line, record in records:
    response = responses.unwrap(record)
    if response.id not in digests:
      problem = f'id {response.id!r} is of no prompt of this run and of as many --examples'
    elif record.get('prompt_digest', digests[response.id]) != digests[response.id]:
      problem = f'answers another prompt of id {response.id!r}'
    elif record.get('model', endpoint.model) != endpoint.model:
      problem = f'is by --model={record["model"]}, not {endpoint.model}'
    elif not (response.failure or any(name in record for name in responses.REPLIES)):
      problem = 'holds no answer'
    else:
      if (response.text or '').strip():
        answered[response.id] = record
      continue
    raise DataError(
      f'{answers}, line {line}: {problem}; --answers must be a new file, or one that this very '
      'command began'
    )
  return answered, size


def _digest(prompt: str) -> str:
  return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _tokens(rows: list[dict[str, Any]], prices: Prices | None) -> str:
  names = ('prompt_tokens', 'completion_tokens')
  counted = [row for row in rows if all(isinstance(row.get(name), int) for name in names)]
  sent, received = (sum(row[name] for row in counted) for name in names)
  text = f'{sent} prompt tokens, {received} completion tokens'
  if len(counted) < len(rows):
    text += f' (of the {len(counted)} answers of which the server says it)'
  return f'{text}, {prices.of(sent, received)}' if prices else text


# The server


async def _ask_all(
  endpoint: Endpoint, prompts: list[dict[str, Any]], kept: Answers, n_before: int
) -> list[dict[str, Any]]:
  """Ask for all prompts, keep their answers and return them."""
  import openai

  slots = asyncio.Semaphore(endpoint.concurrency)
  received: list[dict[str, Any]] = []
  refused: list[PromptRefused] = []
  client = openai.AsyncOpenAI(
    base_url=endpoint.url,
    api_key=endpoint.key() or 'none',  # the client wants one; a server without keys ignores it
    max_retries=endpoint.retries,
    timeout=endpoint.timeout_s,
  )

  async def ask_one(prompt: dict[str, Any]) -> None:
    await slots.acquire()
    try:
      row = await _ask(client, endpoint, prompt)
    except PromptRefused as error:  # it may be too long; the others need not wait for it
      refused.append(error)
      if not (n_before or received) and len(refused) >= endpoint.concurrency:
        raise
      slots.release()
      return
    kept.append(row)
    received.append(row)
    slots.release()  # a request that failed keeps its slot, so that no other follows it

  async with client:
    sending = asyncio.create_task(kept.send())
    tasks = [asyncio.create_task(ask_one(prompt)) for prompt in prompts]
    total = n_before + len(prompts)
    try:
      for task in progress(asyncio.as_completed(tasks), 'prompts', total, initial=n_before):
        await task
    finally:
      for unfinished in (*tasks, sending):
        unfinished.cancel()
      await asyncio.gather(*tasks, sending, return_exceptions=True)
  if refused and not (n_before or received):
    raise refused[0]
  if refused:
    say(f'{len(refused)} prompts were refused and have no answer; {refused[0]}')
  return received


async def _ask(
  client: openai.AsyncOpenAI, endpoint: Endpoint, prompt: dict[str, Any]
) -> dict[str, Any]:
  """Return the object of the answers file for a prompt. Raises ConfigError."""
  import openai

  try:
    reply = await client.chat.completions.with_raw_response.create(
      model=endpoint.model,
      messages=[{'role': 'user', 'content': prompt['prompt']}],
      extra_body=endpoint.parameters,
    )
  except openai.APIError as error:
    # Its cause may quote the request, and so the key.
    raise _refused(endpoint, prompt['id'], error) from None
  text = reply.http_response.text
  try:
    body = json.loads(text)
    choice = body['choices'][0]
    usage = body.get('usage') or {}
    return dict(
      id=prompt['id'],
      answer=responses.unwrap(dict(response=body)).text,
      model=endpoint.model,
      prompt_digest=_digest(prompt['prompt']),
      finish_reason=choice.get('finish_reason'),
      prompt_tokens=usage.get('prompt_tokens'),
      completion_tokens=usage.get('completion_tokens'),
    )
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    right = '--endpoint must be of a server in the chat-completions format'
    raise _error(endpoint, prompt['id'], f'no chat completion: {text}', right) from None


def _refused(endpoint: Endpoint, prompt_id: str, error: openai.APIError) -> ConfigError:
  """Return the error for a request that failed for good."""
  status = getattr(error, 'status_code', None)
  said = error.message if status else f'{error.message} {error.__cause__ or ""}'
  if status in (401, 403):
    unset = '' if endpoint.key() else ' (it is not set)'
    right = f'the environment variable {endpoint.key_variable}{unset} must hold a key of the server'
  elif status == 404:
    right = (
      '--endpoint must be the URL up to /chat/completions, which often ends in /v1, and --model '
      f'one that {endpoint.url.rstrip("/")}/models lists'
    )
  elif status and status < 500 and status not in (408, 409, 429):
    right = '--parameters must be fields that the server knows, and prompts fit in the model'
    return PromptRefused(str(_error(endpoint, prompt_id, said, right)))
  else:
    said = f'given up after {endpoint.retries} retries at most: {said}'
    right = 'the server must answer; a lower --concurrency or higher --retries may help'
  return _error(endpoint, prompt_id, said, right)


def _error(endpoint: Endpoint, prompt_id: str, said: str, right: str) -> ConfigError:
  key = endpoint.key()
  shown = one_line(said.replace(key, '***') if key else said)[:MAX_QUOTE]
  return ConfigError(
    f'--endpoint={endpoint.url} --model={endpoint.model}, prompt {prompt_id}: {shown}; {right}. '
    'Answers that came are kept: the same command asks for the rest'
  )
