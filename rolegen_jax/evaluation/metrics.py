"""Ranking metrics over (occasion, target item) pairs, with bootstrap intervals.

Each evaluated occasion has ONE ranked list; an occasion may have several targets, and every
(occasion, target) pair counts once.

  HI@k       hit rate: the share of pairs whose target is among the first k of the list
  NDCG@k     the mean over pairs of 1 / log2(1 + rank) within k
  MRR        the mean over pairs of 1 / rank
  HS@k(Ll)   the share of pairs where SOME item of the first k has the target's first l codes

Intervals resample USERS: the pairs of one occasion share a list, and the occasions of one user
share a taste and most of a history. They say how much a figure would vary with other users, for
systems trained as they were: the seed of training is not among what is drawn (docs/quality.md has
the spread over seeds). Rankings are lists, not scores: whoever makes them breaks ties,
deterministically.

Shapes: O evaluated occasions, K list length, T pairs, U users, I catalogue items, L codes per item,
R resamples.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rolegen_jax.config import COHORTS, EvaluationConfig
from rolegen_jax.data.log import ranges
from rolegen_jax.data.occasions import Occasions

DORMANT = ('D1', 'D2')
# Groups of users, and of some the targets of one kind: see `Pairs.slice`.
SLICES = (
  *('D1', 'D2', 'dormant', 'ACTIVE', 'all'),
  *('dormant seen', 'dormant new', 'dormant cold', 'all cold'),
)
_CHUNK = 100  # resamples drawn at once, so that the weights stay small


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The ground truth of the evaluated occasions."""

  occasion: np.ndarray  # int32 [T], row of the ranked lists
  user: np.ndarray  # int32 [T], whose occasion it is
  item: np.ndarray  # int32 [T]
  seen: np.ndarray  # bool [T], the user engaged with it before
  cohort: np.ndarray  # int8 [T], index in config.COHORTS
  occasions: int  # O
  # bool [T], the item has no training event of any user; None = not known, no slice has cold pairs
  cold: np.ndarray | None = None

  @classmethod
  def of(
    cls, occasions: Occasions, rows: np.ndarray, train_events: np.ndarray | None = None
  ) -> Pairs:
    """Return the pairs of the occasions `rows` (int [O], indices into `occasions`), in order.

    train_events: of `Occasions.train_events`, int [I]; tells which targets are cold.
    """
    rows = np.asarray(rows, np.int64)
    first = occasions.target_offsets[rows]
    sizes = occasions.target_offsets[rows + 1] - first
    source, owner = ranges(first, sizes)
    item = occasions.target[source]
    return cls(
      occasion=owner.astype(np.int32),
      user=occasions.user[rows][owner],
      item=item,
      seen=occasions.target_seen[source],
      cohort=occasions.cohort[rows][owner],
      occasions=len(rows),
      cold=None if train_events is None else train_events[item] == 0,
    )

  def slice(self, name: str) -> np.ndarray:
    """Return which pairs belong to one of SLICES, bool [T].

    A slice is a group of users (a cohort, dormant or all), then perhaps a kind of target: seen or
    new to the user, or cold: new to everybody, in training.
    """
    group, _, kind = name.partition(' ')
    groups = dict(all=COHORTS, dormant=DORMANT)
    chosen = [COHORTS.index(cohort) for cohort in groups.get(group, (group,))]
    cold = np.zeros_like(self.seen) if self.cold is None else self.cold
    kinds = {'': np.ones_like(cold), 'seen': self.seen, 'new': ~self.seen, 'cold': cold}
    return np.isin(self.cohort, chosen) & kinds[kind]


def ranks(ranked_OxK: np.ndarray, pairs: Pairs) -> np.ndarray:
  """Return the 1-based rank of each target in its occasion's list, 0 if unlisted, int32 [T].

  `ranked_OxK` is -1 past its end.
  """
  return _first(ranked_OxK[pairs.occasion] == pairs.item[:, None])


def prefix_ranks(
  ranked_OxK: np.ndarray, pairs: Pairs, codes_IxL: np.ndarray, level: int
) -> np.ndarray:
  """Return the 1-based rank of the first item with the target's first `level` codes, int32 [T].

  0 if there is none.
  """
  if not 1 <= level <= codes_IxL.shape[1]:
    raise ValueError(f'level={level}: must be 1 to {codes_IxL.shape[1]}')
  _, prefix_I = np.unique(codes_IxL[:, :level], axis=0, return_inverse=True)
  prefix_I = prefix_I.ravel()
  listed_TxK = ranked_OxK[pairs.occasion]
  return _first((listed_TxK >= 0) & (prefix_I[listed_TxK] == prefix_I[pairs.item][:, None]))


def _first(match_TxK: np.ndarray) -> np.ndarray:
  return np.where(match_TxK.any(1), match_TxK.argmax(1) + 1, 0).astype(np.int32)


def hit(rank_T: np.ndarray, k: int) -> np.ndarray:
  """Return 1 where the rank is 1..k, else 0, float64 [T]."""
  return ((rank_T >= 1) & (rank_T <= k)).astype(np.float64)


def ndcg(rank_T: np.ndarray, k: int) -> np.ndarray:
  """Return 1 / log2(1 + rank) within k, else 0, float64 [T].

  One item per pair is relevant, so the ideal gain is 1.
  """
  return hit(rank_T, k) / np.log2(1 + np.maximum(rank_T, 1))


