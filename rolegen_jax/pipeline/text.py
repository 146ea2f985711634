"""The words of a run: the tokenizer, the tasks of stage `align`, and chains with sentences.

All of it is off, and none of it imported, where the vocabulary has no text or the items have no
words.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from rolegen_jax.config import digest
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.files import write_npz
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.fields import local_path
from rolegen_jax.pipeline import artifacts
from rolegen_jax.pipeline.context import Run, load_pretrained, pretrained_folder
from rolegen_jax.pipeline.parent import Parent
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.runtime.progress import say
from rolegen_jax.semantic_ids.embeddings import texts
from rolegen_jax.text.items import ItemWords
from rolegen_jax.training.checkpoint import fingerprint

if TYPE_CHECKING:
  from rolegen_jax.reasoning.alignment import Alignment
  from rolegen_jax.reasoning.rationales import Rationales
  from rolegen_jax.text.packing import Packed
  from rolegen_jax.text.tokenizers import Tokenizer


TEXT_CACHE = 'ROLEGEN_TEXT_CACHE'  # environment variable


@dataclasses.dataclass(frozen=True)
class Words:
  """What the reasoner learns to read and write beside semantic IDs."""

  tokenizer: Tokenizer
  alignment: Alignment  # the tasks of stage `align`, over the training conversions


def learn_words(
  run: Run, log: InteractionLog, codes: np.ndarray, conversions: ExampleTable
) -> Words | None:
  """Stage `tokenizer`; None where the reasoner knows no text or the items have no words."""
  if not run.config.reasoner.text_pieces:
    return None
  items = ItemWords.of(log.items)
  if items is None:
    say(
      'align: the items of this log have no title, category or brand; '
      'tasks with text are off, next event stays'
    )
    return None
  tokenizer = _train_tokenizer(run, log, items)
  from rolegen_jax.reasoning.alignment import Alignment

  alignment = Alignment(run.config, run.rolegen.vocab, items, tokenizer, codes, conversions)
  return Words(tokenizer, alignment)


def _train_tokenizer(run: Run, log: InteractionLog, items: ItemWords) -> Tokenizer:
  """Return that of the pretrained folder, or one trained on the words of the items."""
  from rolegen_jax.text.tokenizers import open_tokenizer, save

  reasoner = run.config.reasoner
  is_given = reasoner.pretrained or run.config.update.parent
  stage = run.begin('tokenizer', {} if is_given else dict(log=log.digest))

  def make() -> Tokenizer:
    if run.config.update.parent:  # words keep their numbers
      return open_tokenizer(Parent.of(run).folder / 'tokenizer')
    if reasoner.pretrained:
      return pretrained_folder().Folder(reasoner.pretrained).tokenizer
    return items.tokenizer(reasoner.text_pieces)

  if not stage.is_complete:
    distributed.once(lambda: save(make(), stage.folder))
    stage.finish(f'{open_tokenizer(stage.folder).size} pieces')
  return open_tokenizer(stage.folder)


def embeddings_by_reasoner(run: Run, items: pl.DataFrame) -> pathlib.Path | None:
  """Return the file of the items' text embeddings where `semantic_ids.text` is 'reasoner'.

  All processes compute them and process 0 writes them, in $ROLEGEN_TEXT_CACHE, which runs may
  share, or else in the run folder. The name is a hash of the model, how it computes, and the texts.
  """
  if run.config.semantic_ids.text != 'reasoner':
    return None
  from rolegen_jax.reasoning.text_states import text_states

  # The model as it was published: adapters and rows of our own tokens are no part of it.
  reasoner = dataclasses.replace(run.config.reasoner, train='all')
  rolegen = RoleGen(dataclasses.replace(run.config, reasoner=reasoner))
  params = load_pretrained(rolegen, run.mesh)
  tokenizer = pretrained_folder().Folder(reasoner.pretrained).tokenizer
  said = texts(items, 'reasoner')
  first, size = rolegen.vocab.blocks['text']
  model = dict(transformer=params['transformer'], words=params['tokens'][first : first + size])
  computes = reasoner.transformer.dtype, reasoner.transformer.attention
  name = digest([fingerprint(model), tokenizer.digest, *computes, said])
  chosen = os.environ.get(TEXT_CACHE)
  kept = local_path(chosen, f'${TEXT_CACHE}', urls=True) if chosen else run.workdir / 'text_states'
  folder = storage.path(kept)
  path = folder / f'{name}.npz'
  if not distributed.once(path.exists):
    states = text_states(rolegen, params, tokenizer, said, run.mesh)
    distributed.once(lambda: _keep(states, path))
  return path


def _keep(states: np.ndarray, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  write_npz(dict(states=states), path)


def replay(run: Run, words: Words | None, stage: str) -> Callable[[np.ndarray], Packed] | None:
  """Return what makes the rows that a stage replays beside examples by number; None = nothing."""
  if not words or not run.config.text.replay:
    return None
  return functools.partial(words.alignment.replay, stage=stage)


def chains_with_sentences(
  run: Run, words: Words | None, examples: ExampleTable
) -> Rationales | None:
  """Return the labeled chains with their sentences; None when the reasoner writes none."""
  if not words or not run.config.text.rationales:
    return None
  from rolegen_jax.reasoning.rationales import Rationales

  sentences = {}  # (example, row of the log) -> sentence, as far as annotations came with any
  if run.config.roles.annotations:
    rows = artifacts.read_json(run.workdir / 'roles' / 'rationales.json')
    sentences = {(example, row): sentence for example, row, sentence in rows}
  return Rationales(words.alignment, examples, sentences)
