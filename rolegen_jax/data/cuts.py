"""Where the splits by time are cut: shares of the dormant occasions, and what ties make of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rolegen_jax.config import DataConfig


class OccasionTimes(NamedTuple):
  """Times of occasions, from which the cuts between the splits are taken.

  Those of several logs are concatenated.
  """

  dormant: np.ndarray  # int64 [.], seconds, of D1 and D2 occasions
  all_cohorts: np.ndarray  # int64 [.], seconds, of all occasions with a target


class Cuts(NamedTuple):
  """Last timestamps of two splits, seconds.

  Occasions up to `train` are training, later ones up to `valid` validation, all after that test.
  """

  train: int
  valid: int


def find_cuts(times: OccasionTimes, data: DataConfig) -> Cuts | None:
  """Return the cuts between the splits, or None without occasions.

  They are quantiles over DORMANT occasions, because those are what is measured. A log without any
  is cut at quantiles over all occasions. Where many occasions share a time and a quantile leaves a
  split empty, they lie at other times.
  """
  ordered = np.sort(times.dormant if len(times.dormant) else times.all_cohorts)
  if len(ordered) == 0:
    return None

  def cut(held_out: float) -> int:
    """Return the time of the last occasion outside the latest share `held_out`.

    A sale day that holds more than the share is wholly on the side that leaves the cut nearer.
    """
    n_before = int(len(ordered) * (1 - held_out))
    if not n_before:
      return int(ordered[0] - 1)
    time = ordered[n_before - 1]
    first, end = (int(np.searchsorted(ordered, time, side)) for side in ('left', 'right'))
    is_sale = first > 0 and end - first > held_out * len(ordered)
    return int(ordered[first - 1] if is_sale and n_before - first < end - n_before else time)

  cuts = Cuts(
    train=cut(data.test_fraction + data.valid_fraction),
    valid=cut(data.test_fraction),
  )
  if ordered[0] <= cuts.train < cuts.valid < ordered[-1]:
    return cuts
  return _cuts_between_ties(times, ordered, data) or cuts


def _cuts_between_ties(times: OccasionTimes, ordered: np.ndarray, data: DataConfig) -> Cuts | None:
  """Return cuts that leave no split empty: test near its wanted share, the others near theirs.

  ordered: the times that shares are counted over, sorted. Fewer than three distinct times of
  dormant occasions leave a split to those of the others; with two times in all, nothing is left for
  validation. None where all times are one.
  """
  edges = np.unique(ordered)
  if len(edges) < 3:
    edges = np.unique(times.all_cohorts)
  if len(edges) < 2:
    return None
  until = np.searchsorted(ordered, edges, side='right') / len(ordered)

  def nearest(candidates: np.ndarray, wanted: float) -> int:
    """Return the candidate edge up to which the share is nearest to `wanted`, the last of equals.

    Those with a share on both sides come first, then those with one to be tested on.
    """
    share = until[candidates]
    good = [preferred for preferred in ((share > 0) & (share < 1), share < 1) if preferred.any()]
    candidates = candidates[good[0]] if good else candidates
    distance = np.abs(until[candidates] - wanted)
    return int(candidates[distance == distance.min()][-1])

  if len(edges) == 2:
    return Cuts(int(edges[0]), int(edges[0]))
  valid = nearest(np.arange(1, len(edges) - 1), 1 - data.test_fraction)
  # Of what is not test, training has the wanted share.
  of_rest = 1 - data.valid_fraction / (1 - data.test_fraction)
  train = nearest(np.arange(valid), until[valid] * of_rest)
  return Cuts(int(edges[train]), int(edges[valid]))
