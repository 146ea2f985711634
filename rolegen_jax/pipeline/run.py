"""All stages of a run, in order, each skipped when its outputs are complete and current.

A stage owns one folder of the run folder. Its key is a digest of the settings and artifacts that it depends on; the key is
written when the stage starts (KEY.json) and when it is complete (DONE.json). The same key continues where it was cut off;
another key starts the stage, and so all that depend on it, afresh.

In several processes all take the same path through the stages; files are written by process 0 (`distributed.once`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import pathlib
import shutil

import jax
import numpy as np

from rolegen_jax import config as configs
from rolegen_jax import sharding
from rolegen_jax.config import Config, MeshConfig, digest
from rolegen_jax.data.adapters import log_path
from rolegen_jax.data.events import validate
from rolegen_jax.data.examples import ExampleTable, inference_examples, training_examples
from rolegen_jax.data.files import lock, write_json, write_npz
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.occasions import VALID
from rolegen_jax.data.prepare import RawTables, load_prepared, prepare, read_tables
from rolegen_jax.data.shards.reader import Shards, training_rows
from rolegen_jax.evaluation.baselines import evaluation_rows
from rolegen_jax.evaluation.metrics import ranges
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import followed
from rolegen_jax.models import functional
from rolegen_jax.pipeline import evaluation
from rolegen_jax.pipeline.text import Words
from rolegen_jax.reasoning import predict
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.semantic_ids.stage import build_semantic_ids
from rolegen_jax.semantic_ids.trie import build_trie
from rolegen_jax.simulator import world
from rolegen_jax.text import annotations, prompts
from rolegen_jax.training import checkpoint, fit, state, steps
from rolegen_jax.training.calibration import calibrate


class Run:
  """One run folder. Properties are the results of the stages; asking for one runs what is missing before it.

  may_run False: asking for a stage that is not complete raises ConfigError instead.
  """

  def __init__(self, config: Config, workdir: str | os.PathLike, may_run: bool = True):
    self.config = config = configs.validate(
      _folder().configure(config) if config.reasoner.pretrained else config
    )
    if config.roles.annotations and not pathlib.Path(config.roles.annotations).is_file():
      raise configs.ConfigError(
        f'roles.annotations={config.roles.annotations}: no such file; must be what rolegen annotate wrote'
      )
    self.workdir, self.may_run = pathlib.Path(workdir).absolute(), may_run
    self.mesh = sharding.make_mesh(config.mesh)
    self.rolegen = RoleGen(config)
    distributed.agree(
      dict(code=distributed.code_digest(), jax=jax.__version__, config=digest(config))
    )
    if may_run:
      distributed.once(lambda: _settle(config, self.workdir))
    # Ablations and restarts run the very same programs: compile each once per run folder, or where the environment says.
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
      jax.config.update('jax_compilation_cache_dir', str(self.workdir / 'compilation_cache'))

  # Stages

  @functools.cached_property
  def shards(self) -> Shards | None:
    """Training rows on disk, of a log that memory does not hold."""
    return Shards(self.config.data.shards) if self.config.data.shards else None

  @functools.cached_property
  def data(self):
    """(log, occasions)."""
    c = self.config.data
    simulated = c.format == 'simulated'
    source = configs.to_dict(self.config.simulator) if simulated else _fingerprint(log_path(c))
    folder, done = self.begin('data', digest(c, source, self.shards and self.shards.digest))
    if not done:
      notes = distributed.once(
        lambda: prepare(c, raw_tables(self.config), folder, self.shards and self.shards.cuts)[2]
      )
      self.end(folder, f'{notes["users"]} users, {notes["items"]} items')
    return load_prepared(folder)

  @functools.cached_property
  def catalogue(self) -> Catalogue:
    log, occasions = self.data
    folder, done = self.begin(
      'semantic_ids', digest(log.digest, occasions.digest, self.config.semantic_ids)
    )
    if not done:
      local = sharding.make_mesh(MeshConfig(), jax.local_devices())  # process 0 builds it alone
      report = distributed.once(
        lambda: build_semantic_ids(log, occasions, self.config.semantic_ids, local, folder).report
      )
      self.end(
        folder, f'collisions before resolution {report.get("collision_rate", float("nan")):.3f}'
      )
    return Catalogue.load(folder)

  @functools.cached_property
  def codes(self) -> np.ndarray:
    """int32 [I, L] of the log's items."""
    return self.catalogue.codes_of(self.data[0].items['item_id'])

  @functools.cached_property
  def trie(self):
    return build_trie(self.codes, self.config.semantic_ids.codes)

  @functools.cached_property
  def backbone(self) -> dict:
    """Warm-up: the backbone on packed trajectories."""
    log, occasions = self.data
    c = self.config
    count, rows = training_rows(c, log, occasions, self.shards)
    batches = lambda stage: Batches(
      count, stage.batch, c.seed, rows, sharding.rows_here(self.mesh, stage.batch)
    )
    key = digest(self.artifacts, c.backbone, self.shards and self.shards.digest)
    return self._train('backbone', 'backbone', steps.warmup_loss, c.warmup, batches, dict, key)[
      'backbone'
    ]

  @functools.cached_property
  def interest_shift(self) -> InterestShift:
    log, occasions = self.data
    return InterestShift.of(
      log, occasions.train_end(log), self.codes[:, 0], self.config.semantic_ids.codes
    )

  @functools.cached_property
  def excitation(self) -> Excitation:
    log, occasions = self.data
    return Excitation.of_counts(
      self.interest_shift, followed(log, occasions.train_end(log)), self.config.reasoner
    )

  @functools.cached_property
  def conversions(self) -> ExampleTable:
    """All training cases, roles unknown."""
    r = self.config.reasoner
    return training_examples(*self.data, r.role_events, r.candidates, self.excitation)

  @functools.cached_property
  def bare_examples(self) -> ExampleTable:
    """Those that are labelled and trained on."""
    return self.conversions.evenly(self.config.roles.max_conversions)

  def inference_examples(
    self, user: np.ndarray, end: np.ndarray, timestamp: np.ndarray
  ) -> ExampleTable:
    r = self.config.reasoner
    return inference_examples(
      self.data[0], user, end, timestamp, r.role_events, r.candidates, self.excitation
    )

  @functools.cached_property
  def examples(self) -> ExampleTable:
    """Training cases with hindsight roles."""
    bare, r = self.bare_examples, self.config.reasoner
    imported = (
      [_fingerprint(pathlib.Path(self.config.roles.annotations))]
      if self.config.roles.annotations
      else []
    )
    folder, done = self.begin(
      'roles',
      digest(
        self.artifacts, self.config.roles, r.role_events, self.config.backbone.context, *imported
      ),
    )
    path = folder / 'roles.npz'
    if not done:
      found = dict(roles=predict.hindsight_roles(self.rolegen, bare, self.interest_shift))
      if imported:
        told = annotations.read_annotations(bare, self.config.roles.annotations)
        say(annotations.summary(told.rejected, int((told.roles >= 0).sum())))
        found = dict(roles=np.where(told.roles >= 0, told.roles, found['roles']))
        distributed.once(
          lambda: write_json(
            [[*where, why] for where, why in told.said.items()], folder / 'rationales.json'
          )
        )
      distributed.once(lambda: write_npz(found, path))
      self.end(folder, f'{len(bare)} conversions labelled')
    return dataclasses.replace(bare, roles=np.load(path)['roles'])

  @functools.cached_property
  def base(self) -> dict:
    """What the reasoner starts from, where stages train only a part of it: the pretrained folder, or chance."""
    r = self.config.reasoner
    if r.pretrained:
      return _folder().Folder(r.pretrained).load(r, self.rolegen.vocab, self.mesh)
    return functional.init(
      self.rolegen.model_fns['reasoner'], jax.random.key(self.config.seed), self.mesh
    )[1]

  @functools.cached_property
  def words(self) -> Words:
    return Words(self)

  @functools.cached_property
  def aligned(self) -> dict:
    """Reasoner, stage `align`: a language model of trajectories and, where there are any, of words; from the pretrained weights if there are any."""
    self.examples  # the rows it reads: stages follow each other, none begins inside another
    r, loss, batches = self.config.reasoner, steps.align_loss, self.example_batches
    base = lambda: {
      'reasoner': self.base
      if self.rolegen.frozen
      else _folder().Folder(r.pretrained).load(r, self.rolegen.vocab, self.mesh)
    }
    given, key = base if r.pretrained or self.rolegen.frozen else dict, digest(self.artifacts, r)
    if self.words.alignment:
      loss, batches, key = (
        steps.align_words_loss,
        self.words.batches,
        digest(key, self.config.text, prompts.digest()),
      )
    return self._train('align', 'reasoner', loss, self.config.align, batches, given, key)[
      'reasoner'
    ]

  @functools.cached_property
  def reasoned(self) -> dict:
    """Reasoner, stage `reason`: supervised FR-CoT on hindsight labels."""
    given = {'reasoner': self.aligned}
    self.examples  # its key is part of this stage's
    key, loss, batches = (
      digest(self.key('align'), self.key('roles')),
      steps.reason_loss,
      self.example_batches,
    )
    if self.words.rationales:
      loss, batches = (
        steps.reason_words_loss,
        lambda stage: self.example_batches(stage, self.words.rationales.rows),
      )
    return self._train('reason', 'reasoner', loss, self.config.reason, batches, lambda: given, key)[
      'reasoner'
    ]

  @functools.cached_property
  def trained(self) -> dict:
    """Both models after the closed loop."""
    return self.loop('loop', steps.Switches())

  def fit(self, name: str, switches: steps.Switches) -> dict:
    """The closed loop from the warm backbone and the supervised reasoner, under the given switches."""
    c = self.config
    given = {'backbone': self.backbone, 'reasoner': self.reasoned, 'reference': self.reasoned}
    model_fns, optimizers = steps.loop_parts(self.rolegen)
    key = digest(
      self.key('backbone'), self.key('reason'), c.loop, c.loop_stage, [float(s) for s in switches]
    )
    step_fn = functools.partial(steps.joint_train_step, self.rolegen, optimizers)
    params = self._run(
      name,
      step_fn,
      model_fns,
      optimizers,
      lambda: given,
      c.loop_stage,
      self.example_batches,
      key,
      extra=(jax.tree.map(np.float32, switches),),
    )
    return self._calibrated(name, params, intervene=bool(switches.intervene))

  def backbone_alone(self, name: str) -> dict:
    """The backbone trained on for as many steps, on the same occasions, without a reasoner."""
    c = self.config
    key = digest(self.key('backbone'), c.loop_stage)
    given = {'backbone': self.backbone}
    params = self._train(
      name,
      'backbone',
      steps.execution_only_loss,
      c.loop_stage,
      self.example_batches,
      lambda: given,
      key,
    )
    return self._calibrated(name, params, reasoning=False)

  @functools.cached_property
  def validation(self) -> ExampleTable:
    """What was bought at validation occasions, a case each; at most `calibration.cases`."""
    log, occasions = self.data
    rows = evaluation_rows(log, occasions, VALID)
    first = occasions.target_offsets[rows]
    bought, of = ranges(first, occasions.target_offsets[rows + 1] - first)
    table = self.inference_examples(
      occasions.user[rows[of]], occasions.context_end[rows[of]], occasions.timestamp[rows[of]]
    )
    return dataclasses.replace(table, target=occasions.target[bought]).evenly(
      self.config.calibration.examples
    )

  def _calibrated(self, name: str, params: dict, **how) -> dict:
    """`params` of stage `name` with what `calibrate` fits; as they are where it is off or nothing was bought at a validation occasion."""
    c = self.config
    if not c.calibration.steps or not len(self.validation):
      return params
    folder, done = self.begin(
      f'{name}/calibration',
      digest(self.key(name), c.calibration, c.evaluation.seed, c.evaluation.batch),
    )
    path = folder / 'backbone.npz'
    if not done:
      fitted, nll = calibrate(self.rolegen, params, self.validation, self.trie, self.mesh, **how)
      distributed.once(lambda: write_npz(fitted | dict(nll=nll), path))
      self.end(
        folder,
        f'NLL of {len(self.validation)} validation conversions {nll[0]:.3f} -> {nll[-1]:.3f} nats',
      )
    kept, where = np.load(path), functional.shardings(self.rolegen.model_fns['backbone'], self.mesh)
    fitted = {n: jax.device_put(kept[n], where[n]) for n in kept.files if n != 'nll'}
    return params | {'backbone': params['backbone'] | fitted}

  def varied(self, **settings) -> Run:
    """This run with other settings of the closed loop; all stages before are the same."""
    other = copy.copy(self)
    other.config = dataclasses.replace(
      self.config, loop=dataclasses.replace(self.config.loop, **settings)
    )
    other.rolegen = RoleGen(other.config)
    return other

  def report(self, print_tables: bool = False) -> pathlib.Path:
    """Evaluates RoleGen, its ablations and the baselines on the test occasions; writes and returns report.html."""
    return evaluation.report(self, print_tables)

  # Machinery

  @functools.cached_property
  def artifacts(self) -> dict[str, str]:
    """Hashes that every checkpoint carries."""
    log, occasions = self.data
    found = dict(
      log=log.digest,
      occasions=occasions.digest,
      semantic_ids=self.catalogue.digest,
      vocabulary=self.rolegen.vocab.digest,
    )
    return found | (dict(tokenizer=self.words.tokenizer.digest) if self.words.items else {})

  def example_batches(self, stage, beside=None) -> Batches:
    """Examples; with `beside`, pairs of cases and what it says of their numbers."""
    width = self.config.backbone.context
    examples = lambda index: self.examples.rows(index, width)
    rows = (lambda index: (examples(index), beside(index))) if beside else examples
    return Batches(
      len(self.examples),
      stage.batch,
      self.config.seed + 1,
      rows,
      sharding.rows_here(self.mesh, stage.batch),
    )

  def _train(self, name, model, loss_fn, stage, batches, given, key) -> dict:
    """A supervised stage of one model."""
    tx = state.optimizer(stage.optimizer, stage.steps)
    step_fn = functools.partial(steps.supervised_step, self.rolegen, model, loss_fn, tx)
    return self._run(
      name,
      step_fn,
      {model: self.rolegen.trained[model]},
      {model: tx},
      given,
      stage,
      batches,
      digest(key, stage, self.config.seed),
    )

  def _run(
    self, name, step_fn, model_fns, optimizers, given, stage, batches, key, extra=()
  ) -> dict:
    folder, done = self.begin(name, key)
    frozen = {
      n: functional.part(make, self.base)
      for n, make in self.rolegen.frozen.items()
      if n in model_fns
    }
    hashes = self.artifacts | {'settings': key}
    if frozen:
      extra, hashes = (*extra, frozen), hashes | {'base': checkpoint.fingerprint(frozen)}
    trained = lambda: {n: functional.part(model_fns[n], p) for n, p in given().items()}
    params = fit.run(
      name,
      step_fn,
      model_fns,
      optimizers,
      trained,
      self.trie,
      functools.partial(batches, stage),
      stage,
      self.mesh,
      self.config.seed,
      hashes,
      folder,
      self.workdir / 'tensorboard' / name,
      extra,
    )
    if not done:
      self.end(folder, f'{stage.steps} steps')
    return functional.join(params, frozen)

  def begin(self, name: str, key: str) -> tuple[pathlib.Path, bool]:
    """(folder of the stage, is it complete?). A folder of another key is emptied."""
    distributed.agree({f'artifacts of {name}': key})
    return self.workdir / name, distributed.once(
      lambda: _begin(self.workdir, name, key, self.may_run)
    )

  def hold(self) -> None:
    """Makes the folder this process's to write to until it ends. Raises ConfigError when another's run is at work there."""
    _hold(self.workdir)

  def end(self, folder: pathlib.Path, summary: str) -> None:
    """Marks a stage complete under the key that it began with, and says so."""
    distributed.once(lambda: write_json(_read(folder / 'KEY.json'), folder / 'DONE.json'))
    say(f'{folder.relative_to(self.workdir)}: done, {summary} -> {folder}')

  def key(self, name: str) -> str:
    """The digest that the stage of this name was last started under."""
    return _read(self.workdir / name / 'KEY.json')['key']


