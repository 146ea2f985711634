"""What a report says: predictions of all systems on the test occasions -> its sections.

`report.write_report` takes the result.

Shapes: N test examples, M role events, W worlds, P candidates, K list length.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from rolegen_jax.config import ROLE_NAMES, WITHOUT, Config, digest
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.files import as_data_error
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.evaluation import agreement, diversity
from rolegen_jax.evaluation.metrics import Pairs, compare, evaluate
from rolegen_jax.models.kinds import SCALE
from rolegen_jax.reasoning.predict import Effects
from rolegen_jax.runtime.provenance import machine

STRONGEST = 12  # pairs of attributes that a note names
# name -> (kind of system, items int32 [N, K], settings that made them)
Rankings = dict[str, tuple[str, np.ndarray, dict]]


def systems(
  config: Config,
  log: InteractionLog,
  occasions: Occasions,
  rows: np.ndarray,
  codes: np.ndarray,
  rankings: Rankings,
) -> tuple[dict, dict]:
  """Return (metrics of every system, paired differences of the first one to each other).

  The first of `rankings` is the system under test.
  """
  train_events = occasions.train_events(log)
  pairs = Pairs.of(occasions, rows, train_events)
  metrics = {
    name: dict(
      kind=kind,
      metrics=evaluate(items, pairs, config.evaluation, codes),
      settings=settings,
      diversity=diversity.list_diversity(items, codes, train_events),
    )
    for name, (kind, items, settings) in rankings.items()
  }
  tested, *others = rankings
  differences = {
    name: compare(rankings[tested][1], rankings[name][1], pairs, config.evaluation)
    for name in others
  }
  return metrics, differences


def table(systems: dict, differences: dict, ks: list[int]) -> str:
  """Return HI@k (hit rate) of every system in per cent as text.

  Beside it stands the paired difference of RoleGen minus it at HI@10.
  """
  width = max(map(len, systems)) + 18
  lines = []
  for part in ('dormant', 'dormant cold', 'ACTIVE', 'all', 'all cold'):
    present = {name: s['metrics'][part] for name, s in systems.items() if part in s['metrics']}
    if not present:
      continue
    n_targets = next(iter(present.values()))[f'HI@{ks[0]}'].pairs
    titles = ''.join(f'{f"HI@{k}":>9}' for k in ks)
    lines.append(
      f'{part} ({n_targets} targets)'.ljust(width) + titles + '   RoleGen minus it, HI@10'
    )
    for name, metrics in present.items():
      values = ''.join(f'{100 * metrics[f"HI@{k}"].mean:9.2f}' for k in ks)
      difference = _percentage_points(differences.get(name, {}).get(part))
      lines.append(f'  {name}'.ljust(width) + values + difference)
  return '\n'.join(lines)


def _percentage_points(difference: Any) -> str:
  if difference is None:
    return ''
  mean, low, high = (100 * x for x in (difference.mean, difference.low, difference.high))
  return f'   {mean:+.2f} [{low:+.2f}, {high:+.2f}]'


def worlds(
  config: Config,
  log: InteractionLog,
  occasions: Occasions,
  rows: np.ndarray,
  codes: np.ndarray,
  candidates: dict[str, np.ndarray],
) -> dict:
  """Return the section on worlds.

  `candidates` [N, W, P] come by the name of each system that has some; the first is the system
  under test. `systems` in the result: how far the worlds of each lie apart, None where there is but
  one, and the share of targets among all candidates of a user, by slice.
  """
  train_events = occasions.train_events(log)
  pairs = Pairs.of(occasions, rows, train_events)
  spread = {
    name: diversity.world_diversity(items, codes, train_events)
    for name, items in candidates.items()
  }
  union = {name: items.reshape(len(items), -1) for name, items in candidates.items()}
  tested = next(iter(union))
  size = max(items.shape[1] for items in union.values())
  by_system = {}
  for name, items in union.items():
    none = np.full_like(items, -1)
    by_system[name] = dict(
      jaccard=spread[name]['jaccard'] if candidates[name].shape[1] > 1 else None,
      union_size=spread[name]['union_size'],
      hits=compare(items, none, pairs, config.evaluation, size),
      difference=compare(union[tested], items, pairs, config.evaluation, size),
    )
  return spread[tested] | dict(systems=by_system)


def planted_truth(
  table: ExampleTable, planted: pl.DataFrame, role_events: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return (role int [N, M], effect [N, M]) of the last M events of each simulated example.

  -1 and NaN where none is known.
  """
  log = table.log
  index = table.end[:, None] - role_events + np.arange(role_events)
  exists = index >= log.offsets[table.user][:, None]
  example, slot = np.nonzero(exists)
  row = index[example, slot]
  events = pl.DataFrame(
    dict(
      example=example,
      slot=slot,
      user_id=log.users.gather(table.user[example]),
      occasion_timestamp=table.timestamp[example],
      timestamp=log.timestamp[row],
      item_id=log.items['item_id'].gather(log.item[row]),
    )
  )
  keys = ['user_id', 'occasion_timestamp', 'timestamp', 'item_id']
  truth = planted.select(*keys, 'role', 'effect').with_columns(pl.col(keys[1:3]).cast(pl.Int64))
  joined = events.join(truth, on=keys, how='inner')
  role, effect = np.full(index.shape, -1), np.full(index.shape, np.nan)
  names = joined['role'].cast(pl.String).to_list()
  role[joined['example'], joined['slot']] = [ROLE_NAMES.index(name) for name in names]
  effect[joined['example'], joined['slot']] = joined['effect']
  return role, effect


