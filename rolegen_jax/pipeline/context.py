"""What every stage of a run shares: its settings, its folder, the mesh and the two models."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from types import ModuleType

import jax
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError, digest
from rolegen_jax.data import digests
from rolegen_jax.models import functional
from rolegen_jax.pipeline import keys
from rolegen_jax.pipeline.artifacts import RunFolder, Stage
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import compilation_cache, distributed, mirror
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training.fit import Observers
from rolegen_jax.training.losses import Params


@dataclasses.dataclass(frozen=True)
class Run:
  """The settings and the place of one run."""

  config: Config
  folder: RunFolder
  mesh: Mesh
  rolegen: RoleGen
  # What the reasoner starts from: the pretrained weights if there are any, else random ones.
  base: Callable[[], Params]
  observers: Observers = Observers()

  @property
  def workdir(self) -> pathlib.Path:
    """The run folder's path."""
    return self.folder.path

  def begin(self, stage: str, inputs: dict[str, str]) -> Stage:
    """Return a stage, its folder ready; `inputs` are hashes and keys of what it reads of others."""
    return self.folder.begin(keys.record(stage, self.config, inputs))

  def ablated(self, ablation: str) -> Run:
    """Return this run with the settings of an ablation: itself where they are the same."""
    config = self.config.ablated(ablation)
    if config == self.config:
      return self
    return dataclasses.replace(self, config=config, rolegen=self.rolegen.of(config))

  def with_catalogue(self, trie: Trie) -> Run:
    """Return this run with models for a catalogue."""
    return dataclasses.replace(self, rolegen=RoleGen(self.config, *trie.sizes))


def open_run(
  config: Config,
  workdir: str | os.PathLike,
  may_train: bool = True,
  retrain: bool = False,
  keep_config: bool = True,
  observers: Observers = Observers(),
) -> Run:
  """Return the run of these settings in `workdir`, which is made if it is absent.

  Raises ConfigError naming a field that is wrong, with which a stage that is there was trained
  otherwise, or on which processes of the job disagree.

  Args:
    config: the settings.
    workdir: the run folder.
    may_train: False = nothing is written, and a stage that is not complete is an error.
    retrain: whether a stage that was trained otherwise starts afresh.
    keep_config: whether what is written becomes the folder's config.json.
    observers: what looks on while stages train.
  """
  config = config.validated()
  if config.reasoner.pretrained:
    config = pretrained_folder().configure(config).validated()
  annotations = config.roles.annotations
  if annotations and not mirror.opened(annotations).is_file():
    raise ConfigError(
      f'roles.annotations={annotations}: no such file; must be what `rolegen annotate` wrote'
    )
  folder = RunFolder(workdir, may_train, retrain)
  digests.recall(folder.path / 'data' / digests.FILE)
  mesh = sharding.make_mesh(config.mesh)
  _check_batches(config, folder, mesh, retrain)
  rolegen = RoleGen(config)
  for model_fn in rolegen.model_fns.values():
    functional.shardings(model_fn, mesh)  # raises ConfigError where the mesh does not divide them
  distributed.agree(
    dict(code=distributed.code_digest(), jax=jax.__version__, config=digest(config))
  )
  if may_train and keep_config:
    distributed.once(lambda: _adopt(folder, config))
  # Ablations, restarts and versions run the very same programs: compile each once per run folder.
  compilation_cache.use(folder.root / 'compilation_cache')
  base = functools.cache(lambda: _base(rolegen, mesh))
  return Run(config, folder, mesh, rolegen, base, observers)


def _check_batches(config: Config, folder: RunFolder, mesh: Mesh, retrain: bool) -> None:
  """Raise ConfigError naming a batch size, of what is still to run, that does not divide."""
  stages = dict(warmup='warmup', align='align', reason='reason', loop_stage='loop')
  if config.reasoner.kinds:
    stages['kinds'] = 'kinds'
  for name, stage in stages.items():
    if retrain or not (folder.path / stage / 'DONE.json').exists():
      sharding.check_batch(f'{name}.batch', getattr(config, name).batch, config, mesh)
  sharding.check_batch('evaluation.batch', config.evaluation.batch, config, mesh)


def _adopt(folder: RunFolder, config: Config) -> None:
  # All stages are asked before the first is touched: a refused command has changed nothing.
  folder.adopt(config, [keys.record(stage, config, {}) for stage in keys.stages(config)])


def pretrained_folder() -> ModuleType:
  """Return what reads pretrained weights; it brings libraries that only it needs."""
  from rolegen_jax.pretrained import folder

  return folder


def _base(rolegen: RoleGen, mesh: Mesh) -> Params:
  config = rolegen.config
  if config.reasoner.pretrained:
    return load_pretrained(rolegen, mesh)
  key = jax.random.key(config.seed)
  return functional.init(rolegen.model_fns['reasoner'], key, mesh)[1]


def load_pretrained(rolegen: RoleGen, mesh: Mesh) -> Params:
  """Return the reasoner's parameters as the pretrained folder has them."""
  reasoner = rolegen.config.reasoner
  return pretrained_folder().Folder(reasoner.pretrained).load(reasoner, rolegen.vocab, mesh)
