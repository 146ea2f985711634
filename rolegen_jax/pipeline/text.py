"""The words of a run: the tokenizer, the tasks of stage `align`, and chains with sentences.

All of it is off, and none of it imported, where the vocabulary has no text or the items have no
words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.pipeline import artifacts
from rolegen_jax.pipeline.context import Run, pretrained_folder
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.text.items import ItemWords

if TYPE_CHECKING:
  from rolegen_jax.reasoning.alignment import Alignment
  from rolegen_jax.reasoning.rationales import Rationales
  from rolegen_jax.text.packing import Packed
  from rolegen_jax.text.tokenizers import Tokenizer


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
  stage = run.begin('tokenizer', {} if reasoner.pretrained else dict(log=log.digest))

  def make() -> Tokenizer:
    if reasoner.pretrained:
      return pretrained_folder().Folder(reasoner.pretrained).tokenizer
    return items.tokenizer(reasoner.text_pieces)

  if not stage.is_complete:
    distributed.once(lambda: save(make(), stage.folder))
    stage.finish(f'{open_tokenizer(stage.folder).size} pieces')
  return open_tokenizer(stage.folder)


def replay(run: Run, words: Words | None) -> Callable[[np.ndarray], Packed] | None:
  """Return what makes rows of `align` examples for examples by number; None = nothing is."""
  if not words or not run.config.text.replay:
    return None
  return words.alignment.replay


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
