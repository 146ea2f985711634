"""Recommendations for many users: a table that is written in parts, and continued.

The columns are those of `explained.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import NamedTuple

import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import ConfigError
from rolegen_jax.data.examples import inference_examples
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.models.functional import Params
from rolegen_jax.reasoning import looks
from rolegen_jax.reasoning.batched import Batched, Beside
from rolegen_jax.reasoning.explain import explaining
from rolegen_jax.reasoning.predict import Predictions, predicting
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.serving.audience import choose_users
from rolegen_jax.serving.explained import explained_table
from rolegen_jax.serving.history_filter import without_history
from rolegen_jax.serving.parts import Parts
from rolegen_jax.serving.slate import Exposure, Opened, slates

PART = 16_384  # users whose lists are in memory at a time
NAMED = 10  # users who got nothing, at most


class Written(NamedTuple):
  """What was written."""

  users: int  # who got something
  recommendations: int


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
  """A trained run, as far as it recommends."""

  rolegen: RoleGen
  params: dict[str, Params]
  key: str  # of what was trained: lists by other models are not continued
  log: InteractionLog
  excitation: Excitation
  trie: Trie
  mesh: Mesh
  bars_history: bool = False  # whether lists leave out what the users' histories hold

  def write(self, users: str, output: str | os.PathLike, top: int = 10) -> Written:
    """Write the table of the `top` items of each user to `output`.

    users: all, dormant, or a file of user ids. The same call continues one that was cut off.
    Raises DataError naming the line of an unknown id.
    """
    config, log = self.rolegen.config, self.log
    if top > config.backbone.beam:
      raise ConfigError(f'--top={top}: must be at most backbone.beam={config.backbone.beam}')
    now = int(log.timestamp.max()) + 1
    chosen = choose_users(log, users, config.data, now)
    exposure = Exposure(config.serving.exposure_penalty, log.items.height, top)
    short = _Short(log, top)
    of_parts = [chosen[first : first + PART] for first in range(0, len(chosen), PART)]
    with Parts(output, self._key(chosen, top), len(of_parts)) as parts:
      programs = _Programs.of(self, top)
      for number, some in enumerate(of_parts):
        frame = parts.read(number)
        if frame is None:
          say(f'part {number + 1} of {len(of_parts)}: {len(some)} users')
          frame = self._of_users(some, now, programs, exposure)
          parts.write(number, frame)
        elif exposure.penalty:
          exposure.add(log.items['item_id'].search_sorted(frame['item_id']).to_numpy())
        short.count(some, frame)
      parts.join()
    short.say()
    return Written(len(chosen) - short.without, short.recommendations)

  def _of_users(
    self, users: np.ndarray, now: int, programs: _Programs, exposure: Exposure
  ) -> pl.DataFrame:
    """Return the table of some users, as of a time."""
    config, log = self.rolegen.config, self.log
    table = inference_examples(
      log,
      users,
      log.offsets[users + 1],
      np.full(len(users), now),
      config.reasoner.role_events,
      config.reasoner.candidates,
      self.excitation,
    )
    predictions = Predictions(*programs.predict.over(table, 'recommend', np.bool_(True)))
    item, log_prob = predictions.item, predictions.score
    if self.bars_history:
      item, log_prob = without_history(item, log_prob, log, table.user, table.end)
    if programs.look:
      listed = looks.Looked.of(item, self.excitation.attribute_IxA)
      share = programs.look.over(Beside(table, listed), 'what looks would open')
      opened = Opened.for_users(share, item)
    else:
      opened = Opened.at_large(self.excitation.opens, item)
    shown = slates(item, log_prob, opened, config.serving.exploration_weight, exposure)
    why = programs.explain.over(Beside(table, shown.item), 'explanations')
    return explained_table(log, table, predictions, shown, why)

  def _key(self, chosen: np.ndarray, top: int) -> str:
    """Return the digest of all that decides the table."""
    config, code = self.rolegen.config, distributed.code_digest()
    decides = self.key, config.serving, config.backbone.beam, self.bars_history, top, PART, code
    content = hashlib.sha256(repr(decides).encode())
    content.update(chosen.tobytes())
    return content.hexdigest()[:16]


class _Programs(NamedTuple):
  """What runs on the device for every part."""

  predict: Batched
  look: Batched | None  # None: what looks open is counted for everybody alike
  explain: Batched

  @classmethod
  def of(cls, r: Recommender, top: int) -> _Programs:
    trie = jax.device_put(r.trie, sharding.sharding(r.mesh))  # once for all three
    run = r.rolegen, r.params, trie, r.mesh
    look = looks.looking(*run) if looks.are_known(r.params) else None
    return cls(predicting(*run, r.rolegen.config.backbone.beam), look, explaining(*run, top))


class _Short:
  """Who got fewer items than were asked for."""

  def __init__(self, log: InteractionLog, top: int):
    self._log, self._top = log, top
    self.recommendations = self.without = self._fewer = 0
    self._named: list[str] = []

  def count(self, users: np.ndarray, frame: pl.DataFrame) -> None:
    """Count the users of a part and their table."""
    n_items = frame.group_by('user_id').len()
    ids = self._log.users.gather(users)
    nothing = ids.filter(~ids.is_in(n_items['user_id'].implode()))
    self.recommendations += frame.height
    self.without += len(nothing)
    self._fewer += len(users) - int((n_items['len'] == self._top).sum())
    self._named += [str(user) for user in nothing[: NAMED - len(self._named)]]

  def say(self) -> None:
    """Say how many there were, and name those who got none."""
    if self._fewer:
      ids = ', '.join(self._named)
      none = f', {self.without} of them none: {ids}' if self.without else ''
      say(f'{self._fewer} users got fewer than {self._top} items{none}; raise backbone.beam')
