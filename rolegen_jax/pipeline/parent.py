"""The run that another one continues: what of it is read, and how it fits the log of today.

`update.parent` names its folder, `update.parent_key` the state that it was in: a parent that was
trained again since is refused. Only a stage that is not complete reads the parent.

Items keep their semantic IDs and change their indices, as a log's items are in the order of their
ids. So the arrays that have a row per item, of parameters and of Adam's moments alike, are put into
the order of today. A new item, and one that the parent had no training event of, starts at zero:
its vector is what its codes and its text say.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from rolegen_jax.config import Config, ConfigError, digest
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Cuts, Occasions
from rolegen_jax.data.prepare import load_prepared
from rolegen_jax.models import functional
from rolegen_jax.overrides import field_paths
from rolegen_jax.pipeline import artifacts, keys, records
from rolegen_jax.pipeline.artifacts import VERSIONS
from rolegen_jax.pipeline.context import Run
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.compile import jit_once
from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.semantic_ids.stage import Earlier
from rolegen_jax.semantic_ids.text_vectors import TextVectors
from rolegen_jax.semantic_ids.trie import default_capacity
from rolegen_jax.training import state as states
from rolegen_jax.training import steps
from rolegen_jax.training.checkpoint import Checkpoints
from rolegen_jax.training.losses import Params
from rolegen_jax.training.state import State, optimizer

# Of sections that decide which parameters there are and what they mean, fields that do not.
_FREE = ('backbone.beam', 'semantic_ids.iterations', 'semantic_ids.seed', 'semantic_ids.method')


@dataclasses.dataclass(frozen=True, eq=False)
class Parent:
  """A complete run, and the run that continues it."""

  folder: pathlib.Path
  config: Config
  run: Run  # the one that continues, with its catalogue
  items: pl.Series  # ids of the items of its log, sorted

  @classmethod
  def of(cls, run: Run, items: pl.Series = pl.Series([], dtype=pl.Int64)) -> Parent:
    """Open the parent that the settings of `run` name; `items` are those of the log of `run`.

    Without them, what has a row per item cannot be read.

    Raises ConfigError where it is not complete, was trained again since, or has other models.
    """
    folder = _place(run)
    config, key = artifacts.saved_config(folder), artifacts.last_key(folder)
    if key != run.config.update.parent_key:
      raise ConfigError(
        f'update.parent={folder}: has been trained again since this run began (its key is {key}, '
        f'was {run.config.update.parent_key}); start this run again in another folder'
      )
    check_same_models(run.config, config, folder)
    return cls(folder, config, run, items)

  @functools.cached_property
  def prepared(self) -> tuple[InteractionLog, Occasions]:
    """Its log and occasions."""
    return load_prepared(self.folder / 'data')

  @property
  def log(self) -> InteractionLog:
    """Its log."""
    return self.prepared[0]

  @functools.cached_property
  def cuts(self) -> Cuts:
    """Until when it has learned, and until when its log goes."""
    end = int(self.log.timestamp.max())
    return Cuts(end if self.config.update.appends else self.prepared[1].train_cut, end)

  @functools.cached_property
  def semantic_ids(self) -> Earlier:
    """Its items and their IDs."""
    folder = self.folder / 'semantic_ids'
    text = TextVectors.load(folder) if self.config.semantic_ids.text else None
    return Earlier(self.log.items, Catalogue.load(folder), text)

  @functools.cached_property
  def warmup(self) -> State:
    """What its stage `warmup` left, over the items of today."""
    stage = self.run.config.warmup
    rolegen = self._rolegen
    model_fns = {'backbone': rolegen.trained['backbone']}
    return self._state('warmup', model_fns, {'backbone': optimizer(stage.optimizer, stage.steps)})

  @functools.cached_property
  def loop(self) -> State:
    """What its stage `loop` left, over the items of today."""
    return self._state('loop', *steps.joint_parts(self._rolegen))

  def params(self) -> dict[str, Params]:
    """Return what its loop left, with what is frozen."""
    params = dict(self.loop.params)
    for name, model_fn in self.run.rolegen.frozen.items():
      params[name] = functional.join(params[name], functional.part(model_fn, self.run.base()))
    return params

  def calibrated(self, name: str = 'loop') -> dict[str, Params]:
    """Return the same with the weights that were fitted in the folder of `name`, if any were."""
    return functional.with_leaves(self.params(), self.weights(name))

  def weights(self, name: str) -> dict[str, np.ndarray]:
    """Return the arrays that were fitted in the folder of `name` by path, none where none were."""
    path = self.folder / name / 'calibration' / 'weights.npz'
    fitted = artifacts.read_arrays(path) if path.exists() else {}
    fitted.pop('nll', None)
    return fitted

  @functools.cached_property
  def _rolegen(self) -> RoleGen:
    """The models for the parent's catalogue."""
    earlier = self.semantic_ids
    text = 0 if earlier.text is None else earlier.text.vectors.shape[1]
    return RoleGen(self.run.config, default_capacity(earlier.items.height), text)

  def _state(self, stage: str, model_fns: dict, optimizers: dict) -> State:
    """Return the state that `stage` left. Raises DataError where its checkpoint is damaged."""
    mesh = self.run.mesh
    abstract = states.abstract(model_fns, optimizers, mesh)
    checkpoints = Checkpoints(self.folder / stage / 'checkpoints', {}, may_train=False)
    with jax.set_mesh(mesh):
      restored = checkpoints.restore(abstract)
      checkpoints.close()
      if restored is None:
        raise ConfigError(f'update.parent={self.folder}: its stage {stage} has no checkpoint')
      state = restored[0]
      models = {name: self.run.rolegen.trained[name] for name in optimizers}
      layout = states.shardings(models, optimizers, mesh)
      backbone = functools.partial(self._over_items, layout=layout.params['backbone'])
      state.params['backbone'] = backbone(state.params['backbone'])
      moments = functools.partial(self._over_items, layout=layout.opt['backbone'])
      state.opt['backbone'] = moments(state.opt['backbone'])
    return state

  def _over_items(self, tree: Any, layout: Any) -> Any:
    """Return a tree of the backbone's parameters or moments with the rows of items of today."""
    axes = functional.flatten(self.run.rolegen.axes['backbone'])
    source = self._source

    def placed(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
      name = '.'.join(str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))
      if axes.get(name, ('',))[0] != 'items':
        return leaf
      rows = jnp.take(leaf, jnp.maximum(source, 0), axis=0)
      return jnp.where((source >= 0).reshape(-1, *(1,) * (leaf.ndim - 1)), rows, 0)

    move = functools.partial(jax.tree_util.tree_map_with_path, placed)
    return jit_once(move, out_shardings=layout)(tree)

  @functools.cached_property
  def _source(self) -> np.ndarray:
    """The parent's index of every item of today, int32 [item capacity]; -1 = starts at zero."""
    today = self.items
    ids, counts = self.log.items['item_id'], self.prepared[1].train_events(self.log)
    if self.config.update.appends:
      counts = np.bincount(self.log.item, minlength=len(ids))
    place = np.minimum(ids.search_sorted(today).to_numpy(), len(ids) - 1)
    known = (ids.gather(place) == today).to_numpy() & (counts[place] > 0)
    source = np.full(default_capacity(len(today)), -1, np.int32)
    source[: len(today)] = np.where(known, place, -1)
    return source


