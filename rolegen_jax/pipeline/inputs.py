"""The stages before training: the log, its semantic IDs, and what is counted on it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.config import Config, MeshConfig, digest
from rolegen_jax.data import digests
from rolegen_jax.data.adapters import log_fingerprint
from rolegen_jax.data.events import validate
from rolegen_jax.data.examples import ExampleTable, inference_examples, training_examples
from rolegen_jax.data.files import write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Occasions
from rolegen_jax.data.prepare import RawTables, load_prepared, prepare, read_tables
from rolegen_jax.data.shards.reader import Shards
from rolegen_jax.evaluation import choices
from rolegen_jax.evaluation.choices import Choices
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel, Transitions
from rolegen_jax.pipeline import artifacts, keys, text
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.records import Record
from rolegen_jax.pipeline.text import Words
from rolegen_jax.runtime import distributed
from rolegen_jax.semantic_ids.catalogue import Catalogue
from rolegen_jax.semantic_ids.stage import build_semantic_ids
from rolegen_jax.semantic_ids.text_vectors import TextVectors
from rolegen_jax.semantic_ids.trie import Trie, build_trie
from rolegen_jax.simulator import world


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
  choices: Choices
  bars_history: bool  # whether lists, of every system, leave out what the user's history holds
  interest_shift: InterestShift
  excitation: Excitation
  conversions: ExampleTable  # training conversions that are labeled, roles unknown
  words: Words | None  # None where the reasoner or the items have no text
  hashes: dict[str, str]  # of all of it; every checkpoint carries them


def prepare_inputs(run: Run) -> tuple[Run, Inputs]:
  """Run the stages before training, in order; the run that is returned knows its catalogue."""
  data = prepare_data(run)
  catalogue, text_vectors = assign_semantic_ids(run, data)
  codes = catalogue.codes_of(data.log.items['item_id'])
  chosen = choose_on_validation(run, data)
  interest_shift, excitation = count_features(run, data, codes, chosen.retrieval)
  reasoner = run.config.reasoner
  conversions = training_examples(
    data.log, data.occasions, reasoner.role_events, reasoner.candidates, excitation
  ).evenly(run.config.roles.max_conversions)
  words = text.learn_words(run, data.log, codes, conversions)
  hashes = dict(
    log=data.log.digest,
    occasions=data.occasions.digest,
    semantic_ids=catalogue.digest,
    choices=digest(chosen),
    vocabulary=run.rolegen.vocab.digest,
  )
  if text_vectors:
    hashes |= dict(text_vectors=text_vectors.digest)
  if words:
    hashes |= dict(tokenizer=words.tokenizer.digest)
  trie = catalogue_tables(run, data, codes, text_vectors)
  wish = run.config.serving.filter_history
  inputs = Inputs(
    log=data.log,
    occasions=data.occasions,
    shards=data.shards,
    catalogue=catalogue,
    codes=codes,
    text_vectors=text_vectors,
    trie=trie,
    choices=chosen,
    bars_history=chosen.bars_history if wish == 'auto' else wish == 'bar',
    interest_shift=interest_shift,
    excitation=excitation,
    conversions=conversions,
    words=words,
    hashes=hashes,
  )
  return run.with_catalogue(trie), inputs


def catalogue_tables(
  run: Run, data: Data, codes: np.ndarray, text_vectors: TextVectors | None
) -> Trie:
  """Return the trie of the log's items, with their training events and text vectors."""
  log = data.log
  in_training = np.arange(len(log.item)) < data.occasions.train_end(log)[log.user]
  counts = np.bincount(log.item[in_training], log.count[in_training], minlength=len(codes))
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

    notes = distributed.once(lambda: prepare(config, raw_tables(run.config), stage.folder, cuts)[2])
    stage.finish(f'{notes["users"]} users, {notes["items"]} items')
  if run.folder.may_train:
    distributed.once(lambda: digests.keep(stage.folder / digests.FILE))
  log, occasions = load_prepared(stage.folder)
  return Data(log, occasions, shards)


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
  if not stage.is_complete:
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
    distributed.once(
      lambda: write_json(dataclasses.asdict(choices.choose(log, occasions, run.config)), path)
    )
    stage.finish('on validation occasions')
  return Choices.from_json(artifacts.read_json(path))


def count_features(
  run: Run, data: Data, codes: np.ndarray, kernel: Kernel
) -> tuple[InterestShift, Excitation]:
  """Count, on training events, what contact with every item leads to."""
  train_end = data.occasions.train_end(data.log)
  shift = InterestShift.of(data.log, train_end, codes[:, 0], run.config.semantic_ids.codes)
  transitions = Transitions.of(data.log, train_end, kernel)
  return shift, Excitation.of_counts(shift, transitions, run.config.reasoner)


def inference_table(
  run: Run, inputs: Inputs, user: np.ndarray, end: np.ndarray, timestamp: np.ndarray
) -> ExampleTable:
  """Return examples of users [N] with context up to log row `end` [N] at `timestamp` [N]."""
  reasoner = run.config.reasoner
  return inference_examples(
    inputs.log, user, end, timestamp, reasoner.role_events, reasoner.candidates, inputs.excitation
  )
