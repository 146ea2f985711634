"""Ten daily updates against training afresh on all days, on a simulated log: quality and time.

  python -m experiments.benchmarks.updates --workdir=runs/updates

A run is trained on the log before `first_day` and updated once a day (`rolegen update`); others are
trained afresh on the log up to some of the days. Before every update the run is asked about the new
day; at the end, the updated run, the one trained afresh and the first one, never updated, are asked
about all days that remain, which none has seen. Everything is timed from the files of the log to
models that recommend, an update with the evaluation of its day, each in a process of its own:
processor seconds, as other work on the machine counts in wall time, which stands beside them.
Target: HI@10 within 0.5 points at the end, and at most 15 % of the time per day.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import resource
import time
from typing import Any

import numpy as np
import polars as pl

from experiments import demo
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Store
from rolegen_jax import config as configs
from rolegen_jax import overrides
from rolegen_jax.config import Config, SimulatorConfig
from rolegen_jax.data.log import InteractionLog, ranges
from rolegen_jax.data.occasions import TEST
from rolegen_jax.data.prepare import load_prepared
from rolegen_jax.evaluation.baselines import evaluation_rows
from rolegen_jax.evaluation.metrics import Pairs, hit, paired_difference, ranks
from rolegen_jax.features.interest_shift import MAX_LAG
from rolegen_jax.pipeline import artifacts, inputs, versions
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.simulator import world

DAY = 86_400  # seconds
LAUNCHED = 0.05  # share of the items
TARGETS = dict(points=0.5, time_share=0.15)
# Nearly all of the log is trained on, as it is where a run is trained for the next day; all
# occasions are asked about, by lists that may hold what the history holds.
SETTINGS = (
  'data.test_fraction=0.01',
  'data.valid_fraction=0.03',
  'evaluation.occasions=0',
  'evaluation.ablations=()',
  'serving.filter_history=allow',
)


def measure(
  store: Store,
  *,
  workdir: str,
  users: int = 3000,
  first_day: int = 85,
  days: int = 10,
  afresh: tuple = (10,),
  settings: tuple = (),
) -> dict:
  """Train, update and train afresh.

  Args:
    store: keeps finished points.
    workdir: Folder of the logs and the runs.
    users: Users of the simulated log.
    first_day: Day of the log that the first update brings.
    days: Updates, one a day.
    afresh: After which updates a run is trained afresh; the last update is among them.
    settings: What is replaced of the demo, section.field=value.
  """
  root, replaced = pathlib.Path(workdir).absolute(), [*SETTINGS, *settings]
  simulator = dataclasses.replace(demo.get_config().simulator, users=users)
  log = write_days(root, simulator, first_day, days)

  def timed(name: str, command: str, folder: str, data: str, version: str = '') -> dict:
    arguments = command, str(root / folder), str(root / data), replaced, version
    call = functools.partial(harness.call_in_process, in_process, *arguments)
    return store.point(name, [log['digest'], days, *arguments], call)

  timed('first', 'train', 'updated', 'before_1')
  daily = [timed(f'update_{n}', 'update', 'updated', f'day_{n}') for n in range(1, days + 1)]
  fresh = [timed(f'afresh_{n}', 'train', f'afresh_{n}', f'before_{int(n) + 1}') for n in afresh]
  for n in map(int, afresh):
    if n < days:
      timed(f'afresh_{n}_asked', 'ask', f'afresh_{n}', f'day_{n + 1}')
  last = timed('rest_updated', 'ask', 'updated', 'rest')
  rest = {
    'trained afresh': timed('rest_afresh', 'ask', f'afresh_{days}', 'rest'),
    'never updated': timed('rest_first', 'ask', 'updated', 'all_after', versions.FIRST),
  }
  end = {name: compared(last['version'], other['version']) for name, other in rest.items()}
  counts = store.point('counts', [log['digest'], days], lambda: counting(daily[-1]['version']))
  shares = {
    kind: float(np.median([p[kind] for p in daily]) / np.median([p[kind] for p in fresh]))
    for kind in ('cpu_s', 'wall_s')
  }
  said = dict(end=end, time_shares=shares, counting=counts, log=log)
  return dict(points=dict(store.points), targets=TARGETS, **said)


def write_days(root: pathlib.Path, simulator: SimulatorConfig, first: int, days: int) -> dict:
  """Write the log before each day, each day alone, and the rest; return what is in the log.

  LAUNCHED of the items come on one of the days, as many on each: what was done with them before is
  left out. The items of a day are those that nobody touched before.
  """
  log = world.simulate(simulator)
  day = (pl.col('timestamp') - log.events['timestamp'].to_numpy().min()) // DAY - first + 1
  order = np.random.default_rng(0).permutation(log.items.height)
  comes = np.full(log.items.height, -(10**6))
  launched = order[: round(LAUNCHED * len(order))]
  comes[launched] = 1 + np.arange(len(launched)) % days
  launch = log.items.select('item_id', launch=pl.Series(comes))
  events = log.events.with_columns(day=day).join(launch, on='item_id', maintain_order='left')
  events = events.filter(pl.col('day') >= pl.col('launch')).drop('launch')
  touched = events.group_by('item_id').agg(pl.col('day').min())
  items = log.items.join(touched, on='item_id')
  spans = {f'before_{n}': pl.col('day') < n for n in range(1, days + 2)}
  spans |= {f'day_{n}': pl.col('day') == n for n in range(1, days + 1)}
  spans |= {'rest': pl.col('day') > days, 'all_after': pl.col('day') > 0}
  for name, chosen in spans.items():
    folder = root / name
    if not folder.exists():  # files that are written anew are another log
      folder.mkdir(parents=True)
      for table, frame in (('events', events), ('items', items)):
        frame.filter(chosen).drop('day').write_parquet(folder / f'{table}.parquet')
  sizes = {
    table: {name: frame.filter(chosen).height for name, chosen in spans.items()}
    for table, frame in (('events', events), ('items', items))
  }
  settings = configs.to_dict(simulator)
  return dict(digest=configs.digest(settings, first, days, LAUNCHED), simulator=settings, **sizes)


def settings_of(data: str, assignments: list[str]) -> Config:
  """Return the demo on a log of the contract."""
  config = demo.get_config()
  log = configs.DataConfig(format='contract', path=data)
  return overrides.apply(dataclasses.replace(config, data=log), assignments)


def in_process(command: str, folder: str, data: str, assignments: list[str], version: str) -> dict:
  """Train, update or ask a run; return its seconds and what was said of the next day."""
  started = time.monotonic()
  made = pathlib.Path(folder)
  if command == 'train':
    opened = open_run(settings_of(data, assignments), folder)
    train_models(*inputs.prepare_inputs(opened)).calibrated.load()
  elif command == 'update':
    made = versions.update(folder, data, [])
  else:
    made = versions.ask(folder, data, [], version)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  seconds = dict(cpu_s=usage.ru_utime + usage.ru_stime, wall_s=time.monotonic() - started)
  said = made / 'next_day' / 'next_day.json'
  next_day = json.loads(said.read_text(encoding='utf-8')) if said.exists() else {}
  told = {part: next_day[part]['HI@10'] for part in ('all', 'dormant') if part in next_day}
  return seconds | dict(version=str(made), next_day=told)


def compared(version: str, other: str) -> dict:
  """Return HI@10 of two runs over the days that `version` was asked about, and the difference.

  All of it in points; `other` was asked about these days, and perhaps about some before.
  """
  result: dict[str, Any] = {}
  log, occasions = load_prepared(pathlib.Path(version) / 'data')
  rows = evaluation_rows(log, occasions, TEST)
  pairs = Pairs.of(occasions, rows)
  hits = []
  for folder in map(pathlib.Path, (version, other)):
    its_log, its_occasions = load_prepared(folder / 'data')
    assert its_log.digest == log.digest  # so occasions have the same numbers
    asked = evaluation_rows(its_log, its_occasions, TEST)
    item = artifacts.read_arrays(folder / 'predictions' / 'RoleGen.npz', 'item')['item']
    hits.append(hit(ranks(item[np.isin(asked, rows), :10], pairs), 10))
  for part in ('all', 'dormant'):
    chosen = pairs.slice(part)
    difference = paired_difference(*(h[chosen] for h in hits), pairs.user[chosen])
    values = dataclasses.asdict(difference)
    result[part] = dict(
      hits=[100 * float(h[chosen].mean()) for h in hits],
      difference={name: 100 * values[name] for name in ('mean', 'low', 'high')},
      targets=int(chosen.sum()),
    )
  return result


def counting(version: str) -> dict:
  """Return the seconds of counting on the whole log, and on what pairs with its last day alone."""
  run = open_run(artifacts.saved_config(version), version, may_train=False)
  data = inputs.prepare_data(run)
  catalogue, _ = inputs.assign_semantic_ids(run, data)
  kernel = inputs.choose_on_validation(run, data).retrieval
  codes = catalogue.codes_of(data.log.items['item_id'])
  new = _last_day(data.log)

  def seconds(log: InteractionLog) -> float:
    occasions = dataclasses.replace(data.occasions.all_training(data.log), log_digest=log.digest)
    started = time.process_time()
    inputs.count_features(run, inputs.Data(log, occasions, None), codes, kernel)
    return time.process_time() - started

  return dict(whole_s=seconds(data.log), last_day_s=seconds(new), events=len(data.log.item))


def _last_day(log: InteractionLog) -> InteractionLog:
  """Return the rows of the log's last day, and those before that are counted in pairs with them."""
  is_new = log.timestamp > log.timestamp.max() - DAY
  new = np.add.reduceat(is_new, log.offsets[:-1]) * (np.diff(log.offsets) > 0)
  sizes = np.where(new > 0, np.minimum(new + MAX_LAG, np.diff(log.offsets)), 0)
  rows, _ = ranges(log.offsets[1:] - sizes, sizes)
  return dataclasses.replace(
    log,
    offsets=np.concatenate([[0], np.cumsum(sizes)]),
    **{name: getattr(log, name)[rows] for name in ('item', 'event', 'timestamp', 'count')},
  )