def roles(
  hindsight: np.ndarray,
  truth: tuple[np.ndarray, np.ndarray] | None,
  scores: dict[str, dict[str, dict]],
  effects: Effects,
  effect_rows: np.ndarray,
) -> tuple[dict, list[str]]:
  """Return (the section on roles, notes).

  It holds the shares of roles in hindsight and as RoleGen predicts them, `scores` by situation and
  predictor, and the agreement of hindsight roles and effects with the planted truth where there is
  one; `effects` are those of the examples `effect_rows`.
  """
  labeled = hindsight[hindsight >= 0]
  shares = {'hindsight': {n: float((labeled == i).mean()) for i, n in enumerate(ROLE_NAMES)}}
  shares |= {situation: by_name['RoleGen']['shares'] for situation, by_name in scores.items()}
  section: dict[str, Any] = dict(shares=shares, scores=scores)
  section['judged_by'] = 'roles in hindsight' if truth is None else 'planted roles'
  f1 = {
    situation: ', '.join(f'{by_name[name]["macro_f1"]:.3f} by {name}' for name in by_name)
    for situation, by_name in scores.items()
  }
  notes = [
    f'Roles {situation}, macro-F1 against {section["judged_by"]}: {said}.'
    for situation, said in f1.items()
  ]
  if truth is None:
    return section, notes
  role, effect = truth[0].ravel(), truth[1][effect_rows].ravel()
  known = np.isfinite(effect)
  section |= dict(
    agreement=agreement.role_agreement(role, hindsight.ravel()),
    effects=agreement.effect_agreement(effects.intent.ravel()[known], effect[known]),
  )
  backbone = agreement.effect_agreement(effects.backbone.ravel()[known], effect[known])
  notes.append(
    f'Labels in hindsight against planted roles: macro-F1 {section["agreement"]["macro_f1"]:.3f}. '
    f'Removal effects of {len(effect_rows)} examples against the true ones: Spearman '
    f'{section["effects"]["spearman"]:.3f} by the equation of intent, '
    f'{backbone["spearman"]:.3f} by the backbone alone.'
  )
  return section, notes


def role_gains(log_gain: np.ndarray) -> str:
  """Return a note on what a role does to an event's excitation of intent, as learned."""
  pairs = zip(ROLE_NAMES, np.asarray(log_gain))
  gains = ', '.join(f'{name} {np.exp(value):.2f}' for name, value in pairs)
  return (
    'Excitation of intent when an event is given a role, over that of an event left alone: '
    f'{gains}.'
  )


def language_weight(weight: np.ndarray) -> str:
  """Return a note on how much the language model counts where codes are chosen."""
  return (
    'Where codes are chosen, what the language model says is multiplied by '
    f'{float(np.asarray(weight)[0]):g} before it is added to the structural equations, '
    'as validation conversions prefer.'
  )


def pooled_weights(weights: np.ndarray) -> str:
  """Return a note on how much what is learned of kinds of users counts, as calibration chose."""
  counted, learned = (float(x) for x in np.asarray(weights))
  return (
    f'Of log p(coarse code), what is counted is multiplied by {counted:g} and what is learned of '
    f'kinds of users by {learned:g}, as validation conversions prefer.'
  )


