"""What every stage of a run shares: its settings, its folder, the mesh and the two models."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError, digest
from rolegen_jax.models import functional
from rolegen_jax.pipeline.artifacts import RunFolder
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import distributed
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

  @property
  def workdir(self) -> pathlib.Path:
    """The run folder's path."""
    return self.folder.path

  def with_loop(self, **settings: Any) -> Run:
    """Return this run with other settings of the closed loop; all earlier stages are the same."""
    loop = dataclasses.replace(self.config.loop, **settings)
    config = dataclasses.replace(self.config, loop=loop)
    return dataclasses.replace(self, config=config, rolegen=RoleGen(config))


def open_run(config: Config, workdir: str | os.PathLike, may_train: bool = True) -> Run:
  """Return the run of these settings in `workdir`, which is made if it is absent.

  With `may_train` False nothing is written, and a stage that is not complete is an error. Raises
  ConfigError naming a field that is wrong, or on which processes of the job disagree.
  """
  config = config.validated()
  if config.reasoner.pretrained:
    config = pretrained_folder().configure(config).validated()
  annotations = config.roles.annotations
  if annotations and not pathlib.Path(annotations).is_file():
    raise ConfigError(
      f'roles.annotations={annotations}: no such file; must be what `rolegen annotate` wrote'
    )
  folder = RunFolder(workdir, may_train)
  mesh = sharding.make_mesh(config.mesh)
  _check_batches(config, folder, mesh)
  rolegen = RoleGen(config)
  for model_fn in rolegen.model_fns.values():
    functional.shardings(model_fn, mesh)  # raises ConfigError where the mesh does not divide them
  distributed.agree(
    dict(code=distributed.code_digest(), jax=jax.__version__, config=digest(config))
  )
  if may_train:
    distributed.once(lambda: folder.save_config(config))
  # Ablations and restarts run the very same programs: compile each once per run folder, or where
  # the environment says.
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(folder.path / 'compilation_cache'))
  return Run(config, folder, mesh, rolegen, functools.cache(lambda: _base(rolegen, mesh)))


def _check_batches(config: Config, folder: RunFolder, mesh: Mesh) -> None:
  """Raise ConfigError naming a batch size, of what is still to run, that does not divide."""
  stages = dict(warmup='warmup', align='align', reason='reason', loop_stage='loop')
  for name, stage in stages.items():
    if not (folder.path / stage / 'DONE.json').exists():
      sharding.check_batch(f'{name}.batch', getattr(config, name).batch, config, mesh)
  sharding.check_batch('evaluation.batch', config.evaluation.batch, config, mesh)


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
