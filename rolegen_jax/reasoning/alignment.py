"""The tasks of the stage `align` on items with words, as examples of tokens and as packed rows.

  sid_to_text        the item's tokens -> its title, category or brand
  text_to_sid        everything known of an item -> its tokens
  masked_attribute   the item's tokens and its description, one value hidden -> that value
  next_event         a trajectory, every token from those before
  next_purchase      a trajectory and the time of a purchase -> the tokens of the item bought

Text ends with the control token END. A packed row is a function of the seed and its number alone:
it draws tasks by their weights until several do not fit. Trajectories are cut to the room there is,
so rows hold little padding. The words of some items (`text.held_out`) never appear in an example:
what is known of those items in words must come from the likeness of semantic IDs.

Shapes: I items, L levels, N examples.
"""

from __future__ import annotations

import copy
import functools

import numpy as np

from rolegen_jax.config import ALIGN_TASKS, EVENT_NAMES, WORD_TASKS, Config
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.models.memory import gap_bucket
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords
from rolegen_jax.text.packing import Packed, TextExample, pack, text_example
from rolegen_jax.text.tokenizers import TextVocabulary, Tokenizer
from rolegen_jax.vocab import Vocabulary

PURCHASE = EVENT_NAMES.index('purchase')
REPLAYING = ('reason', 'loop')
MISSES = 8  # draws that do not fit before a row counts as full

# Items that a question is asked about, an example for each, and the right answer of each.
Question = tuple[np.ndarray, list[TextExample], list]


