"""FR-CoT in words: an example's chain with a sentence after every intent and every role.

  event gap SID ..  gap REASON  |  INTENT  prefix BOS what END ..  role SID BOS why END ..
                                |  PATH  items  END

It is read and written as text of any length, so it stands beside the chain of fixed positions
(`frcot.py`), which rollouts sample and the loop rewards: there, words would cost a position each
and decide nothing. The semantic ID says which event a sentence is about; without it, a small
reasoner says of every event what fits the intent. Sentences are imported (`text/annotations.py`) or
come from the templates of prompts.toml, by the role that an example has. Hindsight roles know the
conversion, and so do the sentences that teach.

Shapes: N examples, M role events, I intents, P path items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rolegen_jax.config import ROLE_NAMES, WORD_TASKS
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.reasoning.alignment import Alignment
from rolegen_jax.text import prompts
from rolegen_jax.text.packing import Packed, TextExample, pack, text_example

# The words for an attribute of which nothing is known.
UNKNOWN = dict(title='an item', category='something else')


class Rationales:
  """The chains in words of a table of examples.

  `imported` maps (example, row of the log) to a sentence that replaces the template's.
  """

  def __init__(
    self,
    alignment: Alignment,
    table: ExampleTable,
    imported: dict[tuple[int, int], str],
  ):
    self.alignment, self.table, self.imported = alignment.over(table), table, imported

  def why(self, example: int, row: int, role: int) -> str:
    """Return the sentence of an event, a row of the log, that plays `role` in an example."""
    if (example, row) in self.imported:
      return self.imported[example, row]
    template = prompts.templates()['rationale']['role'][ROLE_NAMES[role]]
    item, target = self.table.log.item[row], self.table.target[example]
    return template.format(
      title=self._words(item, 'title'),
      category=self._words(item, 'category'),
      wanted=self._words(target, 'category'),
    )

  def wanted(self, item: int) -> str:
    """Return the sentence of an intent that an item of the path stands for."""
    template = prompts.templates()['rationale']['intent']['intent']
    return template.format(category=self._words(item, 'category'))

  def _words(self, item: int, attribute: str) -> str:
    """Return an attribute in words; items whose words are held out have none here either."""
    if self.alignment.held_out[item]:
      return UNKNOWN[attribute]
    return self.alignment.words.say(int(item), attribute, UNKNOWN[attribute])

  def intents(self, path: Sequence[int] | np.ndarray) -> list[int]:
    """Return the items of a path [P] that stand for its intents, the first of each prefix."""
    config = self.alignment.config.reasoner
    first: dict[tuple[int, ...], int] = {}
    for item in path:
      if item >= 0:
        first.setdefault(tuple(self._prefix(item)), int(item))
    return list(first.values())[: config.intents]

  def _prefix(self, item: int) -> list[int]:
    """Return the tokens of the coarse prefix that names an intent."""
    levels = self.alignment.config.reasoner.intent_levels
    return self.alignment.sid[item][:levels].tolist()

  def prompt(self, example: int) -> list[int]:
    """Return what the chain answers: the trajectory, the time since, and REASON."""
    a = self.alignment
    room = a.config.reasoner.events * (2 + a.vocab.levels)
    return [*a.trajectory(example, room), a.until(example), a.vocab.control('REASON')]

  def chain(self, example: int) -> TextExample:
    """Return an example's history and its chain, which is taught."""
    a, v, table = self.alignment, self.alignment.vocab, self.table
    begin, m, end = v.control('BOS'), table.roles.shape[1], table.end[example]
    answer = [v.control('INTENT')]
    for intent in self.intents(table.path[example]):
      answer += [*self._prefix(intent), begin, *a.sentence(self.wanted(intent))]
    for row, role in zip(range(end - m, end), table.roles[example]):
      if role < 0 or not a.config.reasoner.roles:
        continue
      why = self.why(example, row, int(role))
      sid = a.sid[table.log.item[row]].tolist()
      answer += [v.role(int(role)), *sid, begin, *a.sentence(why)]
    answer.append(v.control('PATH'))
    for item in table.path[example][table.path[example] >= 0]:
      answer += a.sid[item].tolist()
    answer.append(v.control('END'))
    return text_example(self.prompt(example), answer, WORD_TASKS.index('rationale'))

  def plan(self, example: int, roles: np.ndarray, path: Sequence[int] | np.ndarray) -> list[int]:
    """Return an example's chain without its sentences, as `language.write` takes it.

    The chain has the intents of a path, and the roles [M] of the last events (-1 = no event).
    """
    a, v, log = self.alignment, self.alignment.vocab, self.table.log
    begin, end = v.control('BOS'), self.table.end[example]
    tokens = [v.control('INTENT')]
    for item in self.intents(path):
      tokens += [*self._prefix(item), begin]
    for row, role in zip(range(end - len(roles), end), roles):
      if role >= 0:
        tokens += [v.role(int(role)), *a.sid[log.item[row]].tolist(), begin]
    return tokens

  def rows(self, examples: np.ndarray) -> Packed:
    """Return the chain of each example as a row.

    The room that is left holds examples of the stage `align`, so that what was learned there is
    kept.
    """
    seed, rows = self.alignment.config.seed, []
    for example in examples:
      chain = self.chain(int(example))
      rng = np.random.default_rng((seed, 1, int(example)))
      rows.append([chain, *self.alignment.fill(rng, self.width - len(chain.tokens))])
    return pack(rows, self.width)

  @property
  def width(self) -> int:
    """Tokens of a row: those of the longest chain that there may be, and what is replayed."""
    c, levels = self.alignment.config.reasoner, self.alignment.vocab.levels
    sentence = self.alignment.config.text.sentence
    prompt = c.events * (2 + levels) + 2
    roles = c.role_events * (2 + levels + sentence)
    intents = c.intents * (c.intent_levels + 1 + sentence)
    delimiters = 3
    chain = prompt + roles + intents + c.candidates * levels + delimiters
    return chain + self.alignment.config.text.replay
