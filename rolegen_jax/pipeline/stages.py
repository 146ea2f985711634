"""The training stages in order: warmup, roles, align, reason, the closed loop, calibration.

Each is a plain function of what it reads; what it returns is loaded when it is first needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.config import StageConfig
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.files import write_json, write_npz
from rolegen_jax.data.loader import Batches
from rolegen_jax.data.log import ranges
from rolegen_jax.data.occasions import TEST, VALID
from rolegen_jax.data.shards.reader import training_rows
from rolegen_jax.evaluation.baselines import evaluation_rows
from rolegen_jax.models import functional
from rolegen_jax.pipeline import artifacts, text
from rolegen_jax.pipeline.context import Run, load_pretrained
from rolegen_jax.pipeline.inputs import Inputs, inference_table
from rolegen_jax.reasoning import predict
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.serving.history_filter import holds
from rolegen_jax.text import annotations as imported_labels
from rolegen_jax.training import checkpoint, losses, steps
from rolegen_jax.training.calibration import calibrate as fit_weights
from rolegen_jax.training.calibration import intent_weights
from rolegen_jax.training.fit import Site, Start, Task, fit
from rolegen_jax.training.kinds_loss import kinds_loss
from rolegen_jax.training.losses import Params
from rolegen_jax.training.state import optimizer


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a training stage leaves: its key, and the parameters of each model, read on demand."""

  key: str
  load: Callable[[], dict[str, Params]]


@dataclasses.dataclass(frozen=True)
class LabeledExamples:
  """Training conversions with their roles, and the key of the stage that labeled them."""

  key: str
  table: ExampleTable


@dataclasses.dataclass(frozen=True)
class Models:
  """What every training stage leaves."""

  warm: Trained  # backbone
  labeled: LabeledExamples
  aligned: Trained  # reasoner
  reasoned: Trained  # reasoner
  looped: Trained  # backbone, reasoner and its reference
  calibrated: Trained  # the same, calibrated: what recommends


def warm_up(run: Run, inputs: Inputs, name: str = 'warmup') -> Trained:
  """Stage `warmup`: the backbone alone, on packed trajectories."""
  config = run.config
  n_rows, rows = training_rows(config, inputs.log, inputs.occasions, inputs.shards, inputs.recent)
  batches = functools.partial(_batches, run, n_rows, config.warmup.batch, rows, seed=config.seed)
  start = Start()
  if config.update.parent and name == 'warmup':
    parent = inputs.parent
    start = Start(
      lambda: {'backbone': parent().loop.params['backbone']}, lambda: parent().warmup.opt
    )
  return _train(
    run, inputs, name, 'backbone', losses.warmup_loss, config.warmup, batches, {}, start
  )


def label_roles(run: Run, inputs: Inputs, kinds: Trained | None = None) -> LabeledExamples:
  """Stage `roles`: the functional role of every event before a conversion, by hindsight.

  Imported annotations, where there are any, replace those of hindsight.
  """
  config, table = run.config, inputs.conversions
  path = config.roles.annotations
  stage = run.begin('roles', inputs.hashes | ({'kinds': kinds.key} if kinds else {}))
  saved = stage.folder / 'roles.npz'
  if not stage.is_complete:
    learned = kinds.load()['kinds'] if kinds else None
    roles = predict.hindsight_roles(
      run.rolegen, table, inputs.interest_shift, learned, inputs.trie, run.mesh
    )
    if path:
      labels = imported_labels.read_annotations(table, path)
      say(imported_labels.summary(labels.rejected, labels.kept))
      roles = np.where(labels.roles >= 0, labels.roles, roles)
      sentences = [[*place, sentence] for place, sentence in labels.said.items()]
      distributed.once(lambda: write_json(sentences, stage.folder / 'rationales.json'))
    distributed.once(lambda: write_npz(dict(roles=roles), saved))
    stage.finish(f'{len(table)} conversions labeled')
  labeled = dataclasses.replace(table, roles=artifacts.read_arrays(saved, 'roles')['roles'])
  return LabeledExamples(stage.key, labeled)


def learn_kinds(run: Run, inputs: Inputs) -> Trained | None:
  """Stage `kinds`: kinds of users, by the histories of training conversions; None = all are one."""
  config, rolegen, table = run.config.kinds, run.rolegen, inputs.conversions
  if not rolegen.kinds_fn:
    return None
  if run.config.update.parent:  # what it has learned stays
    key, parent = run.config.update.parent_key, inputs.parent
    return Trained(key, lambda: {'kinds': parent().params()['reasoner']['intent']['kinds']})
  tx = optimizer(config.optimizer, config.steps)
  loss_fn = functools.partial(kinds_loss, conversions=len(table))
  task = Task(
    name='kinds',
    step=functools.partial(steps.supervised_step, rolegen, 'kinds', loss_fn, tx),
    model_fns={'kinds': rolegen.kinds_fn},
    optimizers={'kinds': tx},
    start=Start(),
    batches=functools.partial(_example_batches, run, table, config.batch),
    config=config,
  )
  return _fit(run, inputs, task, {})