class Alignment:
  """The tasks over one catalogue and the trajectories of one table."""

  def __init__(
    self,
    config: Config,
    vocab: Vocabulary,
    words: ItemWords,
    tokenizer: Tokenizer,
    codes_IxL: np.ndarray,
    table: ExampleTable,
  ):
    self.config, self.vocab, self.words, self.table = config, vocab, words, table
    self.text = TextVocabulary(vocab, tokenizer)
    self.sid = vocab.sid(codes_IxL).astype(np.int32)  # tokens, [I, L]
    named = vocab.named
    self._item = [''.join(named[token][0] for token in item) for item in self.sid]
    n_items = len(words)
    order = np.random.default_rng(config.seed).permutation(n_items)
    self.held_out = order < config.text.held_out * n_items  # bool [I]
    # Items with a known attribute, and those of them whose words are shown.
    known = {name: words.known(name) for name in prompts.ATTRIBUTES}
    self._known = {name: np.flatnonzero(is_known) for name, is_known in known.items()}
    self._shown = {name: items[~self.held_out[items]] for name, items in self._known.items()}
    has_words = np.any(list(known.values()), axis=0)
    self._described = np.flatnonzero(~self.held_out & has_words)
    weight = np.array([getattr(config.text, name) for name in ALIGN_TASKS])
    self._task_share = weight / weight.sum()

  def over(self, table: ExampleTable) -> Alignment:
    """Return the same tasks over the trajectories of another table of the same log."""
    other = copy.copy(self)
    other.table = table
    other.__dict__.pop('_until', None)  # cached of the former table
    return other

  # Examples of single items. They raise KeyError on an unknown attribute.

  def sid_to_text(self, item: int, attribute: str) -> TextExample:
    """Ask for an attribute of an item."""
    return self._item_example('sid_to_text', attribute, item)

  def text_to_sid(self, item: int) -> TextExample:
    """Ask for the item of a description."""
    described = self.words.described(item)
    return self._item_example('text_to_sid', 'item', item, described)

  def masked_attribute(self, item: int, attribute: str) -> TextExample:
    """Ask for the hidden value of an item's description."""
    described = self.words.described(item, masked=attribute)
    return self._item_example('masked_attribute', attribute, item, described)

  def _item_example(self, task: str, attribute: str, item: int, described: str = '') -> TextExample:
    template = prompts.templates()['align'][task][attribute]
    question = template['question'].format(item=self._item[item], described=described)
    tokens, number = self.text.encode(question), WORD_TASKS.index(task)
    if attribute == 'item':
      return text_example(tokens, self.sid[item], number)
    values = {name: self.words.words[name][item] for name in prompts.ATTRIBUTES}
    answer = template['answer'].format(item=self._item[item], **values)
    return text_example(tokens, self.sentence(answer), number)

  def sentence(self, text: str) -> list[int]:
    """Return the tokens of a text that follows something, and its END.

    There are at most `text.sentence` of them; longer texts are cut.
    """
    tokens = self.text.encode(' ' + text)[: self.config.text.sentence - 1]
    return tokens + [self.vocab.control('END')]

  # Examples of trajectories

  @functools.cached_property
  def _gaps(self) -> np.ndarray:
    """Bucket of the time since the row before, for every row of the log.

    That of a user's first row is meaningless.
    """
    return _buckets(np.diff(self.table.log.timestamp, prepend=0))

  @functools.cached_property
  def _until(self) -> np.ndarray:
    """Bucket of the time from the end of each example's history to its occasion."""
    return _buckets(self.table.timestamp - self.table.log.timestamp[self.table.end - 1])

  def trajectory(self, example: int, room: int) -> np.ndarray:
    """Return event, gap and item of the latest events of an example's history, int32 [tokens].

    They are those of FR-CoT prompts, as many as fit into `room` tokens.
    """
    log, v, end = self.table.log, self.vocab, self.table.end[example]
    events = min(self.config.reasoner.events, room // (2 + v.levels))
    rows = np.arange(max(end - events, log.offsets[self.table.user[example]]), end)
    gap = self._gaps[rows].astype(np.int32)
    gap[:1] = 0
    event = log.event[rows].astype(np.int32)
    tokens = [v.event(event)[:, None], v.gap(gap)[:, None], self.sid[log.item[rows]]]
    return np.concatenate(tokens, axis=1).ravel()

  def until(self, example: int) -> int:
    """Return the gap token from the end of an example's history to its occasion."""
    return self.vocab.gap(int(self._until[example]))

  def next_event(self, example: int, room: int) -> TextExample:
    """Ask for every token of a trajectory but the first."""
    tokens = self.trajectory(example, room)
    return TextExample(tokens, np.arange(len(tokens)) > 0, WORD_TASKS.index('next_event'))

  def next_purchase(self, example: int, room: int) -> TextExample:
    """Ask for the item that is bought after a trajectory, at a given time."""
    trajectory = self.trajectory(example, room - 2 - self.vocab.levels)
    question = [*trajectory, self.vocab.event(PURCHASE), self.until(example)]
    answer = self.sid[self.table.target[example]]
    return text_example(question, answer, WORD_TASKS.index('next_purchase'))

  # Rows

  def draw(self, rng: np.random.Generator, room: int) -> TextExample | None:
    """Return an example of a task drawn by weight; None when it does not fit into the room."""
    task = ALIGN_TASKS[rng.choice(len(ALIGN_TASKS), p=self._task_share)]
    if task in ('next_event', 'next_purchase'):
      if room < 3 * (2 + self.vocab.levels):
        return None
      return getattr(self, task)(int(rng.integers(len(self.table))), room)
    if task == 'text_to_sid':
      example = self.text_to_sid(int(rng.choice(self._described)))
    else:
      attribute = str(rng.choice([name for name, items in self._shown.items() if len(items)]))
      item = int(rng.choice(self._shown[attribute]))
      example = getattr(self, task)(item, attribute)
    return example if len(example.tokens) <= room else None

  def fill(self, rng: np.random.Generator, room: int) -> list[TextExample]:
    """Return examples, one after the other, until so many as MISSES did not fit."""
    row: list[TextExample] = []
    misses = 0
    while misses < MISSES:
      if (example := self.draw(rng, room)) is None:
        misses += 1
      else:
        row.append(example)
        room -= len(example.tokens)
    return row

  def rows(self, numbers: np.ndarray) -> Packed:
    """Return the packed rows of these numbers, any integers from 0 on."""
    return self._rows(numbers, self.config.text.width, ())

  def replay(self, numbers: np.ndarray, stage: str) -> Packed:
    """Return rows of `text.replay` tokens by number, others for each of REPLAYING."""
    return self._rows(numbers, self.config.text.replay, (2 + REPLAYING.index(stage),))

  def _rows(self, numbers: np.ndarray, width: int, stream: tuple[int, ...]) -> Packed:
    seed = self.config.seed
    rngs = (np.random.default_rng((seed, int(number), *stream)) for number in numbers)
    return pack([self.fill(rng, width) for rng in rngs], width)

  def exam(self, most: int) -> dict[str, Question]:
    """Return the questions of an exam by name.

    Each is asked about `most` items, evenly spaced among those whose answer is known, or all.
    """

    def spaced(items: np.ndarray) -> np.ndarray:
      return items[np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)]

    questions: dict[str, Question] = {}
    for name, known in self._known.items():
      if not len(known):
        continue
      items = spaced(known)
      examples = [self.sid_to_text(item, name) for item in items]
      answers = [self.words.words[name][item] for item in items]
      questions[f'semantic ID -> {name}'] = items, examples, answers
    items = spaced(np.unique(np.concatenate(list(self._known.values()))))
    examples = [self.text_to_sid(item) for item in items]
    questions['text -> semantic ID'] = items, examples, items.tolist()
    return questions


def _buckets(seconds: np.ndarray) -> np.ndarray:
  return np.asarray(gap_bucket(seconds.clip(0, 2**31 - 1).astype(np.int32)), np.int8)
