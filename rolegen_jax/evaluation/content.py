"""What a report says: predictions of all systems on the test occasions -> the content that `report.write_report` takes.

Shapes: N test cases, M role events, W worlds, P candidates, K list length.
"""

from __future__ import annotations

import datetime
import json
import pathlib

import numpy as np
import polars as pl

from rolegen_jax.config import COHORTS, EVENT_NAMES, ROLE_NAMES, Config, digest
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.evaluation import agreement, diversity
from rolegen_jax.evaluation.metrics import Pairs, compare, evaluate
from rolegen_jax.reasoning.predict import Effects, Predictions
from rolegen_jax.runtime.provenance import machine

SHOWN = 4  # trajectories drawn


def systems(
  config: Config,
  log,
  occasions,
  rows: np.ndarray,
  codes: np.ndarray,
  rankings: dict[str, tuple[str, np.ndarray, dict]],
) -> tuple[dict, dict]:
  """(systems, differences) of the report. `rankings`: name -> (kind, items [N, K], settings); the first is the system under test."""
  pairs = Pairs.of(occasions, rows)
  train = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  train_events = np.bincount(log.item[train], minlength=len(log.items))
  table = {}
  for name, (kind, items, settings) in rankings.items():
    metrics = evaluate(items, pairs, config.evaluation, codes)
    table[name] = dict(
      kind=kind,
      metrics=metrics,
      settings=settings,
      diversity=diversity.list_diversity(items, codes, train_events),
    )
  tested = next(iter(rankings))
  others = [name for name in rankings if name != tested]
  differences = {
    name: compare(rankings[tested][1], rankings[name][1], pairs, config.evaluation)
    for name in others
  }
  return table, differences


def table(systems: dict, differences: dict, ks: list[int]) -> str:
  """HI@k per system in per cent, with the paired difference of RoleGen minus it at HI@10, as text."""
  name_width = max(map(len, systems))
  lines = []
  for part in ('dormant', 'ACTIVE', 'all'):
    present = {name: s['metrics'][part] for name, s in systems.items() if part in s['metrics']}
    if not present:
      continue
    pairs = next(iter(present.values()))[f'HI@{ks[0]}'].pairs
    lines.append(
      f'{part} ({pairs} targets)'.ljust(name_width + 18)
      + ''.join(f'{f"HI@{k}":>9}' for k in ks)
      + '   RoleGen minus it, HI@10'
    )
    for name, metrics in present.items():
      difference = differences.get(name, {}).get(part)
      text = (
        ''
        if difference is None
        else f'   {100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]'
      )
      lines.append(
        f'  {name}'.ljust(name_width + 18)
        + ''.join(f'{100 * metrics[f"HI@{k}"].mean:9.2f}' for k in ks)
        + text
      )
  return '\n'.join(lines)


def worlds(
  config: Config,
  log,
  occasions,
  rows: np.ndarray,
  codes: np.ndarray,
  candidates: dict[str, np.ndarray],
) -> dict:
  """The report's section, of candidates [N, W, P] by the name of each system that has some; the first is the system under test.

  `systems`: how far the worlds of each lie apart, and the share of targets among all candidates of a user, by slice.
  """
  train = np.arange(len(log.item)) < occasions.train_end(log)[log.user]
  train_events, pairs = (
    np.bincount(log.item[train], minlength=len(log.items)),
    Pairs.of(occasions, rows),
  )
  diverse = {
    name: diversity.world_diversity(found, codes, train_events)
    for name, found in candidates.items()
  }
  union = {name: found.reshape(len(found), -1) for name, found in candidates.items()}
  tested, size = next(iter(union)), max(found.shape[1] for found in union.values())
  of = {}
  for name, items in union.items():
    nobody = np.full_like(items, -1)
    hits = dict(
      hits=compare(items, nobody, pairs, config.evaluation, size),
      difference=compare(union[tested], items, pairs, config.evaluation, size),
    )
    of[name] = {key: diverse[name][key] for key in ('jaccard', 'union_size')} | hits
  return diverse[tested] | dict(systems=of)


