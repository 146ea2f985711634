"""Counting alone: the structural equations' two counted kernels as one score, nothing trained.

  score(j) = (w T(j) + P(j)) / (w + 1)

T: what users turn to around the items of the context (`features/item_transitions.py`, with the
kernel of the run), as a share.
P: the share of the coarse code of j, times that of j in it by training events. A coarse code's
share is its intensity to a power, by the counted kernel of a self-exciting process: the equation of
intent of `models/intent.py` at the constants where its training starts, with one exponential decay
and counts over all training users (out of fold is for what is trained on the same users).

Shapes: O occasions, n events of a history, I items, K coarse codes, R coarse codes kept per item.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from rolegen_jax.config import EVENT_NAMES
from rolegen_jax.data.batches import Trajectories
from rolegen_jax.features.excitation import strongest_codes
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel
from rolegen_jax.models import intent
from rolegen_jax.models.evidence import PURCHASE

_GAIN = np.exp([intent.EVENT_GAIN[name] for name in EVENT_NAMES])


class Counting:
  """The counts, and the score of every item for given histories."""

  def __init__(
    self,
    shift: InterestShift,
    kernel: Kernel,
    table_IxI: sp.csr_array,
    events_I: np.ndarray,
    coarse_codes: int,
  ):
    """Take the counts over training events.

    table_IxI: `Transitions.table` of the kernel. events_I: how often users acted on each item.
    coarse_codes: R.
    """
    self._coarse_I, self._kernel, self._table_IxI = shift.coarse, kernel, table_IxI
    self._code, self._weight, self._shift = strongest_codes(
      *shift.total, shift.coarse, coarse_codes
    )
    self._codes = shift.shift_KxK.shape[0]
    events_K = np.bincount(self._coarse_I, events_I, self._codes)
    self._share_I = events_I / np.maximum(events_K, 1)[self._coarse_I]
    self._known_K = events_K > 0

  def scores(
    self, history: Trajectories, now_O: np.ndarray, tau: float, transitions: float, power: float
  ) -> np.ndarray:
    """Return the score of every item, fp64 [O, I], which sums to one over items.

    history: [O, n], right-aligned, strictly before `now_O`. tau: seconds in which an event fades to
    1 / e in P. transitions: w. power: that of the intensity. Without a transition T is 0.
    """
    row, column = np.nonzero(history.item >= 0)
    item, event = history.item[row, column], history.event[row, column]
    time = history.timestamp[row, column]
    fade = np.exp(-(now_O[row] - time) / tau)
    since = history.item.shape[1] - 1 - column
    weight = self._kernel.context_weights(since, history.timestamp[row, -1] - time)
    shape = (len(history.item), len(self._coarse_I))
    query_OxI = sp.csr_matrix((weight, (row, item)), shape=shape)
    turned_to = (query_OxI @ self._table_IxI).toarray()
    turned_to /= np.maximum(turned_to.sum(1, keepdims=True), 1e-12)
    share_OxK = self._intensity(row, item, event, fade, len(history.item)) ** power * self._known_K
    share_OxK /= np.maximum(share_OxK.sum(1, keepdims=True), 1e-300)
    of_code = share_OxK[:, self._coarse_I] * self._share_I
    return (transitions * turned_to + of_code) / (transitions + 1)

  def _intensity(
    self, row: np.ndarray, item: np.ndarray, event: np.ndarray, fade: np.ndarray, rows: int
  ) -> np.ndarray:
    """Return the intensity of every coarse code, fp64 [O, K], from the events [E] of all rows."""

    def by_code(code: np.ndarray, value: np.ndarray) -> np.ndarray:
      place = (row.reshape(-1, *[1] * (code.ndim - 1)) * self._codes + code).ravel()
      return np.bincount(place, value.ravel(), rows * self._codes).reshape(rows, self._codes)

    shift = self._shift[item]
    kick = self._weight[item] + intent.OPENS * np.maximum(shift, 0)
    excited = by_code(self._code[item], (fade * _GAIN[event])[:, None] * kick)
    damped = by_code(self._code[item], -intent.DRAWS * fade[:, None] * np.minimum(shift, 0))
    satisfied = fade * intent.SATISFIES * (event == PURCHASE)
    damped += by_code(self._coarse_I[item], satisfied)
    return (intent.BASE / self._codes + excited) * np.exp(-damped)
