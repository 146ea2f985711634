"""The stages before training: the log, its semantic IDs, and what is counted on it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError, MeshConfig
from rolegen_jax.data import digests
from rolegen_jax.data.adapters import fetched_log, log_fingerprint
from rolegen_jax.data.appending import read_new_days
from rolegen_jax.data.cuts import Cuts
from rolegen_jax.data.events import validate
from rolegen_jax.data.examples import ExampleTable, inference_examples, training_examples
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.log import InteractionLog, item_counts
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.data.prepare import (
  RawTables,
  load_prepared,
  prepare,
  prepare_log,
  read_tables,
)
from rolegen_jax.data.recent import Recent
from rolegen_jax.data.shards import sort
from rolegen_jax.data.shards.reader import Shards
from rolegen_jax.evaluation import choices
from rolegen_jax.evaluation.choices import Choices
from rolegen_jax.features.attributes import attributes_of, choose_words
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import DAY, Transitions
from rolegen_jax.features.trending import Trending
from rolegen_jax.pipeline import artifacts, keys, text
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.parent import Parent
from rolegen_jax.pipeline.records import Record
from rolegen_jax.pipeline.text import Words
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.semantic_ids.stage import build_semantic_ids, extend_semantic_ids, without
from rolegen_jax.semantic_ids.text_vectors import TextVectors
from rolegen_jax.semantic_ids.trie import Trie, build_trie
from rolegen_jax.simulator import world

SCRATCH = 'sorting'  # folder of a log that is being sorted


@dataclasses.dataclass(frozen=True)
class Data:
  """The prepared log."""

  log: InteractionLog
  occasions: Occasions
  # Training rows on disk, of a log that does not fit in memory.
  shards: Shards | None


@dataclasses.dataclass(frozen=True)
class Inputs:
  """All that the training stages and the evaluation read."""

  log: InteractionLog
  occasions: Occasions
  shards: Shards | None
  catalogue: Catalogue
  codes: np.ndarray  # int32 [I, L], of the log's items
  text_vectors: TextVectors | None  # of the log's items; None where semantic_ids.text is off
  trie: Trie
  trending: Trending | None  # of the log, whether the expert is on or not; None: no dates
  choices: Choices
  bars_history: bool  # whether lists, of every system, leave out what the user's history holds
  interest_shift: InterestShift
  excitation: Excitation
  conversions: ExampleTable  # training conversions that are labeled, roles unknown
  words: Words | None  # None where the reasoner or the items have no text
  hashes: dict[str, str]  # of all of it; every checkpoint carries them
  parent: Callable[[], Parent]  # the run that this one continues, if it does
  # Of a run that appends days: which rows it trains on; and what is known before those days, which
  # are its test occasions then.
  recent: Recent | None = None
  before: Callable[[], Inputs] | None = None


def prepare_inputs(run: Run) -> tuple[Run, Inputs]:
  """Run the stages before training, in order; the run that is returned knows its catalogue.

  A run that appends days knows them: all that counts and trains reads them, too.
  """
  data = prepare_data(run)
  catalogue, text_vectors = assign_semantic_ids(run, data)
  chosen = choose_on_validation(run, data)
  inputs_of = functools.partial(
    _inputs, run, catalogue=catalogue, text_vectors=text_vectors, chosen=chosen
  )
  if not run.config.update.appends:
    inputs = inputs_of(data)
    return run.with_catalogue(inputs.trie), inputs
  learned = dataclasses.replace(data, occasions=data.occasions.all_training(data.log))
  inputs = dataclasses.replace(
    inputs_of(learned, recent=_recent(run, data)),
    before=functools.cache(lambda: dataclasses.replace(inputs_of(data), parent=inputs.parent)),
  )
  return run.with_catalogue(inputs.trie), inputs


def _recent(run: Run, data: Data) -> Recent:
  """Return which rows an update trains on; `data` has the occasions as they were before it."""
  update, last = run.config.update, int(data.log.timestamp.max())
  since = min(data.occasions.train_cut, last - round(update.recent_days * DAY))
  return Recent(since, update.replay, run.config.seed)


def _inputs(
  run: Run,
  data: Data,
  catalogue: Catalogue,
  text_vectors: TextVectors | None,
  chosen: Choices,
  recent: Recent | None = None,
) -> Inputs:
  """Count on the training events of `data`, and put together what training and evaluation read."""
  codes = catalogue.codes_of(data.log.items['item_id'])
  interest_shift, excitation = count_features(run, data, codes, chosen)
  reasoner, most = run.config.reasoner, run.config.roles.max_conversions
  conversions = training_examples(
    data.log,
    data.occasions,
    reasoner.role_events,
    reasoner.candidates,
    excitation,
    0 if recent else most,
  )
  if recent:
    conversions = conversions.picked(recent.pick(conversions.timestamp)).evenly(most)
  words = text.learn_words(run, data.log, codes, conversions)
  hashes = dict(
    log=data.log.digest,
    occasions=data.occasions.digest,
    semantic_ids=catalogue.digest,
    choices=chosen.digest,
    vocabulary=run.rolegen.vocab.digest,
  )
  if text_vectors:
    hashes |= dict(text_vectors=text_vectors.digest)
  if words:
    hashes |= dict(tokenizer=words.tokenizer.digest)
  trending = chosen.trending_in(data.log, run.config.backbone.trending)
  trie = catalogue_tables(run, data, codes, text_vectors)
  if trending is not None and 'trending' in run.config.backbone.experts:
    trie = dataclasses.replace(trie, trending=trending.padded())
  wish = run.config.serving.filter_history
  return Inputs(
    log=data.log,
    occasions=data.occasions,
    shards=data.shards,
    catalogue=catalogue,
    codes=codes,
    text_vectors=text_vectors,
    trie=trie,
    trending=trending,
    choices=chosen,
    bars_history=chosen.bars_history if wish == 'auto' else wish == 'bar',
    interest_shift=interest_shift,
    excitation=excitation,
    conversions=conversions,
    words=words,
    hashes=hashes,
    parent=functools.cache(lambda: Parent.of(run.with_catalogue(trie), data.log.items['item_id'])),
    recent=recent,
  )


def catalogue_tables(
  run: Run, data: Data, codes: np.ndarray, text_vectors: TextVectors | None
) -> Trie:
  """Return the trie of the log's items, with their training events and text vectors."""
  counts = item_counts(data.log, data.occasions.train_end(data.log)).astype(np.float64)
  text = text_vectors.vectors if text_vectors else None
  return build_trie(codes, run.config.semantic_ids.codes, counts=counts, text=text)