def planted_truth(
  table: ExampleTable, planted: pl.DataFrame, role_events: int
) -> tuple[np.ndarray, np.ndarray]:
  """(role int [N, M], effect [N, M]) of the last M events of each case in a simulated world; -1 and NaN where none is known."""
  log, n = table.log, len(table)
  index = table.end[:, None] - role_events + np.arange(role_events)
  real = index >= log.offsets[table.user][:, None]
  example, slot = np.nonzero(real)
  at = index[example, slot]
  ours = pl.DataFrame(
    dict(
      example=example,
      slot=slot,
      user_id=log.users.gather(table.user[example]),
      occasion_timestamp=table.timestamp[example],
      timestamp=log.timestamp[at],
      item_id=log.items['item_id'].gather(log.item[at]),
    )
  )
  truth = planted.select('user_id', 'occasion_timestamp', 'timestamp', 'item_id', 'role', 'effect')
  keys = ['user_id', 'occasion_timestamp', 'timestamp', 'item_id']
  joined = ours.join(truth.with_columns(pl.col(keys[1:3]).cast(pl.Int64)), on=keys, how='inner')
  role, effect = np.full((n, role_events), -1), np.full((n, role_events), np.nan)
  names = joined['role'].cast(pl.String).to_list()
  role[joined['example'], joined['slot']] = [ROLE_NAMES.index(name) for name in names]
  effect[joined['example'], joined['slot']] = joined['effect']
  return role, effect


