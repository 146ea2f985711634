"""An A/B test from a run's folder: which world, whom of it, which arms, what is kept of them, and the result.

Kept in the run folder: ab/ARM_SEED.npz for each finished arm and seed, then ab.json and ab.png.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
import zipfile

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

ARMS = (
  'popularity',
  'recency',
  'SASRec',
  'no_reasoner',
  'RoleGen',
)  # as in the report; no_reasoner is the backbone alone
# Also: RoleGen's lists by log p, and slates of the backbone alone. What either part is worth without the other.
KNOWN = (*ARMS, 'RoleGen_by_likelihood', 'no_reasoner_slates', 'oracle')
TESTED = 'RoleGen'


def simulate_ab(
  workdir: str | os.PathLike,
  simulator: str = 'default',
  days: int = 28,
  seeds: int = 5,
  arms: list[str] = ARMS,
  slate: int = 10,
) -> dict:
  """Plays what is not yet kept, writes ab.json and ab.png into the run folder of the world, and returns what ab.json holds.

  simulator: `default`, the one of the run's log, or `held_back`, for which the same settings are trained in WORKDIR/held_back first.
  Raises ConfigError when the run is not of a simulated log or not trained, or a setting is wrong.
  """
  config = saved_config(workdir)
  _check(config, workdir, days, seeds, arms, slate)
  if simulator == HELD_BACK:
    other = dataclasses.replace(config.simulator, preset=HELD_BACK, seed=config.simulator.seed + 1)
    run = open_run(dataclasses.replace(config, simulator=other), pathlib.Path(workdir) / HELD_BACK)
  else:
    run = open_run(config, workdir, may_train=False)
  found = Test(run, days, slate).result(arms, seeds)
  write_json(found, run.workdir / 'ab.json')
  from rolegen_jax.ab_test.plot import draw

  with renamed(run.workdir / 'ab.png') as path:
    draw(found, path)
  say(f'A/B test -> {run.workdir / "ab.json"}, {run.workdir / "ab.png"}')
  return found


def _check(config: Config, workdir, days: int, seeds: int, arms: list[str], slate: int) -> None:
  if config.data.format != 'simulated':
    raise ConfigError(
      f'--workdir={workdir}: its log is {config.data.format}; must be simulated, as no other log answers what users would have done'
    )
  unknown = [name for name in arms if name not in KNOWN]
  if unknown or len(set(arms)) < len(arms) or not arms:
    raise ConfigError(f'--arms={",".join(arms)}: must be different ones of {", ".join(KNOWN)}')
  if not 1 <= slate <= config.backbone.beam:
    raise ConfigError(f'--slate={slate}: must be 1 to backbone.beam={config.backbone.beam}')
  if days < 1 or seeds < 1:
    raise ConfigError(f'--days={days} --seeds={seeds}: must be at least 1')


class Test:
  """An A/B test on the users who are dormant at the end of the log, as `recommend --users=dormant` finds them."""

  __test__ = False  # for pytest

  def __init__(self, run: Run, days: int, slate: int):
    self.run, self.days, c = run, days, run.config
    self.inputs = prepare_inputs(run)
    log, occasions = self.inputs.log, self.inputs.occasions
    users = np.flatnonzero(dormant(log, c.data, int(log.timestamp.max()) + 1)).astype(np.int32)
    if not len(users):
      raise ConfigError(
        f'--workdir={run.workdir}: no user is dormant at the end of its log; must be a larger world'
      )
    self.setting = policies.Setting(c, log, occasions, users, slate)
    self.world = World.build(c.simulator)
    self.state = self.world.state_of_rows(log.users.gather(users).to_numpy(), *self.setting.past())

  @functools.cached_property
  def models(self) -> dict[str, Trained]:
    """The trained models by arm."""
    models = train_models(self.run, self.inputs)
    alone = stages.train_ablation(self.run, self.inputs, models, 'no_reasoner')
    return {TESTED: models.calibrated, 'no_reasoner': alone}

  @functools.cached_property
  def key(self) -> str:
    """Digest of all that the outcome of an arm depends on."""
    run, e = self.run, self.run.config.evaluation
    return digest(
      self.inputs.hashes,
      [model.key for model in self.models.values()],
      run.config.calibration,
      run.config.serving,
      e.seed,
      e.sasrec_steps,
      e.ks,
      e.batch,
      self.days,
      self.setting.slate,
    )

  def result(self, arms: list[str], seeds: int) -> dict:
    self.run.folder.lock()
    c, started, played = (
      self.run.config,
      time.monotonic(),
      {name: self.arm(name, seeds) for name in arms},
    )
    found = summary.summarise(played, TESTED, c.evaluation.bootstrap, c.evaluation.seed)
    simulator = f'simulator {c.simulator.preset}, seed {c.simulator.seed}'
    intervals = f'95 % bootstrap over seeds and users, {c.evaluation.bootstrap} resamples'
    about = content.provenance(c, self.inputs.hashes, time.monotonic() - started) | dict(
      intervals=intervals
    )
    return (
      dict(
        simulator=simulator,
        slate=self.setting.slate,
        key=self.key,
        measures=summary.MEASURES,
        provenance=about,
      )
      | found
    )

  def arm(self, name: str, seeds: int) -> list[Played]:
    """Of every seed. The policy is made when there is something left to play."""
    folder, policy, played = self.run.workdir / 'ab', None, []
    price = self.setting.log.items['price'].to_numpy()
    for seed in range(seeds):
      path = folder / f'{name}_{seed}.npz'
      kept = _read(path, self.key)
      if kept is None:
        policy = policy or self.policy(name)
        kept = play(self.world, self.state, policy, price, seed, self.days, f'{name}, seed {seed}')
        with renamed(path) as temporary, temporary.open('wb') as file:
          np.savez_compressed(file, key=self.key, **kept._asdict())
      played.append(kept)
    return played

  def policy(self, name: str) -> policies.Policy:
    run, setting, c = self.run, self.setting, self.run.config

    def generative(model: str, exploration_weight: float = 0.0):
      online = Online(
        run.rolegen,
        self.models[model].load(),
        self.inputs.trie,
        run.mesh,
        c.backbone.beam,
        reasoning=model == TESTED,
      )
      return policies.Generative(setting, online, self.inputs.excitation, exploration_weight)

    return {
      'popularity': lambda: policies.Popularity(setting),
      'recency': lambda: policies.Recency(setting),
      'SASRec': lambda: policies.Sasrec(
        setting, sasrec.fit(setting.log, self.inputs.occasions, c, max(c.evaluation.ks))
      ),
      'no_reasoner': lambda: generative('no_reasoner'),
      TESTED: lambda: generative(TESTED, c.serving.exploration_weight),
      'RoleGen_by_likelihood': lambda: generative(TESTED),
      'no_reasoner_slates': lambda: generative('no_reasoner', c.serving.exploration_weight),
      'oracle': lambda: policies.Oracle(setting, self.world),
    }[name]()


def _read(path: pathlib.Path, key: str) -> Played | None:
  """What was played under `key`; None when there is nothing, or something of other settings."""
  try:
    with np.load(path) as file:
      return Played(*(file[name] for name in Played._fields)) if file['key'] == key else None
  except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError):
    return None