def align(
  run: Run, inputs: Inputs, labeled: LabeledExamples, kinds: Trained | None = None
) -> Trained:
  """Stage `align`: the reasoner as a language model of trajectories and, with text, of words."""
  config, reasoner = run.config, run.config.reasoner
  loss_fn: Callable = losses.align_loss
  batches = functools.partial(_example_batches, run, labeled.table, config.align.batch)
  if inputs.words:
    loss_fn = losses.align_words_loss
    # Every row of every step is another one.
    batches = functools.partial(
      _batches,
      run,
      config.align.steps * config.align.batch,
      config.align.batch,
      inputs.words.alignment.rows,
      seed=config.seed + 1,
    )

  def initial() -> dict[str, Params]:
    if run.rolegen.frozen:
      return {'reasoner': run.base()}
    return {'reasoner': load_pretrained(run.rolegen, run.mesh)} if reasoner.pretrained else {}

  def leaves() -> dict[str, Any]:
    learned = functional.flatten(kinds.load()['kinds']) if kinds else {}
    return {f'reasoner.intent.kinds.{path}': x for path, x in learned.items()}

  start, earlier = Start(initial, leaves=leaves), {'kinds': kinds.key} if kinds else {}
  return _train(run, inputs, 'align', 'reasoner', loss_fn, config.align, batches, earlier, start)


def reason(
  run: Run, inputs: Inputs, labeled: LabeledExamples, aligned: Trained, name: str = 'reason'
) -> Trained:
  """Stage `reason`: the reasoner on the hindsight chains of intents, roles and paths."""
  config = run.config
  chains = text.chains_with_sentences(run, inputs.words, labeled.table)
  beside = chains.rows if chains else text.replay(run, inputs.words, 'reason')
  batches = functools.partial(_example_batches, run, labeled.table, config.reason.batch, beside)
  earlier, loss_fn = dict(align=aligned.key, roles=labeled.key), losses.reason_loss
  start = Start(aligned.load)
  return _train(run, inputs, name, 'reasoner', loss_fn, config.reason, batches, earlier, start)


def close_loop(
  run: Run,
  inputs: Inputs,
  labeled: LabeledExamples,
  warm: Trained,
  reasoned: Trained,
  name: str = 'loop',
  switches: steps.Switches = steps.Switches(),
) -> Trained:
  """Stage `loop`: both models by the joint train step; an ablation sets `name` and `switches`."""
  config = run.config
  model_fns, optimizers = steps.joint_parts(run.rolegen)

  def initial() -> dict[str, Params]:
    reasoned_params = reasoned.load()
    reasoner = reasoned_params['reasoner']
    reference = reasoned_params.get('reference', reasoner)
    return {'backbone': warm.load()['backbone'], 'reasoner': reasoner, 'reference': reference}

  start = Start(initial)
  if config.update.parent:
    start = Start(initial, lambda: inputs.parent().loop.opt)

  task = Task(
    name=name,
    step=functools.partial(steps.joint_train_step, run.rolegen, optimizers),
    model_fns=model_fns,
    optimizers=optimizers,
    start=start,
    batches=functools.partial(
      _example_batches,
      run,
      labeled.table,
      config.loop_stage.batch,
      text.replay(run, inputs.words, 'loop'),
    ),
    config=config.loop_stage,
    extra=(jax.tree.map(np.float32, switches),),
  )
  return _fit(run, inputs, task, dict(warmup=warm.key, reason=reasoned.key))


def calibrate(
  run: Run,
  inputs: Inputs,
  trained: Trained,
  name: str = 'loop',
  reasoning: bool = True,
  intervene: bool = True,
  of: str = '',
) -> Trained:
  """Fit the experts' weights and, with reasoning, choose the language model's.

  That is by the validation conversions, in the folder of stage `name`. Return `trained` as it is
  where `calibration.steps` is 0 or nothing was bought at a validation occasion. of: the stage that
  left `trained`, where it is another.

  A run that appends days has learned all of its log. There, the weights of experts are fitted to
  what its parent, which had not seen those days, says of them; the language model keeps its weight.
  """
  config, appends = run.config, run.config.update.appends
  known = inputs.before() if inputs.before else inputs
  table = validation_examples(run, known)
  if not config.calibration.steps or not len(table):
    return trained
  lists = 'without history' if inputs.bars_history else 'with history'
  stage = run.begin(f'{name}/calibration', {of or name: trained.key, 'lists': lists})
  path = stage.folder / 'weights.npz'
  if not stage.is_complete:
    params, fitted = trained.load(), {}
    if appends:
      params, language = inputs.parent().calibrated(name), inputs.parent().weights(name)
      fitted = {path: x for path, x in language.items() if not path.startswith('backbone.')}
    elif reasoning:
      weights, nll = intent_weights(run.rolegen, params, table, inputs.trie, run.mesh)
      fitted = {'reasoner.intent.language': np.full(1, weights.language, np.float32)}
      if run.config.reasoner.kinds:
        fitted['reasoner.intent.pooled'] = np.array(weights[1:], np.float32)
      told = ', '.join(f'{name} {x:g}' for name, x in weights._asdict().items())
      say(f'weights of intents: {told}; NLL {nll[0]:.3f} -> {nll.min():.3f}')
      params = functional.with_leaves(params, fitted)
    models = run.rolegen, params, table, known.trie, run.mesh
    held = functools.partial(holds, table.log, table.user, table.end)
    is_barred = held if inputs.bars_history else None
    experts, nll = fit_weights(*models, reasoning, intervene, is_barred)
    fitted |= {f'backbone.{name}': value for name, value in experts.items()}
    distributed.once(lambda: write_npz(fitted | dict(nll=nll), path))
    stage.finish(f'NLL of {len(table)} validation conversions {nll[0]:.3f} -> {nll[-1]:.3f} nats')

  def load() -> dict[str, Params]:
    fitted = artifacts.read_arrays(path)
    del fitted['nll']
    return functional.with_leaves(trained.load(), fitted)

  return Trained(stage.key, functools.cache(load))


