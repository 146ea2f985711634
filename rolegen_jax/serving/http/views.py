"""What can be looked up: users, histories, items, columns, the run and its A/B test.

Requests and answers of the reads in `lookups.py`; those of lists and changes are in `schema.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from rolegen_jax.serving.http.schema import MOST_EVENTS, Happened, Id, Request, Text, Value

MOST_FOUND, MOST_SHOWN = 100, 1000  # users of a search, items of a request


class UsersRequest(Request):
  """Part of an id, in any case; nothing = all users."""

  search: Text = ''
  dormant: bool = False  # only those who were dormant at the end of the run's log
  limit: Annotated[int, Meta(ge=1, le=MOST_FOUND)] = 20


class User(Struct):
  """A user. dormant: whether they would have been, had they bought at the end of the run's log."""

  user_id: Id
  events: int  # rows of the history
  purchases: int
  last: int | None  # seconds UTC of the latest event
  last_purchase: int | None
  dormant: bool


class Found(Struct):
  """Users: the exact id first, then those that begin with the search, then the others."""

  users: list[User]
  total: int  # how many were found, listed or not


class HistoryRequest(Request):
  """Whose history, and how many of its latest rows."""

  user_id: Id
  limit: Annotated[int, Meta(ge=1, le=MOST_EVENTS)] = 200


class Events(Struct):
  """The latest rows of a history, oldest first."""

  user: User
  events: list[Happened]


class ItemsRequest(Request):
  """Items, listed or removed."""

  item_ids: Annotated[list[Id], Meta(max_length=MOST_SHOWN)]


class ItemRow(Struct):
  """An item: whether it can be recommended, and its values."""

  item_id: Id
  listed: bool
  columns: dict[str, Value]


class ItemRows(Struct):
  """Items in the order in which they were asked for."""

  items: list[ItemRow]


class Share(Struct):
  """A value and how many listed items have it; of a path those below it too."""

  value: Value
  items: int


class Column(Struct):
  """A column that filters read.

  values: the most common ones; none where most items have one of their own.
  """

  name: str
  kind: Literal['value', 'path', 'number']
  items: int  # listed items that have a value
  distinct: int  # values of these
  min: float | None  # of numbers
  max: float | None
  values: list[Share]


class ColumnRows(Struct):
  """The columns of the items of a version of the catalogue."""

  columns: list[Column]
  catalogue_version: int


class RunFacts(Struct):
  """What is served."""

  name: str
  simulated: bool  # whether users and purchases come from the simulator
  reasoning: Literal['online', 'cached', 'off']  # of requests that do not say
  reasons: bool  # whether there is a reasoner
  top: int  # the largest k
  users: int
  items: int
  first: int  # seconds UTC of the first and the latest event of the run's log
  last: int
  events: list[str]
  roles: list[str]
  backbone_experts: list[str]
  reasoner_experts: list[str]
  worlds: int  # of a user
  role_events: int  # latest events that get a role
  intents: int  # that a world names, at most
  candidates: int  # items that a world names
  ab_test: bool  # whether there is one


class Interval(Struct):
  """A figure and its interval of 95 %."""

  mean: float
  low: float
  high: float


class ByDay(Struct):
  """Figures of single days."""

  orders: list[float]
  daily_active_customers: list[float]
  gmv: list[float]


class Arm(Struct):
  """What an arm of the test sold."""

  orders: Interval
  conversion_rate: Interval
  daily_active_customers: Interval
  gmv: Interval
  shown_view_rate: float
  shown_order_rate: float
  by_day: ByDay


class Lift(Struct):
  """Of the arm `tested` over another, less 1; null where there is nothing to compare with."""

  tested: str
  orders: Interval | None
  conversion_rate: Interval | None
  daily_active_customers: Interval | None
  gmv: Interval | None
  orders_by_day: list[Interval | None]


class Provenance(Struct):
  """Where the figures come from."""

  data: str
  when: str
  device_kind: str
  commit: str
  intervals: str


class AbTest(Struct):
  """The latest A/B test in the simulator: what `rolegen simulate_ab` writes as ab.json."""

  simulator: str
  tested: str
  slate: int  # items shown on a visit
  users: int
  days: int
  seeds: int
  training_seeds: list[int]
  visits: float
  measures: dict[str, str]
  arms: dict[str, Arm]
  lifts: dict[str, Lift]
  provenance: Provenance
