"""Fixed properties of the shoppers and items of the context simulator, drawn once from the seed.

U users, C categories, I items, P personas, F favorite categories, T tastes, S signals, K keys.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from rolegen_jax.config import SimulatorConfig
from rolegen_jax.simulator.activity import draw_activity, draw_popularity
from rolegen_jax.simulator.context.rules import GRADES, KEY_WORDS, SIGNAL_WORDS, ContextRules
from rolegen_jax.simulator.rules import STYLES, Fitted, category_names, stream


@dataclasses.dataclass(frozen=True)
class ContextTraits:
  """Fixed properties. User and item ids of the log are the indices into these arrays."""

  persona_U: np.ndarray
  favorite_U: np.ndarray  # a category
  taste_U: np.ndarray  # a style
  rate_U: np.ndarray  # ceiling of the purchase hazard; 0 = never buys
  kind_U: np.ndarray
  visits_U: np.ndarray  # visits per day
  session_U: np.ndarray  # events per visit
  base_PxFxC: np.ndarray  # base preference, sums to 1 over categories
  target_SxP: np.ndarray  # category that a signal opens for a persona, -1 = none
  key_S: np.ndarray  # key that a signal needs
  category_I: np.ndarray
  style_I: np.ndarray
  grade_I: np.ndarray
  log_price_I: np.ndarray
  popularity_I: np.ndarray  # log weight inside the category
  signal_I: np.ndarray  # -1 = none
  key_I: np.ndarray  # -1 = none
  filed_I: np.ndarray  # the item whose category and word its text has: itself, or another


def draw_traits(config: SimulatorConfig, rules: ContextRules, fitted: Fitted) -> ContextTraits:
  """Draw the traits of all users and items."""
  parts = (
    _rules_of_context(config, rules),
    _user_traits(config, rules, fitted),
    _item_traits(config, rules, fitted),
  )
  return ContextTraits(**{name: value for part in parts for name, value in part.items()})


def _rules_of_context(config: SimulatorConfig, rules: ContextRules) -> dict[str, np.ndarray]:
  rng = stream(config.seed, 'context')
  personas, categories, signals = rules.personas, config.categories, len(SIGNAL_WORDS)
  persona_PxC = rng.gamma(rules.persona_concentration, size=(personas, categories)) + 1e-12
  persona_PxC /= persona_PxC.sum(1, keepdims=True)
  even = (1 - rules.persona_share - rules.favorite_share) / categories
  base_PxFxC = (
    rules.persona_share * persona_PxC[:, None]
    + rules.favorite_share * np.eye(categories)[None]
    + even
  )
  target_SxP = np.stack([rng.permutation(categories)[:personas] for _ in range(signals)])
  for s in range(signals):
    target_SxP[s, rng.permutation(personas)[: rules.deaf_personas]] = -1
  key_S = rng.permutation(signals) % len(KEY_WORDS)
  return dict(base_PxFxC=base_PxFxC, target_SxP=target_SxP, key_S=key_S)


def _user_traits(
  config: SimulatorConfig, rules: ContextRules, fitted: Fitted
) -> dict[str, np.ndarray]:
  rng = stream(config.seed, 'users')
  return dict(
    persona_U=rng.integers(0, rules.personas, config.users),
    favorite_U=rng.integers(0, config.categories, config.users),
    taste_U=rng.integers(0, len(STYLES), config.users),
    **draw_activity(rng, config, rules, fitted),
  )


def _item_traits(
  config: SimulatorConfig, rules: ContextRules, fitted: Fitted
) -> dict[str, np.ndarray]:
  rng = stream(config.seed, 'items')
  items = config.items
  category_I, popularity_I = draw_popularity(rng, config, fitted)
  kind_draw_I = rng.random(items)
  carries_signal = kind_draw_I < rules.signal_share
  carries_key = ~carries_signal & (kind_draw_I < rules.signal_share + rules.key_share)
  grade_I = rng.integers(0, len(GRADES), items)
  price_noise_I = rules.price_spread * rng.standard_normal(items)
  is_misfiled = rng.random(items) < rules.misfiled_share
  return dict(
    category_I=category_I,
    style_I=rng.integers(0, len(STYLES), items),
    grade_I=grade_I,
    log_price_I=rules.price_of_grade * grade_I + price_noise_I,
    popularity_I=popularity_I,
    signal_I=np.where(carries_signal, rng.integers(0, len(SIGNAL_WORDS), items), -1),
    key_I=np.where(carries_key, rng.integers(0, len(KEY_WORDS), items), -1),
    filed_I=np.where(is_misfiled, rng.integers(0, items, items), np.arange(items)),
  )


def item_table(config: SimulatorConfig, rules: ContextRules, traits: ContextTraits) -> pl.DataFrame:
  """Return text, brand and price of every item, as the shop files it."""
  rng = stream(config.seed, 'text')
  names = np.array(category_names(config.categories))
  name = names[traits.category_I[traits.filed_I]]
  maker_I = rng.integers(0, rules.brands, config.items)
  level_C = rng.normal(3.5, 0.8, config.categories)
  words = np.array([*SIGNAL_WORDS, *KEY_WORDS, ''])
  signal, key = traits.signal_I[traits.filed_I], traits.key_I[traits.filed_I]
  word = words[np.where(signal >= 0, signal, np.where(key >= 0, len(SIGNAL_WORDS) + key, -1))]
  brand, title = [], []
  for i in range(config.items):
    style, (department, category) = STYLES[traits.style_I[i]], name[i].split('.')
    brand.append(f'{style[:3]}{category[:3]}{maker_I[i]}')
    parts = (brand[i], style, GRADES[traits.grade_I[i]], word[i], category, department)
    title.append(' '.join(part for part in parts if part))
  return pl.DataFrame(
    {
      'item_id': np.arange(config.items),
      'title': title,
      'category_code': name,
      'brand': brand,
      'price': np.round(np.exp(level_C[traits.category_I] + traits.log_price_I), 2),
    }
  )