def validation_examples(run: Run, inputs: Inputs) -> ExampleTable:
  """Return at most `calibration.examples` examples of what was bought in the validation period.

  Where lists leave out the history, what the user has already is none of them. Of a run that
  appends days, whose `inputs` are those before them, it is all that the parent had not seen.
  """
  occasions = inputs.occasions
  splits = (VALID, TEST) if run.config.update.appends else (VALID,)
  of_splits = [evaluation_rows(inputs.log, occasions, split) for split in splits]
  rows = np.concatenate(of_splits)
  first = occasions.target_offsets[rows]
  bought, occasion = ranges(first, occasions.target_offsets[rows + 1] - first)
  rows = rows[occasion]
  table = inference_table(
    run, inputs, occasions.user[rows], occasions.context_end[rows], occasions.timestamp[rows]
  )
  known = dataclasses.replace(table, target=occasions.target[bought])
  if inputs.bars_history:
    held = holds(known.log, known.user, known.end, known.target[:, None])[:, 0]
    known = known.picked(np.flatnonzero(~held))
  return known.evenly(run.config.calibration.examples)


# What the stages have in common


def _batches(
  run: Run,
  n_rows: int,
  batch: int,
  assemble: Callable[[np.ndarray], Any],
  seed: int,
) -> Batches:
  return Batches(n_rows, batch, seed, assemble, sharding.rows_here(run.mesh, batch))


def _example_batches(
  run: Run,
  table: ExampleTable,
  batch: int,
  beside: Callable[[np.ndarray], Any] | None = None,
) -> Batches:
  """Return batches of examples; with `beside`, which words it puts beside these rows."""
  width = run.config.backbone.context

  def assemble(rows: np.ndarray) -> Any:
    examples = table.rows(rows, width)
    return examples._replace(words=beside(rows)) if beside else examples

  return _batches(run, len(table), batch, assemble, seed=run.config.seed + 1)


# A supervised stage is told by all of these; a dataclass would only name them once more.
def _train(
  run: Run,
  inputs: Inputs,
  name: str,
  model: str,
  loss_fn: Callable,
  config: StageConfig,
  batches: Callable[[], Batches],
  earlier: dict[str, str],
  start: Start = Start(),
) -> Trained:
  """Run a supervised stage of one model; `earlier` are the keys of training stages before it."""
  tx = optimizer(config.optimizer, config.steps)
  task = Task(
    name=name,
    step=functools.partial(steps.supervised_step, run.rolegen, model, loss_fn, tx),
    model_fns={model: run.rolegen.trained[model]},
    optimizers={model: tx},
    start=start,
    batches=batches,
    config=config,
  )
  return _fit(run, inputs, task, earlier)


def _fit(run: Run, inputs: Inputs, task: Task, earlier: dict[str, str]) -> Trained:
  """Run a training stage where it is not complete; parameters of a complete one load on demand."""
  stage = run.begin(task.name, inputs.hashes | earlier)

  @functools.cache
  def load() -> dict[str, Params]:
    frozen = {
      name: functional.part(model_fn, run.base())
      for name, model_fn in run.rolegen.frozen.items()
      if name in task.model_fns
    }
    hashes, extra = inputs.hashes | {'settings': stage.key}, task.extra
    if frozen:
      hashes, extra = hashes | {'base': checkpoint.fingerprint(frozen)}, (*extra, frozen)

    def initial() -> dict[str, Params]:
      params = task.start.params()
      return {name: functional.part(task.model_fns[name], p) for name, p in params.items()}

    site = Site(
      run.mesh,
      run.config.seed,
      stage.folder,
      run.workdir / 'tensorboard' / task.name,
      hashes,
      # What is complete and lost its checkpoint is hours of work: nobody said to do it again.
      run.folder.retrain if stage.is_complete else run.folder.may_train,
      run.observers,
    )
    start = dataclasses.replace(task.start, params=initial)
    params = fit(dataclasses.replace(task, start=start, extra=extra), site, inputs.trie)
    return functional.join(params, frozen)

  if not stage.is_complete:
    load()
    stage.finish(f'{task.config.steps} steps')
  return Trained(stage.key, load)
