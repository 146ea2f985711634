"""What a run does in words, beside its other stages: the tokenizer, the tasks of `align`, chains with sentences, and what the report says.

All of it is off, and nothing of it imported, where the vocabulary has no text or the items have no words.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from rolegen_jax import sharding
from rolegen_jax.config import digest
from rolegen_jax.data.loader import Batches
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords

if TYPE_CHECKING:
  from rolegen_jax.reasoning.alignment import Alignment
  from rolegen_jax.reasoning.rationales import Rationales
  from rolegen_jax.text.tokenizers import Tokenizer


class Words:
  def __init__(self, run):
    self.run = run  # the `stages.Run` that it is part of

  @functools.cached_property
  def items(self) -> ItemWords | None:
    """What can be said of the items; None when the reasoner knows no text or the log has none."""
    if not self.run.config.reasoner.text_pieces:
      return None
    found = ItemWords.of(self.run.data[0].items)
    if found is None:
      say(
        'align: items of this log have no title, category or brand; tasks with text are off, next event stays'
      )
    return found

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """That of the pretrained folder, or one trained on the words of the items."""
    from rolegen_jax.text.tokenizers import open_tokenizer, save

    run, r = self.run, self.run.config.reasoner
    folder, done = run.begin(
      'tokenizer', digest(r.tokenizer or [run.data[0].digest, r.text_pieces, prompts.digest()])
    )
    if not done:
      distributed.once(lambda: save(self._made(), folder))
      run.end(folder, f'{open_tokenizer(folder).size} pieces')
    return open_tokenizer(folder)

  def _made(self) -> Tokenizer:
    r = self.run.config.reasoner
    if not r.pretrained:
      return self.items.tokenizer(r.text_pieces)
    from rolegen_jax.pretrained.folder import Folder

    return Folder(r.pretrained).tokenizer

  @functools.cached_property
  def alignment(self) -> Alignment | None:
    """The tasks of stage `align`, over the cases that the reasoner learns from; None when there are no words."""
    if self.items is None:
      return None
    from rolegen_jax.reasoning.alignment import Alignment

    run = self.run
    return Alignment(
      run.config, run.rolegen.vocab, self.items, self.tokenizer, run.codes, run.bare_examples
    )

  @functools.cached_property
  def rationales(self) -> Rationales | None:
    """Chains with sentences; None when the reasoner writes none."""
    if not self.alignment or not self.run.config.text.rationales:
      return None
    from rolegen_jax.reasoning.rationales import Rationales

    examples, imported = self.run.examples, self.run.workdir / 'roles' / 'rationales.json'
    said = json.loads(imported.read_text(encoding='utf-8')) if imported.exists() else []
    return Rationales(self.alignment, examples, {(case, row): why for case, row, why in said})

  def batches(self, stage) -> Batches:
    """Of stage `align`; every row of every step is another one."""
    here = sharding.rows_here(self.run.mesh, stage.batch)
    return Batches(
      stage.steps * stage.batch, stage.batch, self.run.config.seed + 1, self.alignment.rows, here
    )

  def report(self, table, found):
    """(sections of the report, what tells a case of `table` in sentences or None) of predictions `found`."""
    if not self.alignment:
      return {}, None
    from rolegen_jax.evaluation.alignment import questions, sentences

    run = self.run
    after = dict(align=run.aligned, reason=run.reasoned, loop=run.trained['reasoner'])
    tell = lambda examples: sentences(
      run.rolegen, after['loop'], self.alignment.over(table), examples, found, run.mesh
    )
    return dict(
      alignment=questions(run.rolegen, after, self.alignment, run.mesh)
    ), tell if self.rationales else None
