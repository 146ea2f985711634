"""Traits that the simulators share: how often shoppers come and buy, how popular items are."""

from __future__ import annotations

import numpy as np

from rolegen_jax.config import SimulatorConfig
from rolegen_jax.simulator.rules import CommonRules, Fitted

NEVER_BUYS, DORMANT, ACTIVE = range(3)  # kinds of users


def draw_activity(
  rng: np.random.Generator, config: SimulatorConfig, rules: CommonRules, fitted: Fitted
) -> dict[str, np.ndarray]:
  """Draw every user's kind, ceiling of the purchase hazard, visits per day, events per visit."""
  users = config.users
  never_draw_U, dormant_draw_U = rng.random(users), rng.random(users)
  buyer_kind_U = np.where(dormant_draw_U < rules.dormant_share, DORMANT, ACTIVE)
  kind_U = np.where(never_draw_U < fitted.never_share, NEVER_BUYS, buyer_kind_U)
  rate_U = fitted.purchase_rate * np.exp(fitted.purchase_spread * rng.standard_normal(users))
  rate_of_kind = np.array([0, rules.dormant_rate, 1])
  events_mean = fitted.events_mean * config.events_per_user_scale
  multiplier_U = np.where(kind_U == DORMANT, rules.dormant_events, 1)
  dormant_share = (1 - fitted.never_share) * rules.dormant_share
  # The mean over users stays the fitted one.
  multiplier_U = multiplier_U / (1 + dormant_share * (rules.dormant_events - 1))
  gamma_U = rng.gamma(fitted.events_shape, events_mean / fitted.events_shape, users)
  events_U = np.maximum(multiplier_U * gamma_U, 1)
  session_noise_U = np.exp(0.4 * rng.standard_normal(users))
  session_U = np.clip(fitted.session_events * session_noise_U, 1, events_U)
  return dict(
    rate_U=np.minimum(rate_U * rate_of_kind[kind_U], 0.9),
    kind_U=kind_U,
    visits_U=events_U / session_U / rules.days,
    session_U=session_U,
  )


def draw_popularity(
  rng: np.random.Generator, config: SimulatorConfig, fitted: Fitted
) -> tuple[np.ndarray, np.ndarray]:
  """Draw every item's category, of equal sizes, and its log weight inside it, by a random rank."""
  category_I = rng.permutation(config.items) % config.categories
  rank_I = np.zeros(config.items)
  for c in range(config.categories):
    members = category_I == c
    rank_I[members] = 1 + rng.permutation(members.sum())
  return category_I, -fitted.tail * np.log(rank_I)
