"""What requests and answers look like: parsed, checked and described in one place.

Whatever is wrong with a request is a `Refused` that names the field and what would be right.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Raw, Struct

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.events import MAX_TIMESTAMP

MOST_EVENTS, MOST_ITEMS, MOST_VALUES = 10_000, 100_000, 10_000  # of one request
MOST_FILTERS, MOST_COLUMNS = 50, 100
MOST_READ_AGAIN = 1 << 20  # bytes of a map in which the key of a wrong value is looked for
MOST_SAID = 100  # characters of what a request has that an error says again
LARGEST_INT64 = 2**63 - 1

Int = Annotated[int, Meta(ge=-LARGEST_INT64 - 1, le=LARGEST_INT64)]
Text = Annotated[str, Meta(max_length=1000)]
Id = Int | Text
Name = Annotated[str, Meta(min_length=1, max_length=100)]
Value = Text | bool | Int | float
Seconds = Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP + 1, description='seconds UTC')]
Milliseconds = Annotated[int, Meta(ge=1, le=600_000)]
Mode = Literal['online', 'cached', 'off']
EventName = Literal[EVENT_NAMES]  # type: ignore[valid-type]


class Refused(Exception):
  """A request that is not answered: HTTP status, the field that is wrong, and what is right."""

  def __init__(self, status: int, field: str, message: str, retry_after: float = 0.0):
    super().__init__(f'{field}: {message}')
    self.status, self.field, self.message = status, field, message
    self.retry_after = retry_after  # seconds; 0 = the same request will not fare better


class Request(Struct, forbid_unknown_fields=True):
  """A request, or a part of one: fields that it does not know are wrong."""


class Event(Request):
  """An event of a user."""

  item_id: Id
  event: EventName
  timestamp: Seconds


class Range(Request):
  """Numbers from `min` to `max`, both included."""

  min: float | None = None
  max: float | None = None


Filter = Text | bool | Int | float | Annotated[list[Value], Meta(max_length=MOST_VALUES)] | Range

_MAPS = {'where': Filter, 'columns': Value | None}  # the values of maps, by field


class RecommendRequest(Request):
  """Whom to recommend to, what may be listed, and how long an answer is worth waiting for."""

  user_id: Id | None = None
  # in place of a user: the history of somebody who is in no log
  events: Annotated[list[Event], Meta(max_length=MOST_EVENTS)] | None = None
  time: Seconds | None = None  # default: just after the latest event that the server knows
  k: Annotated[int, Meta(ge=1)] | None = None  # items; default: 10, or --top where that is less
  # by column of the items: a value, some values, or a range; of category_code everything below
  where: Annotated[dict[Name, Filter], Meta(max_length=MOST_FILTERS)] = {}
  exclude: Annotated[list[Id], Meta(max_length=MOST_VALUES)] = []  # items
  explain: bool = False
  worlds: bool = False  # say what the reasoner said, where it was asked
  reasoning: Mode | None = None  # default: --reasoning
  deadline_ms: Milliseconds | None = None  # then the answer is 504
  reasoning_deadline_ms: Milliseconds | None = None  # then the backbone alone answers


class EventsRequest(Request):
  """Events to append to the history of a user, known or new."""

  user_id: Id
  events: Annotated[list[Event], Meta(min_length=1, max_length=MOST_EVENTS)]


class NewItem(Request):
  """An item to add: its columns say where it belongs, or an item like it, or codes."""

  item_id: Id
  columns: Annotated[dict[Name, Value | None], Meta(max_length=MOST_COLUMNS)] = {}
  like: Id | None = None
  codes: Annotated[list[Int], Meta(max_length=64)] | None = None


class Tagged(Request):
  """New values of some columns of an item; null takes a value away."""

  item_id: Id
  columns: Annotated[dict[Name, Value | None], Meta(min_length=1, max_length=MOST_COLUMNS)]


class CatalogueRequest(Request):
  """One change, which happens as a whole or not at all; or a return to an earlier version."""

  add: Annotated[list[NewItem], Meta(max_length=MOST_ITEMS)] = []
  remove: Annotated[list[Id], Meta(max_length=MOST_ITEMS)] = []
  tag: Annotated[list[Tagged], Meta(max_length=MOST_ITEMS)] = []
  roll_back_to: Annotated[int, Meta(ge=0)] | None = None
  if_version: Annotated[int, Meta(ge=0)] | None = None  # refuse unless this is the version


class Carrier(Struct):
  """An event without which an item would lose most; see `serving/explained.py`."""

  item_id: Id
  event: str
  days_ago: float
  role: str
  nats: float


class Reason(Struct):
  """Why an item is listed; the columns of `serving/explained.py`."""

  terms: dict[str, float]
  world: int
  seen: bool
  carried_by: list[Carrier]
  why: str


class Item(Struct, omit_defaults=True):
  """A listed item; see the columns of `serving/explained.py`."""

  item_id: Id
  log_prob: float
  rank_score: float
  opens: float
  reason: Reason | None = None


class Happened(Struct):
  """A row of a history: `count` equal events."""

  item_id: Id
  event: str
  timestamp: int
  count: int


class Intervention(Struct, omit_defaults=True):
  """What is done in a world: an event removed, its role set, or the first intent set."""

  kind: Literal['remove', 'role', 'intent']
  event: int | None = None  # place in `Reasoned.events`
  role: str | None = None
  code: int | None = None  # coarse code of the intent


class Intent(Struct):
  """A coarse code, which is a group of items, and those of it with the most training events."""

  code: int
  items: list[Id]


class Candidate(Struct):
  """An item that a world proposes, and the log-probability of its codes, in nats."""

  item_id: Id
  log_prob: float


class World(Struct):
  """What the reasoner says in a world. intervention: null in the first, the factual one."""

  intervention: Intervention | None
  intents: list[Intent]
  roles: list[str | None]  # of `Reasoned.events`
  candidates: list[Candidate]  # best first, without those of worlds before it


class Reasoned(Struct):
  """The latest events that were read, oldest first: those that get roles. And every world."""

  events: list[Happened]
  worlds: list[World]


class Answer(Struct, omit_defaults=True):
  """A list, best first. reasoning: what stood behind it; `late` = the backbone alone, in time."""

  items: list[Item]
  time: int
  reasoning: Literal['online', 'cached', 'off', 'late']
  catalogue_version: int
  reasoned: Reasoned | None = None  # where `worlds` asks for it and a reasoner answered


class Appended(Struct):
  """How many rows the user's history has now."""

  events: int