def _place(run: Run) -> pathlib.Path:
  """Return the parent's folder; that of a version may have been moved with the run folder.

  Raises ConfigError where there is none.
  """
  named, root = storage.path(run.config.update.parent), run.folder.root
  moved = root / VERSIONS / named.name if named.parent.name == VERSIONS else root
  for folder in (named, moved) if run.config.update.appends else (named,):
    if (folder / 'config.json').exists():
      return folder
  raise ConfigError(
    f'update.parent={named}: is not there; must be, to continue the run in {run.workdir} or to '
    'evaluate it; recommend, serve, export and the next update do without'
  )


def check_same_models(config: Config, parent: Config, folder: pathlib.Path) -> None:
  """Raise ConfigError naming the first setting by which the models of two runs differ.

  Or where the equations of kinds of users were others when the parent learned them.
  """
  for path in field_paths(config):
    if path.split('.')[0] not in ('semantic_ids', 'backbone', 'reasoner') or path in _FREE:
      continue
    ours, theirs = (functools.reduce(getattr, path.split('.'), each) for each in (config, parent))
    if ours != theirs:
      raise ConfigError(
        f'{path}={ours!r}: the run in {folder} that this one continues has {theirs!r}; '
        'must be the same'
      )
  if stage := keys.stage_of_kinds(parent):
    learned = records.read(folder / stage / 'DONE.json')
    if not learned or learned.files.get(keys.EQUATIONS) != digest(keys.KINDS):
      raise ConfigError(
        f'{folder}: its kinds of users were learned by other equations than those of this version; '
        'must be a run of this version of RoleGen-JAX'
      )
