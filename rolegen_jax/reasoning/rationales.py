"""FR-CoT in words: the chain of a case with a sentence after every role and every intent, between the marks BOS and END.

  event gap SID ..  gap REASON  |  role SID BOS why END ..  INTENT  prefix BOS what END ..  PATH  items  END

It is read and written as text of any length, so it stands beside the chain of fixed positions (`frcot.py`), which rollouts sample and
the loop rewards: there words would cost a position each and decide nothing. The semantic ID says which event a sentence is of: without
it a small reasoner says of every event what fits the intent. Sentences are imported (`text/annotations.py`) or come from
the templates of prompts.toml, by the role that a case has. Hindsight roles know the conversion, and so do the sentences that teach.

Shapes: N cases, M role events, I intents, P path items.
"""

from __future__ import annotations

import numpy as np

from rolegen_jax.config import ROLE_NAMES, WORD_TASKS
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.reasoning.alignment import Alignment
from rolegen_jax.text import prompts
from rolegen_jax.text.packing import Packed, TextExample, pack, text_example

SOMETHING = dict(title='an item', category='something else')  # what is said where nothing is known


class Rationales:
  def __init__(self, alignment: Alignment, table: ExampleTable, said: dict[tuple[int, int], str]):
    """`said`: (case, row of the log) -> an imported sentence, in place of the template's."""
    self.alignment, self.table, self.said = alignment.over(table), table, said

  def why(self, example: int, row: int, role: int) -> str:
    """The sentence of an event, a row of the log, that plays `role` in a case."""
    if (example, row) in self.said:
      return self.said[example, row]
    template = prompts.templates()['rationale']['role'][ROLE_NAMES[role]]
    item, target = self.table.log.item[row], self.table.target[example]
    return template.format(
      title=self._say(item, 'title'),
      category=self._say(item, 'category'),
      wanted=self._say(target, 'category'),
    )

  def wanted(self, item: int) -> str:
    """The sentence of an intent that an item of the path stands for."""
    return prompts.templates()['rationale']['intent']['intent'].format(
      category=self._say(item, 'category')
    )

  def _say(self, item: int, attribute: str) -> str:
    """Items whose words are held out stay without words here too."""
    return (
      SOMETHING[attribute]
      if self.alignment.held_out[item]
      else self.alignment.words.say(int(item), attribute, SOMETHING[attribute])
    )

  def intents(self, path) -> list[int]:
    """Items of a path [P] that stand for its intents: the first of each coarse prefix."""
    first, levels = {}, self.alignment.config.reasoner.intent_levels
    for item in path:
      if item >= 0:
        first.setdefault(tuple(self.alignment.sid[item][:levels]), int(item))
    return list(first.values())[: self.alignment.config.reasoner.intents]

  def prompt(self, example: int) -> list[int]:
    """What the chain is an answer to: the trajectory, the time since, REASON."""
    a = self.alignment
    events = a.config.reasoner.events * (2 + a.vocab.levels)
    return [*a.trajectory(example, events), a.until(example), a.vocab.control('REASON')]

  def chain(self, example: int) -> TextExample:
    """A case's history and its chain, which is taught."""
    a, v, table = self.alignment, self.alignment.vocab, self.table
    begin, m = v.control('BOS'), table.roles.shape[1]
    answer = []
    for slot, row in enumerate(range(table.end[example] - m, table.end[example])):
      if (role := int(table.roles[example, slot])) >= 0:
        answer += [
          v.role(role),
          *a.sid[table.log.item[row]].tolist(),
          begin,
          *a.sentence(self.why(example, row, role)),
        ]
    answer.append(v.control('INTENT'))
    for item in self.intents(table.path[example]):
      answer += [
        *a.sid[item][: a.config.reasoner.intent_levels],
        begin,
        *a.sentence(self.wanted(item)),
      ]
    answer.append(v.control('PATH'))
    for item in table.path[example][table.path[example] >= 0]:
      answer += a.sid[item].tolist()
    return text_example(
      self.prompt(example), [*answer, v.control('END')], WORD_TASKS.index('rationale')
    )

  def plan(self, example: int, roles, path) -> list[int]:
    """Tokens of a case's chain without its sentences, as `language.write` takes them: roles [M] of events, -1 = no event, and a path's intents."""
    a, v = self.alignment, self.alignment.vocab
    begin, rows = v.control('BOS'), self.table.end[example] - len(roles) + np.arange(len(roles))
    items = self.table.log.item[np.maximum(rows, 0)]  # those before the first event have no role
    found = [
      token
      for role, item in zip(roles, items)
      if role >= 0
      for token in (v.role(int(role)), *a.sid[item].tolist(), begin)
    ] + [v.control('INTENT')]
    return found + [
      token
      for item in self.intents(path)
      for token in (*a.sid[item][: a.config.reasoner.intent_levels].tolist(), begin)
    ]

  def rows(self, examples: np.ndarray) -> Packed:
    """The chain of each case as a row; the room that is left holds examples of the stage `align`, so that what was learnt there is kept."""
    width, seed, made = self.width, self.alignment.config.seed, []
    for example in examples:
      chain = self.chain(int(example))
      made.append(
        [
          chain,
          *self.alignment.fill(
            np.random.default_rng((seed, 1, int(example))), width - len(chain.tokens)
          ),
        ]
      )
    return pack(made, width)

  @property
  def width(self) -> int:
    """Tokens of a row: those of the longest chain that there may be."""
    c, levels = self.alignment.config, self.alignment.vocab.levels
    spoken = c.reasoner.role_events * (2 + levels + c.text.sentence) + c.reasoner.intents * (
      c.reasoner.intent_levels + 1 + c.text.sentence
    )
    return c.reasoner.events * (2 + levels) + 2 + spoken + c.reasoner.candidates * levels + 3