def prepare_data(run: Run) -> Data:
  """Stage `data`: any log -> the indexed log and its occasions."""
  config = run.config.data
  shards = Shards(config.shards) if config.shards else None
  # The log is where process 0 is; what it holds need not be read by all.
  record = distributed.once(lambda: _record_of_log(run, shards))
  stage = run.folder.begin(record)
  if not stage.is_complete:
    cuts = shards.cuts if shards else None
    if run.config.update.appends:
      cuts = Parent.of(run).cuts
    notes = distributed.once(lambda: _prepare(run, stage.folder, cuts))
    stage.finish(f'{notes["users"]} users, {notes["items"]} items')
  if run.folder.may_train:
    distributed.once(lambda: digests.keep(stage.folder / digests.FILE))
  log, occasions = load_prepared(stage.folder)
  if run.config.update.parent and not run.config.update.appends:
    _check_not_seen(run, occasions)
  return Data(log, occasions, shards)


def _prepare(run: Run, folder: pathlib.Path, cuts: Cuts | None) -> dict[str, Any]:
  """Write the log and its occasions into `folder` and return the notes."""
  data, appends = run.config.data, run.config.update.appends
  if not appends and data.format == 'contract' and sort.is_long(data, path := fetched_log(data)):
    # What is there continues a preparation that was cut off; for a bucket it begins anew.
    scratch = storage.scratch(SCRATCH) if storage.is_remote(folder) else folder / SCRATCH
    try:
      notes = prepare_log(data, sort.sort(data, path, scratch), folder, cuts)[2]
    except DataError:  # what was made of a wrong log is of no use to the one that is put right
      shutil.rmtree(scratch, ignore_errors=True)
      raise
    shutil.rmtree(scratch)
    return notes
  return prepare(data, _tables(run), folder, cuts)[2]


def _tables(run: Run) -> RawTables:
  config = run.config
  if not config.update.appends:
    return raw_tables(config)
  log = Parent.of(run).log
  events, items, left_out = read_new_days(config.data, log)
  return RawTables(events, items, left_out, planted=None, earlier=log)


def _check_not_seen(run: Run, occasions: Occasions) -> None:
  """Raise ConfigError where the parent has learned from what this run is tested on."""
  if (run.workdir / 'warmup' / 'DONE.json').exists():
    return  # it was checked, and the parent may be gone
  until = Parent.of(run).cuts.train
  if occasions.rule != 'time' or until > occasions.train_cut:
    raise ConfigError(
      f'update.parent={run.config.update.parent}: has learned from events until {until}, past the '
      f'end of what this run may train on, {occasions.train_cut}; must have learned from none '
      'later: raise data.split by time, or take an earlier parent'
    )


