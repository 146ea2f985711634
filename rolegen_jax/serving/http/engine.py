"""Answers batches of requests on the device, and remembers users, items and worlds in between.

One thread calls it, so that batches and changes of the catalogue take turns: an answer is of one
version, and whatever was acknowledged before a batch began is true of it.

Shapes: B requests of a batch, K items of a list, C slots.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax.data.batches import Examples
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.trending import DAY
from rolegen_jax.models.functional import Params
from rolegen_jax.reasoning.looks import Looked
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.serving.http import answers
from rolegen_jax.serving.http.encoded import Encoded
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.programs import Programs, Worlds
from rolegen_jax.serving.http.rows import Reader, examples, known
from rolegen_jax.serving.http.schema import Answer
from rolegen_jax.serving.http.trends import Trends
from rolegen_jax.serving.http.users import History, Users
from rolegen_jax.serving.http.worlds import WorldCache

WORLD_BYTES = 256 << 20
ALONE, REASONED = 'alone', 'reasoned'  # kinds of requests, which batches do not mix


class NotANumber(Exception):
  """The models gave no score to items that they listed."""


@dataclasses.dataclass(frozen=True)
class Query:
  """A request, checked."""

  user: int | None  # index; None = nobody in the log
  events: History | None  # in place of a user's
  time: int  # seconds UTC
  k: int
  where: dict[str, Any]
  exclude: np.ndarray  # int64, item numbers
  explain: bool
  worlds: bool
  reasoning: Literal['online', 'cached', 'off']
  # When nobody waits for reasons any more, by `time.monotonic`; None = whenever.
  reasoning_deadline: float | None = None

  @property
  def kind(self) -> str:
    """ALONE or REASONED."""
    return ALONE if self.reasoning == 'off' else REASONED


@dataclasses.dataclass(frozen=True)
class Trained:
  """What of a trained run the server needs."""

  rolegen: RoleGen
  params: dict[str, Params]  # of both models; {} where nothing is reasoned
  alone: Params  # of the backbone that stands alone
  log: InteractionLog
  excitation: Excitation
  bars_history: bool  # whether lists leave out what the user's history holds
  mesh: Mesh


# (place in the batch, answer or what went wrong, whether a better one may follow)
Report = Callable[[int, Answer | Exception, bool], None]
Observe = Callable[[str, float], None]  # phase, its seconds


class Engine:
  """The models over live users and items."""

  def __init__(
    self,
    trained: Trained,
    items: Items,
    sizes: tuple[int, ...],
    top: int,
    cache_bytes: int,
    observe: Observe,
    trends: Trends | None = None,
  ):
    """sizes: of batches, see `programs.batch_sizes`. top: the most items of an answer.

    cache_bytes: of encoded histories on each device. trends: None = nothing is known to trend.
    """
    self.trained, self.items, self.trends = trained, items, trends
    self.users = Users(trained.log, trained.rolegen.config.backbone.context)
    self.worlds = WorldCache(WORLD_BYTES)
    self.top, self.observe = top, observe
    self.hits = self.misses = 0  # of `worlds`
    t = trained
    self.programs = Programs(t.rolegen, t.params, t.alone, t.mesh, sizes, top, cache_bytes)
    self.encoded = Encoded(self.programs, items, t.rolegen.config.backbone.context)
    self.lists = answers.Lists(t.rolegen.config, items, t.excitation, t.bars_history)

  @property
  def reasons(self) -> bool:
    """Whether there is a reasoner."""
    return bool(self.trained.params)

  def warm(self) -> int:
    """Compile every program for every size; return how many."""
    nobody = Reader(0, self.users.history(0), self.users.latest + 1)
    with self.items.tables.serving() as trie:
      return self.programs.warm(trie, lambda size: self._examples([nobody], size)[0])

  def append(self, user_id: int | str, events: History) -> int:
    """Append events to a user; return how many rows are kept. Raises Refused."""
    kept, new = self.users.append(user_id, events)
    if self.trends:
      self.trends.add(new)
    return kept

  def run(self, queries: list[Query], report: Report) -> None:
    """Answer a batch of one kind; `report` gets an answer of each, or what went wrong with it."""
    try:
      if self.trends:
        started = time.monotonic()
        self.trends.refresh(max(query.time for query in queries) // DAY)
        self.observe('trends', time.monotonic() - started)
      with self.items.tables.serving() as trie:
        batch = _Batch(self, trie, queries)
        if queries[0].kind == ALONE:
          batch.report(batch.rank(None), 'off', report, range(len(queries)))
          return
        batch.reason(report)
    except Exception:
      self.encoded.clear()
      raise

  def _examples(self, readers: list[Reader], size: int) -> tuple[Examples, list[bytes]]:
    t = self.trained
    return examples(readers, self.items, t.excitation, t.rolegen.config, size)


class _Batch:
  """One batch on its way."""

  def __init__(self, engine: Engine, trie: Any, queries: list[Query]):
    self._engine, self._trie, self._queries = engine, trie, queries
    started = time.monotonic()
    self._readers = [self._reader(query) for query in queries]
    self._size = engine.programs.size_of(len(queries))
    self._rows, self._keys = engine._examples(self._readers, self._size)
    # Worlds are of the day that they were rolled out for, as what trends is.
    self._worlds = [(key, query.time // DAY) for key, query in zip(self._keys, queries)]
    self._whose = [key if q.user is None else q.user for q, key in zip(queries, self._keys)]
    self._allow_C, self._masked = self._masks()
    engine.observe('assemble', time.monotonic() - started)

  def _reader(self, query: Query) -> Reader:
    history = query.events
    if history is None:
      assert query.user is not None  # one of the two is there
      history = self._engine.users.history(query.user)
    history = known(history.before(query.time), self._engine.items)
    return Reader(query.user or 0, history, query.time)

  def _masks(self) -> tuple[np.ndarray, bool]:
    """Return the bits uint32 [C] of the rows that may get each slot, and whether any may not."""
    items, allow_C = self._engine.items, np.zeros(self._engine.items.tables.capacity, np.uint32)
    asks = [bool(query.where) or len(query.exclude) > 0 for query in self._queries]
    self._has_any = [len(items) > 0] * len(asks)
    if not any(asks):
      return allow_C, False
    for row, query in enumerate(self._queries):
      allowed = items.allowed_slots(query.where, query.exclude)
      self._has_any[row] = bool((allowed & items.tables.listed).any())
      allow_C |= allowed.astype(np.uint32) << np.uint32(row)
    return allow_C, True

  def rank(self, worlds: list[Worlds] | None) -> answers.Ranked:
    """Return the lists of all rows. worlds: of each query; None = the backbone alone."""
    slot, said = self._encoded(worlds is None), None
    started, engine = time.monotonic(), self._engine
    if worlds is not None:
      filled = [*worlds, *[worlds[-1]] * (self._size - len(worlds))]
      said = jax.tree.map(lambda *rows: np.stack(rows), *(each.said for each in filled))
      said = answers.with_items(said, lambda x: engine.items.slots(x).astype(np.int32))
    ranking = engine.programs.rank(self._trie, self._rows, slot, said, self._allow_C, self._masked)
    engine.observe('rank', time.monotonic() - started)
    return answers.Ranked(self._readers, self._queries, slot, ranking, worlds)

  def _encoded(self, is_alone: bool) -> np.ndarray:
    """Return in which slots the histories are encoded, int32 [B]; encode what is not yet."""
    started, name = time.monotonic(), 'alone' if is_alone else 'reasoned'
    slot = self._engine.encoded.of(name, self._trie, self._whose, self._readers)
    self._engine.observe('encode', time.monotonic() - started)
    return slot[np.minimum(np.arange(self._size), len(slot) - 1)]

  def reason(self, report: Report) -> None:
    """Answer with reasons; before that without, or only so, where one may not wait so long."""
    engine, now = self._engine, time.monotonic()
    rows = range(len(self._queries))
    is_cached = [query.reasoning == 'cached' for query in self._queries]
    worlds: list[Any] = [engine.worlds.get(self._worlds[r]) if is_cached[r] else None for r in rows]
    missing = [row for row in rows if worlds[row] is None]
    engine.hits += len(rows) - len(missing)
    engine.misses += sum(is_cached[row] for row in missing)
    hurried = {r: end for r in missing if (end := self._queries[r].reasoning_deadline) is not None}
    late = [row for row, end in hurried.items() if end <= now]
    if hurried:
      alone = self.rank(None)
      self.report(alone, 'late', report, late)
      self.report(alone, 'late', report, [r for r in hurried if r not in late], is_last=False)
    online = [row for row in missing if row not in late]
    for row, rolled in zip(online, self._roll_out(online) if online else []):
      worlds[row] = rolled
    some = next((found for found in worlds if found is not None), None)
    if some is None:  # all are late
      return
    ranked = self.rank([some if found is None else found for found in worlds])
    self.report(ranked, 'online', report, online)
    self.report(ranked, 'cached', report, [row for row in rows if row not in missing])

  def _roll_out(self, missing: list[int]) -> list[Worlds]:
    """Return the worlds of some rows, and keep them."""
    started, engine = time.monotonic(), self._engine
    size = engine.programs.size_of(len(missing))
    row = np.array([missing[min(i, len(missing) - 1)] for i in range(size)])
    rows = jax.tree.map(lambda x: x[row], self._rows)
    found = answers.by_number(engine.programs.reason(self._trie, rows), engine.items)
    rolled = [jax.tree.map(lambda x, i=i: x[i].copy(), found) for i in range(len(missing))]
    for i, worlds in zip(missing, rolled):
      engine.worlds.put(self._worlds[i], worlds)
    engine.observe('reason', time.monotonic() - started)
    return rolled

  def _slots(self, item_BxK: np.ndarray) -> np.ndarray:
    """Return the slots of items by number, as many rows as the batch has."""
    slots = self._engine.items.slots(item_BxK).astype(np.int32)
    return slots[np.minimum(np.arange(self._size), len(slots) - 1)]

  def _opens(self, item_BxK: np.ndarray) -> np.ndarray | None:
    """Return what looks at listed items would open for these users; None = nothing says so."""
    engine = self._engine
    if not engine.programs.knows_kinds:
      return None
    started = time.monotonic()
    attribute = engine.lists.attributes(item_BxK)
    attribute = attribute[np.minimum(np.arange(self._size), len(attribute) - 1)]
    listed = Looked(self._slots(item_BxK), attribute)
    opens = engine.programs.opens(self._trie, self._rows, listed)[: len(item_BxK)]
    engine.observe('opens', time.monotonic() - started)
    return opens

  def report(
    self,
    ranked: answers.Ranked,
    mode: str,
    report: Report,
    rows: Sequence[int],
    is_last: bool = True,
  ) -> None:
    """Report the answers of some rows, with reasons where they are asked for."""
    if not rows:
      return
    engine = self._engine
    item, log_prob = engine.lists.listed(ranked)
    opens = self._opens(item) if ranked.worlds is not None else None
    lists = engine.lists.shown(item, log_prob, opens)
    why = [row for row in rows if self._queries[row].explain]
    explained = None
    if why and ranked.worlds is not None:
      started = time.monotonic()
      explained = engine.programs.explain(self._trie, self._rows, self._slots(lists.item))
      engine.observe('explain', time.monotonic() - started)
    for row in rows:
      # Comparisons with what is no number are false: then nothing is found at all.
      finds = (ranked.ranking.item[row] >= 0).any() or not self._has_any[row]
      if not finds or not np.isfinite(lists.log_prob[row][lists.item[row] >= 0]).all():
        engine.encoded.forget(int(ranked.slot[row]))
        report(row, NotANumber('the models gave no score to what they listed'), is_last)
        continue
      reasons = engine.lists.reasons(ranked, lists, explained, row) if row in why else None
      answer = engine.lists.answer(lists, row, self._queries[row], mode, reasons)
      answer.reasoned = engine.lists.reasoned(ranked, row)
      report(row, answer, is_last)
