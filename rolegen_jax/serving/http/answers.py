"""From what the models list to what is answered: the same slates and reasons as `recommend` gives.

Here items are numbers again (`items.py`).

Shapes: B requests of a batch, K items of a list, M role events, W worlds, P candidates of a world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from rolegen_jax.config import Config
from rolegen_jax.data.examples import inference_examples
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import Opens
from rolegen_jax.models.memory import Conditioning
from rolegen_jax.reasoning.explain import Explanations
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.serving.explained import explained_table
from rolegen_jax.serving.history_filter import without
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.programs import Worlds
from rolegen_jax.serving.http.reasoned import reasoned
from rolegen_jax.serving.http.rows import Reader
from rolegen_jax.serving.http.schema import Answer, Carrier, Item, Reason, Reasoned
from rolegen_jax.serving.slate import Opened, Slates, slates


class Ranked(NamedTuple):
  """What the models list for a batch, and what that rests on."""

  readers: Sequence[Reader]
  queries: Sequence[Any]  # engine.Query
  slot: np.ndarray  # int32, where the histories are encoded
  ranking: Any  # decode.Ranking on the host, by slot; rows beyond the queries are meaningless
  worlds: list[Worlds] | None  # of each query, by number; None = the backbone alone


def with_items(said: Conditioning, renamed: Callable[[Any], Any]) -> Conditioning:
  """Return what the reasoner says with other names of its items."""
  candidates, retrieved = said.candidates, said.retrieved
  if candidates is not None:
    candidates = candidates._replace(item=renamed(candidates.item))
  if retrieved is not None:
    retrieved = retrieved._replace(item=renamed(retrieved.item))
  return said._replace(candidates=candidates, retrieved=retrieved)


def by_number(worlds: Worlds, items: Items) -> Worlds:
  """Return worlds whose items are slots with numbers in their place."""
  said = with_items(worlds.said, items.numbers_at)
  return worlds._replace(said=said, candidates=items.numbers_at(worlds.candidates))


class Lists:
  """Makes answers of ranked lists."""

  def __init__(self, config: Config, items: Items, excitation: Excitation, bars_history: bool):
    self._config, self._items, self._bars_history = config, items, bars_history
    self._excitation, self._opens = excitation, excitation.opens
    self._ids: pl.DataFrame | None = None

  def listed(self, ranked: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of a batch [B, K] that may be shown, by number, and their log p."""
    n = len(ranked.queries)
    item = self._items.numbers_at(ranked.ranking.item[:n])
    score = ranked.ranking.score[:n]
    if self._bars_history:
      held = [np.isin(row, reader.history.item) for row, reader in zip(item, ranked.readers)]
      item, score = without(item, score, np.stack(held))
    return item, score

  def attributes(self, item: np.ndarray) -> np.ndarray:
    """Return the attributes of items by number, int32 [..., A]; new items have none."""
    known = self._excitation.attribute_IxA
    is_known = (item >= 0) & (item < len(known))
    return np.where(is_known[..., None], known[np.where(is_known, item, 0)], -1)

  def shown(
    self, item_BxK: np.ndarray, log_prob_BxK: np.ndarray, opens_BxK: np.ndarray | None
  ) -> Slates:
    """Return the slates of a batch [B, K], items by number.

    opens: what looks would open for these users; None = what is counted for everybody. Each is made
    without regard to others, so `serving.exposure_penalty` is not applied.
    """
    if opens_BxK is None:
      opened = Opened.at_large(self._all_opens(), item_BxK)
    else:
      opened = Opened.for_users(opens_BxK, item_BxK)
    return slates(item_BxK, log_prob_BxK, opened, self._config.serving.exploration_weight)

  def answer(
    self, lists: Slates, row: int, query: Any, mode: Any, reasons: list[Reason] | None
  ) -> Answer:
    """Return the answer to one request. reasons: of its items in order; None = not asked for."""
    found = []
    for place, number in enumerate(lists.item[row, : query.k].tolist()):
      if number < 0:
        break
      found.append(
        Item(
          item_id=self._items.ids[number],
          log_prob=float(lists.log_prob[row, place]),
          rank_score=float(lists.rank_score[row, place]),
          opens=float(lists.opens[row, place]),
          reason=reasons[place] if reasons else None,
        )
      )
    return Answer(found, query.time, mode, self._items.version)

  def reasoned(self, ranked: Ranked, row: int) -> Reasoned | None:
    """Return what the reasoner said of a request that asks for it; None where it said nothing."""
    if ranked.worlds is None or not ranked.queries[row].worlds:
      return None
    return reasoned(ranked.readers[row].history, ranked.worlds[row], self._items)

  def reasons(
    self, ranked: Ranked, lists: Slates, explained: Explanations | None, row: int
  ) -> list[Reason]:
    """Return why each item of a request is listed, as the table of `recommend` has it.

    explained: of the whole batch; None = no event is named.
    """
    reader = ranked.readers[row]
    log = self._log_of(reader)
    m = self._config.reasoner.role_events
    table = inference_examples(
      log, np.zeros(1, np.int32), log.offsets[1:], np.array([reader.time]), m, 1, self._excitation
    )
    one = slice(row, row + 1)
    shown, k = Slates(*(x[one] for x in lists)), ranked.queries[row].k
    if explained is None:
      nothing = np.zeros((1, k, m), np.float32)
      explained = Explanations(nothing, np.full(nothing.shape, -1))
    else:
      explained = Explanations(*(x[one, :k] for x in explained))
    frame = explained_table(log, table, self._predictions(ranked, row), shown, explained)
    return [
      Reason(
        terms=of['terms'],
        world=of['world'],
        seen=of['seen'],
        carried_by=[Carrier(**event) for event in of['carried_by']],
        why=of['why'],
      )
      for of in frame.to_dicts()
    ]

  def _predictions(self, ranked: Ranked, row: int) -> Predictions:
    """Return what was predicted for one request, by number."""
    one, m = slice(row, row + 1), self._config.reasoner.role_events
    listed: dict[str, Any] = dict(
      item=self._items.numbers_at(ranked.ranking.item[one]),
      score=ranked.ranking.score[one],
      terms=ranked.ranking.terms[one],
    )
    if ranked.worlds is None:  # one world, which names nothing
      none = np.full((1, 1, m), -1)
      return Predictions(
        **listed,
        roles=none[0],
        candidates=none,
        forced_role=none,
        removed=none > 0,
        forced_intent=none[..., 0],
      )
    worlds = ranked.worlds[row]
    role, removed, intent = worlds.interventions
    return Predictions(
      **listed,
      roles=worlds.roles[:1],
      candidates=worlds.candidates[None],
      forced_role=role[None],
      removed=removed[None],
      forced_intent=intent[None],
    )

  def _log_of(self, reader: Reader) -> InteractionLog:
    """Return a log of one user's history, items by number."""
    history = reader.history
    return InteractionLog(
      users=pl.Series('user_id', [0]),
      items=self._all_ids(),
      offsets=np.array([0, len(history.item)]),
      item=history.item,
      event=history.event,
      timestamp=history.timestamp,
      count=history.count,
    )

  def _all_ids(self) -> pl.DataFrame:
    if self._ids is None or len(self._ids) < len(self._items.ids):
      self._ids = pl.DataFrame({'item_id': self._items.ids})
    return self._ids

  def _all_opens(self) -> Opens:
    if len(self._opens.share) < len(self._items.ids):
      self._opens = self._opens.padded(2 * len(self._items.ids))
    return self._opens
