"""Fixed properties of the shoppers and items of the simulated world, drawn once from the seed.

U users, C categories, I items, S styles.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from rolegen_jax.config import SimulatorConfig
from rolegen_jax.simulator.activity import draw_activity, draw_popularity
from rolegen_jax.simulator.item_traits.rules import Rules
from rolegen_jax.simulator.rules import DEPARTMENT_SIZE, STYLES, Fitted, category_names, stream


@dataclasses.dataclass(frozen=True)
class Traits:
  """Fixed properties. User and item ids of the log are the indices into these arrays."""

  base_UxC: np.ndarray  # base preference, rows sum to 1
  style_UxS: np.ndarray  # utility of a style
  rate_U: np.ndarray  # ceiling of the purchase hazard; 0 = never buys
  kind_U: np.ndarray  # NEVER_BUYS, DORMANT (browser) or ACTIVE
  visits_U: np.ndarray  # visits per day
  session_U: np.ndarray  # events per visit
  category_I: np.ndarray
  style_I: np.ndarray
  popularity_I: np.ndarray  # log weight inside the category
  trigger_I: np.ndarray  # category that the item wakes, -1 = none
  distracts_I: np.ndarray  # department that the item damps, -1 = none
  complement_C: np.ndarray  # complement of a category
  department_C: np.ndarray


def draw_traits(config: SimulatorConfig, rules: Rules, fitted: Fitted) -> Traits:
  """Draw the traits of all users and items."""
  users, items = _user_traits(config, rules, fitted), _item_traits(config, rules, fitted)
  return Traits(**users, **items)


def _item_traits(config: SimulatorConfig, rules: Rules, fitted: Fitted) -> dict[str, np.ndarray]:
  rng = stream(config.seed, 'items')
  items, categories = config.items, config.categories
  category_I, popularity_I = draw_popularity(rng, config, fitted)
  department_C = np.arange(categories) // DEPARTMENT_SIZE
  kind_draw_I = rng.random(items)
  cycle = rng.permutation(categories)
  complement_C = np.empty(categories, int)
  complement_C[cycle] = np.roll(cycle, 1)
  target_I = _trigger_targets(rng, category_I, complement_C)
  own_department_I, departments = department_C[category_I], department_C[-1] + 1
  other_department_I = (own_department_I + rng.integers(1, departments, items)) % departments
  is_trigger = kind_draw_I < rules.trigger_share
  is_special = kind_draw_I < rules.trigger_share + rules.distractor_share
  is_distractor = ~is_trigger & is_special
  return dict(
    category_I=category_I,
    style_I=rng.integers(0, len(STYLES), items),
    popularity_I=popularity_I,
    trigger_I=np.where(is_trigger, target_I, -1),
    distracts_I=np.where(is_distractor, other_department_I, -1),
    complement_C=complement_C,
    department_C=department_C,
  )


def _trigger_targets(
  rng: np.random.Generator, category_I: np.ndarray, complement_C: np.ndarray
) -> np.ndarray:
  """Draw the category [I] that each item would wake as a trigger.

  It is neither the item's own nor a complement either way: those have roles of their own.
  """
  items, categories = len(category_I), len(complement_C)
  target_I = rng.integers(0, categories, items)
  while True:
    is_own = target_I == category_I
    is_complement = target_I == complement_C[category_I]
    is_complemented = complement_C[target_I] == category_I
    bad = is_own | is_complement | is_complemented
    if not bad.any():
      return target_I
    target_I[bad] = rng.integers(0, categories, bad.sum())


def _user_traits(config: SimulatorConfig, rules: Rules, fitted: Fitted) -> dict[str, np.ndarray]:
  rng = stream(config.seed, 'users')
  users, categories = config.users, config.categories
  base = rng.gamma(rules.base_concentration, size=(users, categories)) + 1e-12
  concentrated = (1 - rules.base_floor) * base / base.sum(1, keepdims=True)
  style_UxS = rules.style_weight * rng.standard_normal((users, len(STYLES)))
  return dict(
    base_UxC=concentrated + rules.base_floor / categories,
    style_UxS=style_UxS,
    **draw_activity(rng, config, rules, fitted),
  )


def item_table(config: SimulatorConfig, rules: Rules, traits: Traits) -> pl.DataFrame:
  """Return text, brand and price of every item, made of category and style words."""
  rng = stream(config.seed, 'text')
  names = np.array(category_names(config.categories))[traits.category_I]
  maker_I = rng.integers(0, rules.brands, config.items)
  brand = [
    f'{STYLES[style][:3]}{name[:3]}{maker}'
    for style, name, maker in zip(traits.style_I, names, maker_I)
  ]
  level_C = np.exp(rng.normal(3.5, 0.8, config.categories))
  noise_I = np.exp(0.35 * rng.standard_normal(config.items))
  title = []
  for item_brand, style, name in zip(brand, traits.style_I, names):
    department, category = name.split('.')
    title.append(f'{item_brand} {STYLES[style]} {category} {department}')
  return pl.DataFrame(
    {
      'item_id': np.arange(config.items),
      'title': title,
      'category_code': names,
      'brand': brand,
      'price': np.round(level_C[traits.category_I] * noise_I, 2),
    }
  )
