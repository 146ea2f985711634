"""Which rows an update trains on: all that hold something new, and some of the others (replay)."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Recent:
  """Rows after a time, and a sample of the others, so that what was learned is not forgotten."""

  since: int  # seconds; a row whose latest event is later is recent
  replay: float  # share of the chosen rows that are not recent, from 0 to below 1
  seed: int

  def pick(self, latest_N: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows to train on, sorted, int64 [n].

    latest: the time of the latest event of each row. All rows where none is recent.
    """
    is_recent = latest_N > self.since
    recent, others = np.flatnonzero(is_recent), np.flatnonzero(~is_recent)
    if not len(recent):
      return others
    wanted = round(len(recent) * self.replay / (1 - self.replay))
    sample = np.random.default_rng(self.seed).permutation(len(others))[:wanted]
    return np.sort(np.concatenate([recent, others[sample]]))