def raw_tables(config: Config) -> RawTables:
  """Return the tables of the log that `config` names: a real one, or simulated."""
  if config.data.format != 'simulated':
    return read_tables(config.data)
  simulated = world.simulate(config.simulator)
  tables = validate(simulated.events, simulated.items, 'simulated events', 'simulated items')
  return RawTables(*tables, left_out={}, planted=simulated.planted)


def _folder():
  """What reads pretrained weights, and the libraries that only it needs."""
  from rolegen_jax.pretrained import folder

  return folder


RUN_LOCK = (
  '.run.lock'  # a sweep, which holds the folder of a point for its child, has `.lock` there
)
_held = {}  # locks of run folders that this process writes to, by folder


def _hold(workdir: pathlib.Path) -> None:
  """Before anything is written: one run at a time. What is complete may be read by many. Raises ConfigError."""
  if workdir not in _held:
    try:
      _held[workdir] = lock(workdir / RUN_LOCK)
    except BlockingIOError as error:
      raise configs.ConfigError(
        f'--workdir={workdir}: another run is at work there ({error}); wait for it, or use another --workdir'
      ) from error


def _settle(config: Config, workdir: pathlib.Path) -> None:
  if _read(workdir / 'config.json') != configs.to_dict(config):
    _hold(workdir)
    write_json(configs.to_dict(config), workdir / 'config.json')