def reciprocal_rank(rank_T: np.ndarray) -> np.ndarray:
  """Return 1 / rank, 0 if unlisted, float64 [T]."""
  return (rank_T > 0) / np.maximum(rank_T, 1)


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over pairs with its bootstrap 95 % interval, and over how many pairs and users."""

  mean: float
  low: float
  high: float
  pairs: int
  users: int


def bootstrap(
  values_T: np.ndarray, user_T: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Interval:
  """Return the mean and the percentile 95 % interval from resampling users with replacement.

  A user who is drawn brings all pairs of `user_T` that are theirs. Without a pair all three figures
  are NaN. Efron & Tibshirani, 1993.
  """
  return _bootstrap(values_T[:, None], user_T, resamples, seed)[0]


def _bootstrap(
  values_TxM: np.ndarray, user_T: np.ndarray, resamples: int, seed: int
) -> list[Interval]:
  """Return the interval of each of M metrics; all of them see the same resamples."""
  n_metrics = values_TxM.shape[1]
  users, owner_T = np.unique(user_T, return_inverse=True)
  n = len(users)
  if n == 0:
    return [Interval(math.nan, math.nan, math.nan, 0, 0)] * n_metrics
  sums_UxM = np.zeros((n, n_metrics))
  np.add.at(sums_UxM, owner_T, values_TxM)
  sizes_U = np.bincount(owner_T, minlength=n).astype(np.float64)
  rng = np.random.default_rng(seed)
  chunks = []
  for start in range(0, resamples, _CHUNK):
    drawn_RxU = rng.integers(n, size=(min(_CHUNK, resamples - start), n))
    # How often each user is drawn: sums over draws become products of matrices.
    flat = (np.arange(len(drawn_RxU))[:, None] * n + drawn_RxU).ravel()
    times_RxU = np.bincount(flat, minlength=drawn_RxU.size).reshape(-1, n).astype(np.float64)
    chunks.append((times_RxU @ sums_UxM) / (times_RxU @ sizes_U)[:, None])
  low_M, high_M = np.percentile(np.concatenate(chunks), (2.5, 97.5), axis=0)
  return [
    Interval(float(mean), float(low), float(high), len(values_TxM), n)
    for mean, low, high in zip(values_TxM.mean(0), low_M, high_M)
  ]


def paired_difference(
  a_T: np.ndarray, b_T: np.ndarray, user_T: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Interval:
  """Return the interval of mean(a - b) of two systems on the SAME pairs.

  Each resample draws the users once for both.
  """
  if a_T.shape != b_T.shape:
    raise ValueError(
      f'two systems must be scored on the same pairs, got {a_T.shape} and {b_T.shape}'
    )
  return bootstrap(a_T - b_T, user_T, resamples, seed)


def verdict(difference: Interval) -> str:
  """Return 'beats', 'does not beat' (significantly worse) or 'undecided' (0 is inside)."""
  if difference.low > 0:
    return 'beats'
  return 'does not beat' if difference.high < 0 else 'undecided'


def evaluate(
  ranked_OxK: np.ndarray,
  pairs: Pairs,
  config: EvaluationConfig,
  codes_IxL: np.ndarray | None = None,
) -> dict[str, dict[str, Interval]]:
  """Return slice -> metric -> Interval, over users, for every slice that has a pair.

  Metrics are HI@k and NDCG@k for k in config.ks, MRR (over the list given), and with codes
  HS@1(Ll), HS@10(Ll) for every level. A list shorter than k misses what it has no place for. Raises
  ValueError when the lists are not one per occasion.
  """
  if ranked_OxK.ndim != 2 or len(ranked_OxK) != pairs.occasions:
    raise ValueError(
      f'ranked lists have shape {ranked_OxK.shape}: must be [{pairs.occasions} occasions, K]'
    )
  rank_T = ranks(ranked_OxK, pairs)
  values = {f'HI@{k}': hit(rank_T, k) for k in config.ks}
  values |= {f'NDCG@{k}': ndcg(rank_T, k) for k in config.ks if k > 1}
  values['MRR'] = reciprocal_rank(rank_T)
  levels = 0 if codes_IxL is None else codes_IxL.shape[1]
  for level in range(1, 1 + levels):
    assert codes_IxL is not None
    prefix_rank_T = prefix_ranks(ranked_OxK, pairs, codes_IxL, level)
    values |= {f'HS@{k}(L{level})': hit(prefix_rank_T, k) for k in (1, 10)}
  values_TxM = np.stack(list(values.values()), axis=1)
  table = {}
  for name in SLICES:
    mask_T = pairs.slice(name)
    if mask_T.any():
      intervals = _bootstrap(values_TxM[mask_T], pairs.user[mask_T], config.bootstrap, config.seed)
      table[name] = dict(zip(values, intervals))
  return table


def compare(
  a_OxK: np.ndarray, b_OxK: np.ndarray, pairs: Pairs, config: EvaluationConfig, k: int = 10
) -> dict[str, Interval]:
  """Return slice -> paired difference of HI@k, lists `a` minus lists `b`.

  For every slice that has a pair; the interval resamples users, the same for both.
  """
  a_T, b_T = (hit(ranks(lists, pairs), k) for lists in (a_OxK, b_OxK))
  differences = {}
  for name in SLICES:
    mask_T = pairs.slice(name)
    if mask_T.any():
      differences[name] = paired_difference(
        a_T[mask_T], b_T[mask_T], pairs.user[mask_T], config.bootstrap, config.seed
      )
  return differences
