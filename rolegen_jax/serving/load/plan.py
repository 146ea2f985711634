"""What a load test sends, and when: all of it drawn before the first request goes out.

Arrivals are a Poisson process: independent users, who do not wait for each other's answers.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rolegen_jax.data.log import InteractionLog

RECOMMEND, APPEND, MALFORMED, CHANGE = 'recommend', 'append', 'malformed', 'change'
EVENTS = ('view', 'view', 'view', 'fav', 'cart', 'purchase')

Id = int | str


@dataclasses.dataclass(frozen=True)
class Mix:
  """How much of what."""

  rps: float  # requests a second that recommend, append or are malformed
  duration: float  # seconds
  users: int = 0  # distinct ones; 0 = all of the log
  appends: float = 0.0  # share of the requests
  malformed: float = 0.0  # share of the requests
  changes: float = 0.0  # of the catalogue, a minute, beside the requests
  k: int = 10
  reasoning: str = ''  # '' = what the server does
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Shop:
  """Whose histories there are, and what can be in a list."""

  users: list[Id]
  items: dict[Id, dict[str, Any]]  # columns by id
  latest: int  # seconds UTC, of the last event


class Arrival(NamedTuple):
  """A request to send."""

  at: float  # seconds since the start
  kind: str
  path: str
  body: Any  # JSON, or bytes as they are; None = a change, drawn when it is due


def read_shop(workdir: str | os.PathLike) -> Shop:
  """Return the users and items of a run folder. Raises DataError."""
  log = InteractionLog.load(pathlib.Path(workdir) / 'data')
  columns = log.items.select(pl.exclude('item_id', 'embedding'))
  known = [{k: v for k, v in row.items() if v is not None} for row in columns.to_dicts()]
  items = dict(zip(log.items['item_id'].to_list(), known or [{}] * log.items.height))
  return Shop(log.users.to_list(), items, int(log.timestamp.max()))


def planned(mix: Mix, shop: Shop) -> list[Arrival]:
  """Return all arrivals in order of time."""
  rng = np.random.default_rng(mix.seed)
  users = shop.users
  if 0 < mix.users < len(users):
    users = [users[i] for i in rng.choice(len(users), mix.users, replace=False)]
  items, fields = list(shop.items), {'reasoning': mix.reasoning} if mix.reasoning else {}
  shares = [mix.appends, mix.malformed, 1.0 - mix.appends - mix.malformed]
  makers: dict[str, Callable[[float], tuple[str, Any]]] = {
    APPEND: lambda at: ('/v1/events', _append(rng, users, items, shop.latest + int(at))),
    MALFORMED: lambda at: _malformed(rng, users, items),
    RECOMMEND: lambda at: ('/v1/recommend', dict(user_id=_one(rng, users), k=mix.k) | fields),
  }
  arrivals = []
  for at in poisson(rng, mix.rps, mix.duration):
    kind = list(makers)[rng.choice(len(shares), p=shares)]
    arrivals.append(Arrival(at, kind, *makers[kind](at)))
  for at in poisson(rng, mix.changes / 60, mix.duration):
    arrivals.append(Arrival(at, CHANGE, '/v1/catalogue', None))
  return sorted(arrivals, key=lambda arrival: arrival.at)


def poisson(rng: np.random.Generator, rate: float, duration: float) -> list[float]:
  """Return the times of a Poisson process, seconds in [0, duration); rate: a second."""
  if not rate:
    return []
  return sorted(rng.uniform(0, duration, rng.poisson(rate * duration)).tolist())


def _one(rng: np.random.Generator, of: list[Id]) -> Id:
  return of[int(rng.integers(len(of)))]


def _append(rng: np.random.Generator, users: list[Id], items: list[Id], time: int) -> Any:
  event = EVENTS[int(rng.integers(len(EVENTS)))]
  return dict(
    user_id=_one(rng, users), events=[dict(item_id=_one(rng, items), event=event, timestamp=time)]
  )


def _malformed(rng: np.random.Generator, users: list[Id], items: list[Id]) -> tuple[str, Any]:
  """Return a path and a body that has to be refused."""
  user, item = _one(rng, users), _one(rng, items)
  event = dict(item_id=item, event='view', timestamp=2**33)
  wrong: list[tuple[str, Any]] = [
    ('/v1/recommend', b'{"user_id": '),
    ('/v1/recommend', b'\xff\xfe'),
    ('/v1/recommend', {}),
    ('/v1/recommend', dict(user_id=user, kk=3)),
    ('/v1/recommend', dict(user_id=user, k=0)),
    ('/v1/recommend', dict(user_id=[user])),
    ('/v1/recommend', dict(user_id=user, where={'no such column': 1})),
    ('/v1/events', dict(user_id=user, events=[])),
    ('/v1/events', dict(user_id=user, events=[event])),
    ('/v1/events', dict(user_id=user, events=[dict(event, timestamp=0, event='looked')])),
    ('/v1/catalogue', dict(remove=[item, item])),
    ('/v1/catalogue', dict(remove=[item], roll_back_to=0)),
    ('/v1/catalogue', dict(add=[dict(item_id=item, like=item, codes=[0])])),
  ]
  return wrong[int(rng.integers(len(wrong)))]
