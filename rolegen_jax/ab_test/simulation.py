"""An A/B test from a run's folder: the simulator, the users, the arms, and what is kept of them.

The run folder keeps ab/KEY/ARM_SEED.npz of each finished arm and seed, where KEY is of the settings
of the test, then ab.json and ab.png of the latest test.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
import zipfile
from collections.abc import Sequence

import numpy as np

from rolegen_jax.ab_test import policies, summary
from rolegen_jax.ab_test.arms import Played, play
from rolegen_jax.config import Config, ConfigError, digest
from rolegen_jax.data.files import renamed, write_json
from rolegen_jax.evaluation import content, sasrec
from rolegen_jax.pipeline import stages
from rolegen_jax.pipeline.artifacts import saved_config
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.pipeline.stages import Trained
from rolegen_jax.reasoning.predict import Online
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.recommend import dormant
from rolegen_jax.simulator.rules import HELD_BACK
from rolegen_jax.simulator.world import World

# As in the report; no_reasoner is the backbone alone.
ARMS = ('popularity', 'recency', 'SASRec', 'no_reasoner', 'RoleGen')
# Also RoleGen's lists by log p, and slates of the backbone alone: what either is worth by itself.
KNOWN = (*ARMS, 'RoleGen_by_likelihood', 'no_reasoner_slates', 'oracle')
TESTED = 'RoleGen'


def simulate_ab(
  workdir: str | os.PathLike,
  simulator: str = 'default',
  days: int = 28,
  seeds: int = 5,
  arms: Sequence[str] = ARMS,
  slate: int = 10,
  retrain: bool = False,
) -> dict:
  """Play what is not yet kept, write ab.json and ab.png, and return what ab.json holds.

  `simulator` is `default`, that of the run's log, or `held_back`, for which the same settings are
  trained in WORKDIR/held_back first; files go to the run folder of that simulator. `retrain` trains
  again what was trained with other settings. Raises ConfigError when the run is not of a simulated
  log or not trained, or a setting is wrong.
  """
  config = saved_config(workdir)
  _check(config, workdir, days, seeds, arms, slate)
  if simulator == HELD_BACK:
    other = dataclasses.replace(config.simulator, preset=HELD_BACK, seed=config.simulator.seed + 1)
    held_back = dataclasses.replace(config, simulator=other)
    run = open_run(held_back, pathlib.Path(workdir) / HELD_BACK, retrain=retrain)
  else:
    run = open_run(config, workdir, may_train=retrain, retrain=retrain)
  result = Test(run, days, slate).result(arms, seeds)
  write_json(result, run.workdir / 'ab.json')
  from rolegen_jax.ab_test.plot import draw

  with renamed(run.workdir / 'ab.png') as path:
    draw(result, path)
  say(f'A/B test -> {run.workdir / "ab.json"}, {run.workdir / "ab.png"}')
  return result


def _check(
  config: Config,
  workdir: str | os.PathLike,
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
  unknown = [name for name in arms if name not in KNOWN]
  if unknown or len(set(arms)) < len(arms) or not arms:
    raise ConfigError(f'--arms={",".join(arms)}: must be different ones of {", ".join(KNOWN)}')
  if not 1 <= slate <= config.backbone.beam:
    raise ConfigError(f'--slate={slate}: must be 1 to backbone.beam={config.backbone.beam}')
  if days < 1 or seeds < 1:
    raise ConfigError(f'--days={days} --seeds={seeds}: must be at least 1')


class Test:
  """An A/B test on the users that `rolegen recommend --users=dormant` finds at the log's end."""

  __test__ = False  # for pytest

  def __init__(self, run: Run, days: int, slate: int):
    self.run, self.days, config = run, days, run.config
    self.inputs = prepare_inputs(run)
    log, occasions = self.inputs.log, self.inputs.occasions
    is_dormant = dormant(log, config.data, int(log.timestamp.max()) + 1)
    users = np.flatnonzero(is_dormant).astype(np.int32)
    if not len(users):
      raise ConfigError(
        f'--workdir={run.workdir}: no user is dormant at the end of its log; '
        'simulate more users (simulator.users)'
      )
    self.setting = policies.Setting(config, log, occasions, users, slate)
    self.world = World.build(config.simulator)
    user_ids = log.users.gather(users).to_numpy()
    self.state = self.world.state_of_rows(user_ids, *self.setting.past())

  @functools.cached_property
  def models(self) -> dict[str, Trained]:
    """The trained models by arm."""
    models = train_models(self.run, self.inputs)
    alone = stages.train_ablation(self.run, self.inputs, models, 'no_reasoner')
    return {TESTED: models.calibrated, 'no_reasoner': alone}

  @functools.cached_property
  def key(self) -> str:
    """A digest of all that the outcome of an arm depends on."""
    config = self.run.config
    evaluation = config.evaluation
    return digest(
      self.inputs.hashes,
      [model.key for model in self.models.values()],
      config.calibration,
      config.serving,
      config.backbone.beam,
      evaluation.seed,
      evaluation.sasrec_steps,
      evaluation.ks,
      evaluation.batch,
      self.days,
      self.setting.slate,
    )

  def result(self, arms: Sequence[str], seeds: int) -> dict:
    """Return measures, lifts and provenance; plays what is not yet kept."""
    self.run.folder.lock()
    config, started = self.run.config, time.monotonic()
    played = {name: self.arm(name, seeds) for name in arms}
    evaluation, simulator = config.evaluation, config.simulator
    measures = summary.summarize(played, TESTED, evaluation.bootstrap, evaluation.seed)
    seconds = time.monotonic() - started
    provenance = content.provenance(config, self.inputs.hashes, seconds)
    provenance['intervals'] = (
      f'95 % bootstrap over seeds and users, {evaluation.bootstrap} resamples'
    )
    about = dict(
      simulator=f'simulator {simulator.preset}, seed {simulator.seed}',
      slate=self.setting.slate,
      key=self.key,
      measures=summary.MEASURES,
      provenance=provenance,
    )
    return about | measures

  def arm(self, name: str, seeds: int) -> list[Played]:
    """Return what the arm did under every seed.

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
    setting, config = self.setting, self.run.config
    match name:
      case 'popularity':
        return policies.Popularity(setting)
      case 'recency':
        return policies.Recency(setting)
      case 'SASRec':
        k = max(config.evaluation.ks)
        fitted = sasrec.fit(setting.log, setting.occasions, config, k)
        return policies.Sasrec(setting, fitted)
      case 'oracle':
        return policies.Oracle(setting, self.world)
    model = TESTED if name.startswith(TESTED) else 'no_reasoner'
    explores = name in (TESTED, 'no_reasoner_slates')
    return self._generative(model, config.serving.exploration_weight if explores else 0.0)

  def _generative(self, model: str, exploration_weight: float) -> policies.Generative:
    run, inputs = self.run, self.inputs
    online = Online(
      run.rolegen,
      self.models[model].load(),
      inputs.trie,
      run.mesh,
      run.config.backbone.beam,
      reasoning=model == TESTED,
    )
    return policies.Generative(self.setting, online, inputs.excitation, exploration_weight)


def _read(path: pathlib.Path, key: str) -> Played | None:
  """Return what was played under `key`; None when there is nothing, or nothing whole."""
  try:
    with np.load(path) as file:
      return Played(*(file[name] for name in Played._fields)) if file['key'] == key else None
  except (FileNotFoundError, EOFError, zipfile.BadZipFile, KeyError, ValueError):
    return None