def _record_of_log(run: Run, shards: Shards | None) -> Record:
  """Return what stage `data` reads. Raises DataError where the shards are of another log."""
  config = run.config.data
  if shards and config.format == 'contract':
    shards.check_files(log_fingerprint(config))
  return keys.record('data', run.config, {})


def raw_tables(config: Config) -> RawTables:
  """Return the simulated log, or the real one that `config.data` names."""
  if config.data.format != 'simulated':
    return read_tables(config.data)
  simulated = world.simulate(config.simulator)
  events, items = validate(simulated.events, simulated.items, 'simulated events', 'simulated items')
  return RawTables(events, items, left_out={}, planted=simulated.planted)


def assign_semantic_ids(run: Run, data: Data) -> tuple[Catalogue, TextVectors | None]:
  """Stage `semantic_ids`: every item's codes and, where `semantic_ids.text` is on, text vector."""
  config, log, occasions = run.config.semantic_ids, data.log, data.occasions
  stage = run.begin('semantic_ids', dict(log=log.digest, occasions=occasions.digest))
  if not stage.is_complete and run.config.update.parent:
    earlier = Parent.of(run).semantic_ids
    path = text.embeddings_by_reasoner(run, without(log.items, earlier.items))

    def extend() -> dict:
      said = artifacts.read_arrays(path, 'states')['states'] if path else None
      return extend_semantic_ids(earlier, log, occasions, config, stage.folder, said).report

    report = distributed.once(extend)
    stage.finish(
      f'{len(log.items)} items, {report.get("items_added", 0)} added since the first run'
    )
  elif not stage.is_complete:
    path = text.embeddings_by_reasoner(run, log.items)
    local = sharding.make_mesh(MeshConfig(), jax.local_devices())  # process 0 builds it alone

    def build() -> dict:
      said = artifacts.read_arrays(path, 'states')['states'] if path else None
      return build_semantic_ids(log, occasions, config, local, stage.folder, said).report

    report = distributed.once(build)
    rate = report.get('collision_rate', float('nan'))
    stage.finish(f'collisions before resolution {rate:.3f}')
  text_vectors = TextVectors.load(stage.folder) if config.text else None
  return Catalogue.load(stage.folder), text_vectors


def choose_on_validation(run: Run, data: Data) -> Choices:
  """Stage `choices`: the kernel of item transitions, and whether lists leave out the history."""
  log, occasions = data.log, data.occasions
  stage = run.begin('choices', dict(log=log.digest, occasions=occasions.digest))
  path = stage.folder / 'choices.json'
  if not stage.is_complete:
    if run.config.update.appends:  # there is nothing to choose by that is not trained on
      kept = artifacts.read_json(_choices_of_parent(run))
      distributed.once(lambda: write_json(kept, path))
      stage.finish('those of the parent')
    else:
      distributed.once(lambda: write_json(dataclasses.asdict(_chosen(run, log, occasions)), path))
      stage.finish('on validation occasions')
  return Choices.from_json(artifacts.read_json(path))


def _chosen(run: Run, log: InteractionLog, occasions: Occasions) -> Choices:
  made = choices.choose(log, occasions, run.config)
  return dataclasses.replace(made, words=_words(run, log))


def _words(run: Run, log: InteractionLog) -> tuple[str, ...]:
  reasoner = run.config.reasoner
  if not reasoner.kinds:
    return ()
  if run.config.update.parent:  # what it has learned is of words by their numbers
    return Choices.from_json(artifacts.read_json(_choices_of_parent(run))).words
  return choose_words(log.items, reasoner.attributes)


def _choices_of_parent(run: Run) -> pathlib.Path:
  return Parent.of(run).folder / 'choices' / 'choices.json'


def count_features(
  run: Run, data: Data, codes: np.ndarray, chosen: Choices
) -> tuple[InterestShift, Excitation]:
  """Count, on training events, what contact with every item leads to; beside it, attributes."""
  train_end = data.occasions.train_end(data.log)
  shift = InterestShift.of(data.log, train_end, codes[:, 0], run.config.semantic_ids.codes)
  transitions = Transitions.of(data.log, train_end, chosen.retrieval)
  reasoner, attribute = run.config.reasoner, None
  if reasoner.kinds:
    known = data.log.items, chosen.words, codes[:, 0]
    attribute = attributes_of(*known, reasoner.attributes)
  return shift, Excitation.of_counts(shift, transitions, reasoner, attribute)


def inference_table(
  run: Run, inputs: Inputs, user: np.ndarray, end: np.ndarray, timestamp: np.ndarray
) -> ExampleTable:
  """Return examples of users [N] with context up to log row `end` [N] at `timestamp` [N]."""
  reasoner = run.config.reasoner
  return inference_examples(
    inputs.log, user, end, timestamp, reasoner.role_events, reasoner.candidates, inputs.excitation
  )