def roles(
  hindsight: np.ndarray,
  effects: Effects,
  predicted: np.ndarray,
  truth: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[dict, list[str]]:
  """(the report's section, notes): shares of roles in hindsight and as predicted; against the planted truth where there is one."""
  share = lambda r: {name: float((r[r >= 0] == i).mean()) for i, name in enumerate(ROLE_NAMES)}
  section = dict(shares=dict(hindsight=share(hindsight), predicted=share(predicted)))
  if truth is None:
    return section, []
  role, effect = (t.ravel() for t in truth)
  section['agreement'] = agreement.role_agreement(role, hindsight.ravel())
  known = np.isfinite(effect)
  section['effects'] = agreement.effect_agreement(effects.intent.ravel()[known], effect[known])
  backbone = agreement.effect_agreement(effects.backbone.ravel()[known], effect[known])['spearman']
  foresight = agreement.role_agreement(role, predicted.ravel())
  section['foresight'] = foresight
  note = (
    f'Roles against the planted ones: macro-F1 {section["agreement"]["macro_f1"]:.3f} in hindsight (the conversion known), '
    f'{foresight["macro_f1"]:.3f} as predicted by the reasoner from the history alone. Removal effects against the true ones: Spearman '
    f'{section["effects"]["spearman"]:.3f} by the equation of intent, {backbone:.3f} by the backbone alone.'
  )
  return section, [note]


def role_gains(log_gain: np.ndarray) -> str:
  """A note: what the intent equation learnt that a role does to an event's excitation."""
  gains = ', '.join(
    f'{name} {np.exp(value):.2f}' for name, value in zip(ROLE_NAMES, np.asarray(log_gain))
  )
  return f'Excitation of intent when an event is given a role, over that of an event left alone: {gains}.'


def trajectories(
  log,
  occasions,
  rows: np.ndarray,
  table: ExampleTable,
  found: Predictions,
  tell=None,
  cohorts=('D1', 'D2'),
  k: int = 10,
) -> list[dict]:
  """A few dormant test occasions, hits and misses by turns, with their roles, interventions and candidates.

  `tell(cases)`: what the reasoner says of each in words, (a sentence for each event with a role, sentences of intents).
  """
  label = _labels(log)
  pairs = Pairs.of(occasions, rows)
  first_target = {int(o): int(i) for o, i in zip(pairs.occasion[::-1], pairs.item[::-1])}
  dormant = [
    i
    for i in range(len(rows))
    if COHORTS[occasions.cohort[rows[i]]] in cohorts
    and table.end[i] - log.offsets[table.user[i]] >= 8
  ]
  rank_of = lambda i: next(
    (r + 1 for r, item in enumerate(found.item[i][:k]) if item == first_target[i]), 0
  )
  hits, misses = ([i for i in dormant if bool(rank_of(i)) == hit] for hit in (True, False))
  chosen = [
    i
    for pair in zip(hits[:: max(len(hits) // 3, 1)], misses[:: max(len(misses) // 3, 1)])
    for i in pair
  ][:SHOWN]
  m = found.roles.shape[1]
  drawn, said = [], tell(chosen) if tell and chosen else [None] * len(chosen)
  for i, words in zip(chosen, said):
    begin, end = max(table.end[i] - m, log.offsets[table.user[i]]), table.end[i]
    shift = m - (end - begin)
    events = [
      dict(
        when=_day(log.timestamp[j]),
        item=label(log.item[j]),
        event=EVENT_NAMES[log.event[j]],
        role=ROLE_NAMES[r] if (r := found.roles[i, shift + j - begin]) >= 0 else '',
      )
      for j in range(begin, end)
    ]
    chains = []
    for w in range(found.candidates.shape[1]):
      forced, removed, intent = (
        found.forced_role[i, w],
        found.removed[i, w],
        found.forced_intent[i, w],
      )
      at = int(np.argmax((forced >= 0) | removed)) if ((forced >= 0) | removed).any() else -1
      change = (
        (f'do(intent {intent})' if intent >= 0 else '')
        if at < 0
        else 'removed'
        if removed[at]
        else f'do({ROLE_NAMES[forced[at]]})'
      )
      name = 'factual' if w == 0 else f'world {w}'
      chains.append(
        dict(
          name=name,
          event=at - shift if at >= 0 else -1,
          change=change,
          candidates=[label(c) for c in found.candidates[i, w]],
        )
      )
    drawn.append(
      dict(
        user=str(log.users[int(table.user[i])]),
        cohort=COHORTS[occasions.cohort[rows[i]]],
        target=label(first_target[i]),
        rank=rank_of(i),
        k=k,
        events=events,
        worlds=chains,
        **(
          {'sentences': dict(events=_beside(events, words[0]), intents=words[1])} if words else {}
        ),
      )
    )
  return drawn


def _beside(events: list[dict], why: list[str]) -> list[str]:
  """The sentence of each event; '' where it has no role."""
  left = iter(why)
  return [next(left, '') if event['role'] else '' for event in events]


def training_rows(workdir: pathlib.Path, stages: tuple[str, ...]) -> list[dict]:
  """All metrics.jsonl rows of the stages, each with its stage."""
  rows = []
  for stage in stages:
    path = workdir / stage / 'metrics.jsonl'
    rows += (
      [
        dict(stage=stage) | {k: v for k, v in json.loads(line).items() if k != 'time_s'}
        for line in path.read_text().splitlines()
      ]
      if path.exists()
      else []
    )
  return rows


def provenance(config: Config, artifacts: dict[str, str], wall_s: float) -> dict:
  simulated = config.data.format == 'simulated'
  data = (
    f'the simulated world, preset {config.simulator.preset}, seed {config.simulator.seed}'
    if simulated
    else f'{config.data.format}: {config.data.path}'
  )
  return dict(
    data=data,
    simulated=simulated,
    **machine(),
    seed=config.seed,
    config_digest=digest(config),
    artifacts=artifacts,
    evaluation_wall_s=round(wall_s, 1),
    intervals=f'95 % bootstrap over occasions, {config.evaluation.bootstrap} resamples',
  )


def _labels(log):
  titles = log.items['title'] if 'title' in log.items.columns else None
  ids = log.items['item_id']
  return lambda item: (
    '–'
    if item < 0
    else (
      titles[int(item)] if titles is not None and titles[int(item)] else f'item {ids[int(item)]}'
    )
  )


def _day(timestamp: int) -> str:
  return datetime.datetime.fromtimestamp(int(timestamp), datetime.timezone.utc).strftime('%d %b')
