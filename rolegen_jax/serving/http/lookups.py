"""What can be looked up of users, items and the run, beside the lists: what a page shows.

Shapes: U users of the run's log, N items by number (`items.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from rolegen_jax.config import BACKBONE_EXPERTS, EVENT_NAMES, REASONER_EXPERTS, ROLE_NAMES
from rolegen_jax.data.examples import PURCHASE
from rolegen_jax.serving.audience import dormant
from rolegen_jax.serving.http.engine import Engine
from rolegen_jax.serving.http.reasoned import happened
from rolegen_jax.serving.http.schema import Refused
from rolegen_jax.serving.http.views import (
  AbTest,
  ColumnRows,
  Events,
  Found,
  HistoryRequest,
  ItemRow,
  ItemRows,
  ItemsRequest,
  RunFacts,
  User,
  UsersRequest,
)


class Lookups:
  """Answers what is only read.

  `columns` is for the thread of the device, `users`, which reads all ids, for one of its own, the
  rest for any.
  """

  def __init__(self, engine: Engine, reasoning: str, ab_test: AbTest | None):
    """reasoning: of requests that do not say. ab_test: of the run; None = none was played."""
    self._engine, self._reasoning, self._ab_test = engine, reasoning, ab_test
    log = engine.trained.log
    self._span = int(log.timestamp.min()), int(log.timestamp.max())
    self._dormant = dormant(log, engine.trained.rolegen.config.data, self._span[1] + 1)  # bool [U]
    # Ids of users as lower-case text, by index; those of new ones are appended.
    self._text = log.users.cast(pl.String).str.to_lowercase()
    self._columns: ColumnRows | None = None

  def users(self, asked: UsersRequest) -> Found:
    """Return the users whose id has a part."""
    text, part = self._ids(), asked.search.strip().lower()
    found = text.str.contains(part, literal=True).to_numpy()
    if asked.dormant:
      found[: len(self._dormant)] &= self._dormant
      found[len(self._dormant) :] = False
    is_exact, begins = (text == part).to_numpy(), text.str.starts_with(part).to_numpy()
    parts = (found & is_exact, found & begins & ~is_exact, found & ~begins)
    first = np.concatenate([np.flatnonzero(each)[: asked.limit] for each in parts])[: asked.limit]
    return Found([self._user(i) for i in first.tolist()], int(found.sum()))

  def history(self, asked: HistoryRequest) -> Events:
    """Return the latest events of a user. Raises Refused where there is no such user."""
    users = self._engine.users
    index = users.index(asked.user_id)
    if index is None:
      raise Refused(404, 'user_id', f'{asked.user_id!r} is an unknown user: no event names them')
    rows = users.history(index)
    latest = rows.picked(np.arange(len(rows.item))[-asked.limit :])
    return Events(self._user(index), happened(latest, self._engine.items))

  def items(self, asked: ItemsRequest) -> ItemRows:
    """Return items with their values. Raises Refused naming one that never was."""
    items = self._engine.items
    numbers = items.numbers(asked.item_ids, 'item_ids[{}]').tolist()
    return ItemRows(
      [ItemRow(items.ids[i], items.is_listed(i), items.columns.row(i)) for i in numbers]
    )

  def columns(self) -> ColumnRows:
    """Return the columns of the items that are listed now."""
    items = self._engine.items
    if self._columns is None or self._columns.catalogue_version != items.version:
      listed = items.listed_rows().number
      self._columns = ColumnRows(items.columns.described(listed), items.version)
    return self._columns

  def run(self) -> RunFacts:
    """Return what is served."""
    engine = self._engine
    config = engine.trained.rolegen.config
    return RunFacts(
      name=config.name,
      simulated=config.data.format == 'simulated',
      reasoning=self._reasoning,  # type: ignore[arg-type]
      reasons=engine.reasons,
      top=engine.top,
      users=len(engine.users.ids),
      items=len(engine.items),
      first=self._span[0],
      last=self._span[1],
      events=[*EVENT_NAMES],
      roles=[*ROLE_NAMES],
      backbone_experts=[*BACKBONE_EXPERTS],
      reasoner_experts=[*REASONER_EXPERTS],
      worlds=config.loop.worlds,
      role_events=config.reasoner.role_events,
      intents=config.reasoner.intents,
      candidates=config.reasoner.candidates,
      ab_test=self._ab_test is not None,
    )

  def ab_test(self) -> AbTest:
    """Return the A/B test of the run. Raises Refused where there is none."""
    if self._ab_test is None:
      right = 'none was there when the server started; rolegen simulate_ab plays one'
      raise Refused(404, 'ab_test', right)
    return self._ab_test

  def _user(self, index: int) -> User:
    users = self._engine.users
    rows = users.history(index)
    bought = np.flatnonzero(rows.event == PURCHASE)
    return User(
      user_id=users.ids[index],
      events=len(rows.item),
      purchases=int(rows.count[bought].sum()),
      last=int(rows.timestamp[-1]) if len(rows.timestamp) else None,
      last_purchase=int(rows.timestamp[bought[-1]]) if len(bought) else None,
      dormant=index < len(self._dormant) and bool(self._dormant[index]),
    )

  def _ids(self) -> pl.Series:
    new = self._engine.users.ids[len(self._text) :]
    if new:
      self._text.append(pl.Series(new).cast(pl.String).str.to_lowercase())
    return self._text
