"""An A/B test from a run's folder: the simulator, the users, the arms, and what is kept of them.

The run folder keeps ab/KEY/ARM_SEED.npz of each finished arm and noise seed, where KEY is of the
settings of the test, then ab.json and ab.png of the latest test. Of several run folders, which
differ in their training seed, the first has the last two.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import time
import zipfile
from collections.abc import Sequence

import numpy as np

from rolegen_jax.ab_test import policies, summary
from rolegen_jax.ab_test.arms import Played, play
from rolegen_jax.config import Config, ConfigError, digest, to_dict
from rolegen_jax.data.files import renamed, write_json
from rolegen_jax.evaluation import content, sasrec
from rolegen_jax.evaluation.agreement import rank_agreement
from rolegen_jax.pipeline.ablations import train_ablation
from rolegen_jax.pipeline.artifacts import saved_config
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.pipeline.stages import Trained
from rolegen_jax.reasoning import looks
from rolegen_jax.reasoning.predict import predicting
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.audience import dormant
from rolegen_jax.simulator.rules import HELD_BACK
from rolegen_jax.simulator.world import build

# As in the report; no_reasoner is the backbone alone. What has probabilities is shown by log p and
# as slates; popular_opens is one slate for everybody.
ARMS = (
  'popularity',
  'popular_opens',
  'recency',
  'counting',
  'counting_slates',
  'SASRec',
  'SASRec_slates',
  'no_reasoner',
  'no_reasoner_slates',
  'RoleGen',
  'RoleGen_slates',
)
KNOWN = (*ARMS, 'oracle', 'oracle_slates', summary.AHEAD)


def simulate_ab(
  workdir: str | os.PathLike,
  simulator: str = 'default',
  days: int = 28,
  seeds: int = 5,
  arms: Sequence[str] = ARMS,
  slate: int = 10,
  others: Sequence[str | os.PathLike] = (),
  retrain: bool = False,
) -> dict:
  """Play what is not yet kept, write ab.json and ab.png, and return what ab.json holds.

  `simulator` is `default`, that of the run's log, or `held_back`, for which the same settings are
  trained in WORKDIR/held_back first; files go to the run folder of that simulator. `others` are
  further runs that differ from `workdir` in their training seed alone: the figures are then over
  all of them. `retrain` trains again what was trained with other settings. Raises ConfigError when
  a run is not of a simulated log or not trained, or a setting is wrong.
  """
  workdirs = [workdir, *others]
  configs = [saved_config(folder) for folder in workdirs]
  _check(configs[0], workdir, simulator, days, seeds, arms, slate)
  _check_alike(configs, workdirs)
  runs = [_open(folder, config, simulator, retrain) for folder, config in zip(workdirs, configs)]
  result = played([Test(run, days, slate) for run in runs], arms, seeds)
  write_json(result, runs[0].workdir / 'ab.json')
  from rolegen_jax.ab_test.plot import draw

  with renamed(runs[0].workdir / 'ab.png') as path:
    draw(result, path)
  say(f'A/B test -> {runs[0].workdir / "ab.json"}, {runs[0].workdir / "ab.png"}')
  return result


def _open(workdir: str | os.PathLike, config: Config, simulator: str, retrain: bool) -> Run:
  if simulator != HELD_BACK:
    return open_run(config, workdir, may_train=retrain, retrain=retrain)
  other = dataclasses.replace(config.simulator, preset=HELD_BACK, seed=config.simulator.seed + 1)
  held_back = dataclasses.replace(config, simulator=other)
  return open_run(held_back, storage.path(workdir) / HELD_BACK, retrain=retrain)


def _check(
  config: Config,
  workdir: str | os.PathLike,
  simulator: str,
  days: int,
  seeds: int,
  arms: Sequence[str],
  slate: int,
) -> None:
  if config.data.format != 'simulated':
    raise ConfigError(
      f'--workdir={workdir}: its log is {config.data.format}; must be simulated, as no other log '
      'answers what users would have done'
    )
  if simulator == HELD_BACK and config.simulator.kind != 'item_traits':
    raise ConfigError(
      f'--simulator={HELD_BACK}: holds back item traits; must be default for a run with '
      f'simulator.kind={config.simulator.kind}'
    )
  unknown = [name for name in arms if name not in KNOWN]
  if unknown or len(set(arms)) < len(arms) or not arms:
    raise ConfigError(f'--arms={",".join(arms)}: must be different ones of {", ".join(KNOWN)}')
  if not 1 <= slate <= config.backbone.beam:
    raise ConfigError(f'--slate={slate}: must be 1 to backbone.beam={config.backbone.beam}')
  if days < 1 or seeds < 1:
    raise ConfigError(f'--days={days} --seeds={seeds}: must be at least 1')


def _check_alike(configs: list[Config], workdirs: Sequence[str | os.PathLike]) -> None:
  """Raise ConfigError where runs differ in more than their seed, or have one seed twice."""
  first = to_dict(configs[0])
  folder_of_seed: dict[int, str | os.PathLike] = {}
  for config, workdir in zip(configs, workdirs):
    differing = differences(first, to_dict(config) | dict(seed=configs[0].seed))
    if differing:
      raise ConfigError(
        f'--workdir={workdir}: its {differing[0]} is not that of {workdirs[0]}; runs must differ '
        'in `seed` alone'
      )
    if config.seed in folder_of_seed:
      raise ConfigError(
        f'--workdir={workdir}: its seed={config.seed} is that of {folder_of_seed[config.seed]}; '
        'must be another training seed'
      )
    folder_of_seed[config.seed] = workdir


def differences(one: dict, other: dict, prefix: str = '') -> list[str]:
  """Return the dotted names of the fields in which two configs, as dicts, differ."""
  found = []
  for name in one:
    if isinstance(one[name], dict) and isinstance(other[name], dict):
      found += differences(one[name], other[name], f'{prefix}{name}.')
    elif one[name] != other[name]:
      found.append(f'{prefix}{name}')
  return found


def played(tests: list[Test], arms: Sequence[str], seeds: int) -> dict:
  """Return measures, lifts and provenance of a test in every run; plays what is not yet kept."""
  for test in tests:
    test.run.folder.lock()
  first, started = tests[0], time.monotonic()
  of_arm = {name: [p for test in tests for p in test.arm(name, seeds)] for name in arms}
  config, training_seeds = first.run.config, [test.run.config.seed for test in tests]
  evaluation, simulator = config.evaluation, config.simulator
  measures = summary.summarize(of_arm, training_seeds, evaluation.bootstrap, evaluation.seed)
  seconds = time.monotonic() - started
  provenance = content.provenance(config, first.inputs.hashes, seconds)
  provenance |= dict(
    intervals=f'{summary.about_intervals(training_seeds)}, {evaluation.bootstrap} resamples',
    training_seeds=training_seeds,
    noise_seeds=seeds,
    config_digests=[digest(test.run.config) for test in tests],
  )
  about = dict(
    simulator=f'simulator {simulator.label}',
    slate=first.setting.slate,
    key=digest(*(test.key for test in tests)),
    measures=summary.MEASURES,
    opens_agreement=_mean([test.opens_agreement for test in tests]),
    provenance=provenance,
  )
  return about | measures


class Test:
  """An A/B test on the users that `rolegen recommend --users=dormant` finds at the log's end."""

  __test__ = False  # for pytest

  def __init__(self, run: Run, days: int, slate: int):
    self.days, config = days, run.config
    self.run, self.inputs = prepare_inputs(run)
    log, occasions = self.inputs.log, self.inputs.occasions
    is_dormant = dormant(log, config.data, int(log.timestamp.max()) + 1)
    users = np.flatnonzero(is_dormant).astype(np.int32)
    if not len(users):
      raise ConfigError(
        f'--workdir={run.workdir}: no user is dormant at the end of its log; '
        'simulate more users (simulator.users)'
      )
    inputs = self.inputs
    self.setting = policies.Setting(
      config,
      log,
      occasions,
      inputs.interest_shift,
      inputs.excitation,
      inputs.choices.kernel,
      inputs.bars_history,
      users,
      slate,
      inputs.trending,
    )
    self.world = build(config.simulator)
    user_ids = log.users.gather(users).to_numpy()
    self.state = self.world.state_of_rows(user_ids, *self.setting.past())

  @functools.cached_property
  def opens_agreement(self) -> float:
    """How well what items open, as counted for everybody, ranks the true effects of looks.

    It is over the items that each of at most 500 users would most probably buy at the log's end.
    """
    oracle, opens = policies.Oracle(self.setting, self.world), self.setting.excitation.opens.share
    rows = np.unique(np.linspace(0, len(self.state.users) - 1, 500).astype(int))
    now = int(self.setting.log.timestamp.max()) + 1
    oracle.begin()
    item = oracle.rank(rows, now).item
    times = np.full(len(rows), now)
    effects = self.world.effects_of_looks(self.state.rows(rows), item, times)
    return rank_agreement(opens[item], effects)

  @functools.cached_property
  def models(self) -> dict[str, Trained]:
    """The trained models by arm."""
    models = train_models(self.run, self.inputs)
    alone = train_ablation(self.run, self.inputs, models, 'no_reasoner')
    return {summary.TESTED: models.calibrated, 'no_reasoner': alone}

  @functools.cached_property
  def sasrec(self) -> sasrec.Fit:
    """The SASRec of the report, trained for its two arms."""
    return sasrec.fit(self.setting.baselines, self.run.config.backbone.beam)

  @functools.cached_property
  def key(self) -> str:
    """A digest of all that the outcome of an arm depends on."""
    config = self.run.config
    evaluation = config.evaluation
    return digest(
      self.inputs.hashes,
      hashlib.sha256(self.setting.excitation.opens.log.tobytes()).hexdigest(),
      *(['looks'] if config.reasoner.kinds else []),  # `reasoning/looks.py` chooses slates
      [model.key for model in self.models.values()],
      config.calibration,
      config.serving,
      config.seed,
      config.backbone.beam,
      evaluation.sasrec,
      evaluation.ks,
      self.days,
      self.setting.slate,
    )

  def arm(self, name: str, seeds: int) -> list[Played]:
    """Return what the arm did under every noise seed.

    The policy is made when there is something left to play.
    """
    policy, results = None, []
    price = self.setting.log.items['price'].to_numpy()
    for seed in range(seeds):
      path = self.run.workdir / 'ab' / self.key / f'{name}_{seed}.npz'
      played = _read(path, self.key)
      if played is None:
        policy = policy or self.policy(name)
        label = f'{name}, seed {seed}'
        played = play(self.world, self.state, policy, price, seed, self.days, label)
        with renamed(path) as temporary, temporary.open('wb') as file:
          np.savez_compressed(file, key=np.array(self.key), **played._asdict())
      results.append(played)
    return results

  def policy(self, name: str) -> policies.Policy:
    """Return the policy of an arm, its models loaded."""
    serving = self.run.config.serving
    ranker = self._ranker(name.removesuffix(summary.SLATES))
    weight = serving.exploration_weight if name.endswith(summary.SLATES) else 0.0
    opened = None
    if isinstance(ranker, policies.Generative) and ranker.of_looks:
      opened = ranker.opened
    return policies.Policy(self.setting, ranker, weight, opened)

  def _ranker(self, name: str) -> policies.Ranker:
    setting, run = self.setting, self.run
    match name:
      case 'popularity':
        return policies.Fixed(setting, policies.log_popularity(setting))
      case summary.POPULAR_OPENS:
        worth = run.config.serving.exploration_weight * setting.excitation.opens.log
        return policies.Fixed(setting, policies.log_popularity(setting) + worth)
      case 'recency':
        return policies.Recency(setting)
      case 'counting':
        return policies.Counting(setting)
      case 'SASRec':
        return policies.Sasrec(setting, self.sasrec)
      case 'oracle':
        return policies.Oracle(setting, self.world)
      case summary.AHEAD:
        return policies.LookingAhead(setting, self.world)
    params, trie, is_tested = self.models[name].load(), self.inputs.trie, name == summary.TESTED
    beams = run.config.backbone.beam
    online = predicting(run.rolegen, params, trie, run.mesh, beams, reasoning=is_tested)
    told = is_tested and looks.are_known(params)
    of_users = looks.looking(run.rolegen, params, trie, run.mesh) if told else None
    return policies.Generative(setting, online, of_users)


def _read(path: pathlib.Path, key: str) -> Played | None:
  """Return what was played under `key`; None when there is nothing, or nothing whole."""
  try:
    with np.load(storage.local(path)) as file:
      return Played(*(file[name] for name in Played._fields)) if file['key'] == key else None
  except (FileNotFoundError, EOFError, zipfile.BadZipFile, KeyError, ValueError):
    return None


def _mean(values: list[float]) -> float | None:
  """Return the mean; None where there is none, which JSON can say."""
  return float(np.mean(values)) if np.isfinite(values).all() else None