def _days(results: dict) -> tuple[list[dict], dict[int, dict]]:
  """Return the points of the updates in order, and those of the runs trained afresh by day."""
  points = results['points']
  daily = [p for name, p in points.items() if name.startswith('update_')]
  fresh = {
    int(name.split('_')[1]): p
    for name, p in points.items()
    if name.startswith('afresh_') and not name.endswith('_asked')
  }
  return daily, fresh


def table(results: dict) -> str:
  daily, fresh = _days(results)
  lines = [f'{"day":<9} {"processor s":>11} {"wall s":>8}   HI@10 of that day, asked before, in %']
  for number, point in enumerate(daily, 1):
    said = point['next_day']['all']
    lines.append(
      f'{number:<9} {point["cpu_s"]:>11.0f} {point["wall_s"]:>8.0f}   {100 * said["mean"]:.1f} '
      f'({100 * said["low"]:.1f} to {100 * said["high"]:.1f}) of {said["pairs"]} targets'
    )
  for number, point in fresh.items():
    lines.append(f'afresh {number:<2} {point["cpu_s"]:>11.0f} {point["wall_s"]:>8.0f}')
  shares = results['time_shares']
  lines.append(
    f'an update takes {100 * shares["cpu_s"]:.0f} % of the processor time, '
    f'{100 * shares["wall_s"]:.0f} % of the wall time'
  )
  for name, parts in results['end'].items():
    for part, found in parts.items():
      ours, theirs = found['hits']
      d = found['difference']
      lines.append(
        f'the remaining days, {part}: updated {ours:.1f}, {name} {theirs:.1f}, difference '
        f'{d["mean"]:+.2f} ({d["low"]:+.2f} to {d["high"]:+.2f}) of {found["targets"]} targets'
      )
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw HI@10 of each next day, of all days that remain, and processor time per day."""
  daily, fresh = _days(results)
  numbers = np.arange(1, len(daily) + 1)
  figure, ((quality, time_panel),) = harness.panels(1, 2, (8.5, 3.0))
  said = [p['next_day']['all'] for p in daily]
  mean = 100 * np.array([each['mean'] for each in said])
  low, high = (100 * np.array([each[side] for each in said]) for side in ('low', 'high'))
  quality.errorbar(
    numbers,
    mean,
    [mean - low, high - mean],
    color=harness.BLUE,
    marker='o',
    ms=4,
    lw=1,
    label='updated daily, the next day',
  )
  rest = len(daily) + 2
  ours = results['end']['trained afresh']['all']['hits'][0]
  quality.plot(rest, ours, 'o', color=harness.BLUE, mfc='white')
  for (name, parts), color in zip(results['end'].items(), (harness.ORANGE, harness.GRAY)):
    quality.plot(rest, parts['all']['hits'][1], 's', color=color, ms=5, label=name)
  for number in fresh:
    asked = results['points'].get(f'afresh_{number}_asked')
    if asked:
      quality.plot(number + 1, 100 * asked['next_day']['all']['mean'], 's', color=harness.ORANGE)
  quality.set_xticks([*numbers, rest], [*map(str, numbers), 'rest'])
  quality.set_title('HI@10 in %, all targets of the day', loc='left', fontsize=9)
  quality.set_ylim(bottom=0)
  quality.legend(fontsize=7, frameon=False, loc='lower left')
  time_panel.bar(numbers, [p['cpu_s'] for p in daily], 0.6, color=harness.BLUE, label='update')
  for number, point in fresh.items():
    time_panel.bar(number + 0.5, point['cpu_s'], 0.4, color=harness.ORANGE)
  time_panel.bar(0, 0, color=harness.ORANGE, label='trained afresh')
  time_panel.set_xticks(numbers)
  time_panel.set_title('Processor seconds by day', loc='left', fontsize=9)
  time_panel.legend(fontsize=7, frameon=False)
  for panel in (quality, time_panel):
    panel.set_xlabel('day of the updates', fontsize=8)
  figure.savefig(figure_path, dpi=110)


if __name__ == '__main__':
  harness.main(measure, plot, table)