def kinds(intent: dict[str, Any], words: Sequence[str]) -> list[str]:
  """Return a note on what kinds of users have learned to depend on what, none where nothing does.

  intent: parameters of the equation of intent. words: of items; none = attributes are codes.
  """
  logit = SCALE * np.asarray(intent['kinds']['context'])
  strongest = np.argsort(-np.abs(logit), axis=None)[:STRONGEST]
  pairs = [divmod(int(place), len(logit)) for place in strongest]
  name = lambda i: words[i] if words else f'code {i}'  # noqa: E731
  told = [
    f'{name(after)} after {name(before)} {logit[before, after]:+.1f}'
    for before, after in pairs
    if abs(logit[before, after]) >= 0.5
  ]
  if not told:
    return []
  return [f'How much contact counts by what was met before, log-odds: {", ".join(told)}.']


def parts(systems: dict[str, dict], metric: str) -> list[str]:
  """Return a note on what the parts of RoleGen are worth, as far as they are among the systems."""
  meaning = dict(
    RoleGen='RoleGen',
    no_language_model='without its language model',
    counts_only='with nothing of the reasoner trained, only counted',
    no_reasoner='its backbone alone',
  )
  shown = {name: words for name, words in meaning.items() if name in systems}
  if len(shown) < 2:
    return []
  tested = systems['RoleGen']['metrics']
  part = 'dormant' if 'dormant' in tested else 'all'
  values = (
    f'{words} {100 * systems[name]["metrics"][part][metric].mean:.2f} %'
    for name, words in shown.items()
  )
  return [f'What the parts are worth, {metric} on {part} targets: {"; ".join(values)}.']


def experts(systems: dict[str, dict], metric: str) -> list[str]:
  """Return a note on what is left without each expert, as far as such are among the systems."""
  tested = systems['RoleGen']['metrics']
  part = 'dormant' if 'dormant' in tested else 'all'
  values = [
    f'without {expert} {100 * systems[name]["metrics"][part][metric].mean:.2f} %'
    for name, expert in WITHOUT.items()
    if name in systems
  ]
  if not values:
    return []
  whole = f'{metric} on {part} targets {100 * tested[part][metric].mean:.2f} %'
  return [
    'Each expert left out, the weights of the others fitted again: '
    f'{whole} with all of them, {", ".join(values)}.'
  ]


def some_occasions(most: int) -> str:
  """Return the note on test occasions that were left out."""
  return (
    f'At most {most} test occasions of each cohort were asked for (evaluation.occasions): slices '
    'over all cohorts weigh them otherwise than the log does.'
  )


def short_lists(ks: tuple[int, ...], items: int, rankings: Rankings) -> list[str]:
  """Return notes on ks beyond the catalogue of `items`, and on lists with fewer items than k."""
  notes = []
  wide, possible = [k for k in ks if k > items], [k for k in ks if k <= items]
  if wide:
    which = ', '.join(map(str, wide))
    notes.append(
      f'The catalogue has {items} items: no list has k = {which} places, and none misses there.'
    )
  k = max(possible, default=0)
  is_short = {name: (lists[:, :k] >= 0).sum(1) < k for name, (_, lists, _) in rankings.items()}
  shares = [f'{name} {100 * short.mean():.1f} %' for name, short in is_short.items() if short.any()]
  if shares:
    notes.append(
      f'Lists of fewer than {k} items, which miss what they have no place for: {", ".join(shares)}.'
    )
  return notes


def training_rows(workdir: pathlib.Path, stages: tuple[str, ...]) -> list[dict]:
  """Return all metrics.jsonl rows of the stages, each with its stage."""
  rows = []
  for stage in stages:
    path = workdir / stage / 'metrics.jsonl'
    if not path.exists():
      continue
    with as_data_error(path, 'a JSON object per line; without the file the report has no curve'):
      for line in path.read_text(encoding='utf-8').splitlines():
        row = json.loads(line)
        row.pop('time_s')
        rows.append(dict(stage=stage) | row)
  return rows


def provenance(config: Config, artifacts: dict[str, str], wall_s: float) -> dict:
  """Return what every number of a report must carry."""
  simulated = config.data.format == 'simulated'
  data = f'{config.data.format}: {config.data.path}'
  if simulated:
    data = f'the simulated shop log, {config.simulator.label}'
  return dict(
    data=data,
    simulated=simulated,
    **machine(),
    seed=config.seed,
    config_digest=digest(config),
    artifacts=artifacts,
    evaluation_wall_s=round(wall_s, 1),
    intervals=f'95 % bootstrap over users, {config.evaluation.bootstrap} resamples, of one seed',
  )