class Changed(Struct):
  """The version of the catalogue after a change, and how many items it has."""

  version: int
  items: int


class Problem(Struct):
  """What is wrong with a request."""

  field: str
  message: str


T = TypeVar('T')


def parse(body: bytes, kind: type[T]) -> T:
  """Return a request. Raises Refused naming the field that is wrong."""
  try:
    return msgspec.json.decode(body, type=kind)
  except msgspec.ValidationError as error:
    raise Refused(422, *_place(str(error), body)) from None
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
    raise Refused(400, 'body', f'must be JSON ({error})') from None


def _place(message: str, body: bytes) -> tuple[str, str]:
  """Return the field that a message of msgspec is about, and the rest of the message."""
  said, _, path = message.partition(' - at ')
  field = path.replace('`', '').removeprefix('key in ').removeprefix('$').removeprefix('.')
  field = _with_key(field, body)
  named = re.fullmatch(
    r'Object (?:missing required|contains unknown) field `(.*)`', said, re.DOTALL
  )
  if named:
    name = _short(named.group(1))
    field = f'{field}.{name}' if field else name
    said = 'is missing' if 'missing' in said[:20] else 'is no field here'
  if said.startswith('Invalid enum value'):
    right = get_args(EventName if field.endswith('event') else Mode)
    said = f'{_short(said)}; must be one of {", ".join(right)}'
  elif path.endswith(('.time`', '.timestamp`')):
    said += ', in seconds UTC'
  return field or 'body', said


def _short(text: str) -> str:
  return text if len(text) <= MOST_SAID else f'{text[:MOST_SAID]}...'


def _with_key(field: str, body: bytes) -> str:
  """Return a field with the key of a map, for which msgspec writes `[...]`, in its place.

  Without the key where the map is larger than right ones are: nobody else is answered meanwhile.
  """
  above, is_in_map, below = field.partition('[...]')
  if not is_in_map:
    return field
  try:
    part, step = Raw(body), ''
    for step in re.findall(r'\w+', above):
      if step.isdecimal():
        part = msgspec.json.decode(part, type=list[Raw])[int(step)]
      else:
        part = msgspec.json.decode(part, type=dict[str, Raw])[step]
    if len(memoryview(part)) > MOST_READ_AGAIN:
      return above
    values = msgspec.json.decode(part, type=dict[str, Raw])
    for key, value in itertools.islice(values.items(), MOST_COLUMNS):
      if not _is_valid(value, _MAPS[step]):
        return f'{above}.{_short(key)}{below}'
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError):
    pass  # what is wrong is not the last of its name, or the rest of the body is no JSON
  return above


def _is_valid(value: Raw, kind: Any) -> bool:
  try:
    msgspec.json.decode(value, type=kind)
  except msgspec.ValidationError:
    return False
  return True


def encode(value: Any) -> bytes:
  """Return JSON."""
  return msgspec.json.encode(value)