def _begin(workdir: pathlib.Path, name: str, key: str, may_run: bool) -> bool:
  """Makes the stage's folder ready for `key`; True when it holds the complete stage."""
  folder = workdir / name
  started = _read(folder / 'KEY.json')
  if started == {'key': key} == _read(folder / 'DONE.json'):
    say(f'{name}: up to date')
    return True
  if not may_run:
    raise configs.ConfigError(
      f'--workdir={workdir}: its stage {name} is not complete, and this command trains none; '
      'first run rolegen train or, with the ablation in evaluation.ablations, rolegen evaluate'
    )
  _hold(workdir)
  if started is not None and started != {'key': key}:
    say(f'{name}: settings or inputs changed, starting afresh')
    shutil.rmtree(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_json({'key': key}, folder / 'KEY.json')
  say(f'{name}: {"continuing" if started == {"key": key} else "running"}')
  return False


def saved_config(workdir: str | os.PathLike) -> Config:
  """The resolved config of an existing run folder. Raises ConfigError when there is none."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise configs.ConfigError(
      f'--workdir={workdir}: no config.json there; must be the folder of a run of rolegen train'
    )
  return configs.from_dict(json.loads(path.read_text()))


def _read(path: pathlib.Path):
  return json.loads(path.read_text()) if path.exists() else None


def _fingerprint(path: pathlib.Path) -> list:
  """Name, size and time of a log's files: a changed log is prepared again."""
  files = sorted(path.iterdir()) if path.is_dir() else [path]
  return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]
