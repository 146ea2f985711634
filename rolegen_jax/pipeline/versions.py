"""The versions of a run: every update is a run folder of its own, and one of them is in use.

  RUN/                      the first run, as `rolegen train` left it
  RUN/versions/2026-11-29/  a version, by the last day of its log; its config.json names its parent
  RUN/current.json          the path of the version in use from RUN, replaced as a whole

The stages of a version are cached like those of any run. Until all are complete the one before
stays in use, and the same command continues; going back names another one in current.json.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import pathlib

from rolegen_jax import overrides
from rolegen_jax.config import AT_RUN_TIME, Config, ConfigError, StageConfig
from rolegen_jax.data.adapters import log_fingerprint, log_path
from rolegen_jax.data.appending import read_new_days, require_purchase
from rolegen_jax.data.files import write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.fields import Refusal
from rolegen_jax.pipeline import evaluation, keys, records
from rolegen_jax.pipeline.ablations import train_ablation
from rolegen_jax.pipeline.artifacts import (
  CURRENT,
  VERSIONS,
  RunFolder,
  current,
  last_key,
  saved_config,
)
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.pipeline.parent import check_same_models
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.runtime.progress import say

FIRST = 'first'  # what --go_back calls the run itself


def update(workdir: str, data: str, assignments: list[str], retrain: bool = False) -> pathlib.Path:
  """Append the days in `data` to the run, continue its training, and put the result to use.

  The version in use is asked about the new days before anything is trained on them. Return the
  folder of the new version. Raises ConfigError or DataError, before anything is written, where the
  run cannot be continued or the days do not continue it.
  """
  root = _reserved(workdir)
  parent = current(root)
  config = _config(root, parent, data, assignments)
  if _has_these_days(parent, config):
    _check_same_version(parent, config, retrain)
    say(f'{parent}: has these days already')
    return parent
  run, inputs = _begun(root, parent, config, retrain)
  _say_unfinished(root, run.workdir)
  models = train_models(run, inputs)
  if 'no_reasoner' in config.evaluation.ablations:
    train_ablation(run, inputs, models, 'no_reasoner')
  distributed.once(lambda: _put_to_use(root, run.workdir))
  return run.workdir


def ask(workdir: str, data: str, assignments: list[str], version: str = '') -> pathlib.Path:
  """Ask a version of the run, the one in use or by name, about later days, and train on nothing.

  Return the folder of the version that training would complete, with next_day/ and predictions/.
  """
  root = _reserved(workdir)
  parent = _named(root, version) if version else current(root)
  return _begun(root, parent, _config(root, parent, data, assignments))[0].workdir


def _begun(
  root: pathlib.Path, parent: pathlib.Path, config: Config, retrain: bool = False
) -> tuple[Run, Inputs]:
  """Return the run and the inputs of a version, its parent asked about the new days."""
  folder = distributed.once(lambda: _version(root, parent, config))
  run, inputs = prepare_inputs(open_run(config, folder, retrain=retrain))
  assert inputs.before
  _say_next_day(evaluation.next_day(run, inputs.before()), config)
  return run, inputs


def go_back(workdir: str, name: str) -> pathlib.Path:
  """Put another version of the run to use: `first`, or one by its name. Raises ConfigError."""
  root = _reserved(workdir)
  folder = _named(root, name)
  _put_to_use(root, folder)
  return folder


def _reserved(workdir: str) -> pathlib.Path:
  """Return the run folder, which is this process's from here on: no other changes what is in use.

  Raises ConfigError where there is no run, or another process is at work.
  """
  root = storage.absolute(workdir)
  saved_config(root)
  distributed.once(RunFolder(root).lock)
  return root


def _named(root: pathlib.Path, name: str) -> pathlib.Path:
  """Return the folder of a complete version. Raises ConfigError."""
  folders = {FIRST: root} | {path.name: path for path in sorted((root / VERSIONS).glob('*'))}
  known = [name for name, folder in folders.items() if _is_complete(folder)]
  if name not in known:
    right = f'one of {", ".join(known)}' if known else 'of a complete run, which has none'
    raise ConfigError(f'--go_back={name}: must be {right}')
  return folders[name]


def warm_started(config: Config, workdir: str) -> Config:
  """Return the settings of a run that starts from what another one has learned.

  Raises ConfigError where that run is not complete or has other models.
  """
  parent = current(storage.absolute(workdir))
  check_same_models(config, saved_config(parent), parent)
  update = dataclasses.replace(config.update, parent=str(parent), parent_key=last_key(parent))
  return dataclasses.replace(config, update=update).validated()


def _config(root: pathlib.Path, parent: pathlib.Path, data: str, assignments: list[str]) -> Config:
  """Return the settings of a version: those of the first run, but for what an update does less."""
  if any(each.split('=')[0].strip() == 'data.path' for each in assignments):
    raise ConfigError('--set data.path: is what --data says; must not be set')
  first = saved_config(root)
  of_update = [each for each in assignments if each.startswith('update.')]
  first = overrides.apply(first, of_update)
  if first.data.split != 'time':
    raise ConfigError(f'--workdir={root}: its data.split is {first.data.split}; must be time')
  if first.data.shards:
    raise ConfigError(f'--workdir={root}: its log is in data.shards; must be in memory as a whole')
  is_contract = first.data.format == 'contract'
  days = dataclasses.replace(
    first.data,
    format='contract',
    path=data,
    columns=first.data.columns if is_contract else (),
    time_unit=first.data.time_unit if is_contract else 's',
    on_error='stop',
    max_users=0,
    cold_items=0.0,
  )
  kept = tuple(name for name in first.evaluation.ablations if name in ('no_reasoner', *AT_RUN_TIME))
  version = dataclasses.replace(
    first,
    data=days,
    warmup=_fewer(first.warmup, first),
    loop_stage=_fewer(first.loop_stage, first),
    roles=dataclasses.replace(first.roles, annotations=''),
    calibration=dataclasses.replace(first.calibration, prior=first.update.prior),
    evaluation=dataclasses.replace(first.evaluation, ablations=kept),
    update=dataclasses.replace(
      first.update, parent=str(parent), parent_key=last_key(parent), appends=True
    ),
  )
  return overrides.apply(version, [each for each in assignments if each not in of_update])


def _fewer(stage: StageConfig, config: Config) -> StageConfig:
  """Return a stage as an update runs it."""
  optimizer = dataclasses.replace(
    stage.optimizer, learning_rate=stage.optimizer.learning_rate * config.update.learning_rate
  )
  steps = math.ceil(stage.steps * config.update.steps)
  return dataclasses.replace(stage, steps=steps, optimizer=optimizer)


def _version(root: pathlib.Path, parent: pathlib.Path, config: Config) -> pathlib.Path:
  """Return the folder of the version with these days: that of a killed update, or a new one.

  Reads the days, and so raises DataError before anything is written.
  """
  log = InteractionLog.load(parent / 'data')
  events, _, _ = read_new_days(config.data, log)
  require_purchase(events, log, f'{log_path(config.data)} (events)')
  last = datetime.datetime.fromtimestamp(int(events['timestamp'].to_numpy().max()), datetime.UTC)
  day = last.strftime('%Y-%m-%d')
  for name in (day, *(f'{day}.{number}' for number in range(2, 1000))):
    folder = root / VERSIONS / name
    if not (folder / 'config.json').exists():
      return folder
    if saved_config(folder).update.parent_key == config.update.parent_key and folder != parent:
      return folder
  raise ConfigError(f'{root / VERSIONS}: has 999 versions of {day}; remove some')


def _has_these_days(version: pathlib.Path, config: Config) -> bool:
  """Return whether the days of `config` are those that made this version."""
  if not saved_config(version).update.appends:
    return False
  record = records.read(version / 'data' / 'DONE.json')
  return record is not None and record.files == log_fingerprint(config.data)


def _check_same_version(version: pathlib.Path, config: Config, retrain: bool) -> None:
  """Raise ConfigError where `config` asks for another version of the same days than this one."""
  saved = saved_config(version)
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, path=saved.data.path),  # the days may have been moved
    update=dataclasses.replace(config.update, parent_key=saved.update.parent_key),
  )
  differing = '--retrain was given' if retrain else ''
  for stage in keys.stages(config):
    done = records.read(version / stage / 'DONE.json')
    if done and stage != 'baselines':
      now = dataclasses.replace(done, settings=keys.settings(stage, config))
      if difference := done.difference(now):
        differing = differing or f'its stage {stage} {difference.what}'
  if differing:
    before = storage.path(saved.update.parent)
    name = before.name if before.parent.name == VERSIONS else FIRST
    raise ConfigError(
      f'{version}: is in use and of these days already, but {differing}; must be asked for with '
      f'the same settings and without --retrain, or after --go_back={name}'
    )


def _say_unfinished(root: pathlib.Path, begun: pathlib.Path) -> None:
  """Say what other updates left that were given up: nothing removes it."""
  others = (path for path in sorted((root / VERSIONS).glob('*')) if path != begun)
  begun_before = (path for path in others if (path / 'config.json').exists())
  if unfinished := [path.name for path in begun_before if not _is_complete(path)]:
    say(f'{root / VERSIONS}: not finished: {", ".join(unfinished)}; remove what was given up')


def _is_complete(folder: pathlib.Path) -> bool:
  try:
    last_key(folder)
  except Refusal:
    return False
  return True


def _put_to_use(root: pathlib.Path, folder: pathlib.Path) -> None:
  write_json(dict(version=str(folder.relative_to(root))), root / CURRENT)
  say(f'in use: {folder}')


def _say_next_day(metrics: dict[str, dict], config: Config) -> None:
  for part in ('dormant', 'all'):
    for name, value in metrics.get(part, {}).items():
      if name in ('HI@10', f'HI@{config.evaluation.ks[-1]}'):
        say(
          f'next day, before training on it: {part} {name} {100 * value["mean"]:.2f} % '
          f'({100 * value["low"]:.2f} to {100 * value["high"]:.2f}) of {value["pairs"]} targets'
        )
