"""The tasks of the stage `align` on items with words, as examples of tokens and as packed rows of them.

  sid_to_text        the item's tokens -> its title, category or brand
  text_to_sid        all that is known of an item -> its tokens
  masked_attribute   the item's tokens and its description, one value hidden -> that value
  next_event         a trajectory, every token from those before
  next_purchase      a trajectory and the time of a purchase -> the tokens of the item that was bought

Text ends with the mark END. A packed row is a function of the seed and its number alone: it draws tasks by their weights until one does
not fit. Trajectories are cut to the room that there is, so rows hold little padding. Some items (`text.held_out`) never lend their words
to an example: what is known of them in words must come from the likeness of semantic IDs.

Shapes: I items, L levels, N cases.
"""

from __future__ import annotations

import copy
import functools

import numpy as np

from rolegen_jax.config import ALIGN_TASKS, EVENT_NAMES, WORD_TASKS, Config
from rolegen_jax.data.examples import ExampleTable
from rolegen_jax.models.backbone import gap_bucket
from rolegen_jax.text import prompts
from rolegen_jax.text.items import ItemWords
from rolegen_jax.text.packing import Packed, TextExample, pack, text_example
from rolegen_jax.text.tokenizers import TextVocabulary, Tokenizer
from rolegen_jax.vocab import Vocabulary

PURCHASE = EVENT_NAMES.index('purchase')


class Alignment:
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
    self.sid = vocab.sid(codes_IxL).astype(np.int32)  # [I, L] tokens
    named = vocab.named
    self._item = [''.join(named[token][0] for token in item) for item in self.sid]
    held = np.random.default_rng(config.seed).permutation(len(words)) < config.text.held_out * len(
      words
    )
    self.held_out = held  # bool [I]
    self._known = {name: np.flatnonzero(words.known(name)) for name in prompts.ATTRIBUTES}
    self._shown = {name: known[~held[known]] for name, known in self._known.items()}
    self._described = np.flatnonzero(
      ~held & np.any([words.known(name) for name in prompts.ATTRIBUTES], axis=0)
    )
    weight = np.array([getattr(config.text, name) for name in ALIGN_TASKS])
    self._share = weight / weight.sum()

  def over(self, table: ExampleTable) -> Alignment:
    """The same with the trajectories of other cases of the same log."""
    other = copy.copy(self)
    other.table = table
    other.__dict__.pop('_until', None)
    return other

  # Examples of single items. Raise KeyError on an attribute that is none.

  def sid_to_text(self, item: int, attribute: str) -> TextExample:
    return self._ask('sid_to_text', attribute, item)

  def text_to_sid(self, item: int) -> TextExample:
    return self._ask('text_to_sid', 'item', item, described=self.words.described(item))

  def masked_attribute(self, item: int, attribute: str) -> TextExample:
    return self._ask(
      'masked_attribute', attribute, item, described=self.words.described(item, masked=attribute)
    )

  def _ask(self, task: str, what: str, item: int, **values) -> TextExample:
    template = prompts.templates()['align'][task][what]
    question = self.text.encode(template['question'].format(item=self._item[item], **values))
    if what == 'item':
      return text_example(question, self.sid[item], WORD_TASKS.index(task))
    answer = template['answer'].format(
      item=self._item[item], **{name: self.words.words[name][item] for name in prompts.ATTRIBUTES}
    )
    return text_example(question, self.sentence(answer), WORD_TASKS.index(task))

  def sentence(self, said: str) -> list[int]:
    """Tokens of a text that follows something, and its end. At most `text.sentence` of them."""
    return self.text.encode(' ' + said)[: self.config.text.sentence - 1] + [
      self.vocab.control('END')
    ]

  # Examples of trajectories

  @functools.cached_property
  def _gaps(self) -> np.ndarray:
    """Bucket of the time since the row before, of every row of the log; that of a user's first row means nothing."""
    return _buckets(np.diff(self.table.log.timestamp, prepend=0))

  @functools.cached_property
  def _until(self) -> np.ndarray:
    """Bucket of the time from the end of each case's history to its occasion."""
    return _buckets(self.table.timestamp - self.table.log.timestamp[self.table.end - 1])

  def trajectory(self, example: int, room: int) -> np.ndarray:
    """int32 [n]: event, gap and item of the latest events of a case's history, as FR-CoT prompts have them, within `room` tokens."""
    log, v, end = self.table.log, self.vocab, self.table.end[example]
    events = min(self.config.reasoner.events, room // (2 + v.levels))
    rows = np.arange(max(end - events, log.offsets[self.table.user[example]]), end)
    gap = self._gaps[rows].astype(np.int32)
    gap[:1] = 0
    return np.concatenate(
      [
        v.event(log.event[rows].astype(np.int32))[:, None],
        v.gap(gap)[:, None],
        self.sid[log.item[rows]],
      ],
      axis=1,
    ).ravel()

  def until(self, example: int) -> int:
    """The gap token from the end of a case's history to its occasion."""
    return self.vocab.gap(int(self._until[example]))

  def next_event(self, example: int, room: int) -> TextExample:
    tokens = self.trajectory(example, room)
    return TextExample(tokens, np.arange(len(tokens)) > 0, WORD_TASKS.index('next_event'))

  def next_purchase(self, example: int, room: int) -> TextExample:
    before = [
      *self.trajectory(example, room - 2 - self.vocab.levels),
      self.vocab.event(PURCHASE),
      self.until(example),
    ]
    return text_example(
      before, self.sid[self.table.target[example]], WORD_TASKS.index('next_purchase')
    )

  # Rows

  def draw(self, rng: np.random.Generator, room: int) -> TextExample | None:
    """An example of a task drawn by weight; None when there is no room for it."""
    task = ALIGN_TASKS[rng.choice(len(ALIGN_TASKS), p=self._share)]
    if task in ('next_event', 'next_purchase'):
      if room < 3 * (2 + self.vocab.levels):
        return None
      return getattr(self, task)(int(rng.integers(len(self.table))), room)
    if task == 'text_to_sid':
      found = self.text_to_sid(int(rng.choice(self._described)))
    else:
      attribute = rng.choice([name for name, items in self._shown.items() if len(items)])
      found = getattr(self, task)(int(rng.choice(self._shown[attribute])), str(attribute))
    return found if len(found.tokens) <= room else None

  def fill(self, rng: np.random.Generator, room: int) -> list[TextExample]:
    """Examples one after the other until one does not fit."""
    row = []
    while (found := self.draw(rng, room)) is not None:
      row.append(found)
      room -= len(found.tokens)
    return row

  def rows(self, numbers: np.ndarray) -> Packed:
    """Packed rows of the given numbers, any integers from 0 on."""
    width = self.config.text.width
    return pack(
      [
        self.fill(np.random.default_rng((self.config.seed, int(number))), width)
        for number in numbers
      ],
      width,
    )

  def exam(self, most: int) -> dict[str, tuple[np.ndarray, list[TextExample], list]]:
    """Question -> (items, an example for each, the right answer of each), over `most` items of which the answer is known, or all."""
    found, some = (
      {},
      lambda items: items[np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)],
    )
    for name, known in self._known.items():
      if len(known):
        items = some(known)
        found[f'semantic ID -> {name}'] = (
          items,
          [self.sid_to_text(i, name) for i in items],
          [self.words.words[name][i] for i in items],
        )
    items = some(np.unique(np.concatenate(list(self._known.values()))))
    return found | {
      'text -> semantic ID': (items, [self.text_to_sid(i) for i in items], items.tolist())
    }


def _buckets(seconds: np.ndarray) -> np.ndarray:
  return np.asarray(gap_bucket(seconds.clip(0, 2**31 - 1).astype(np.int32)), np.int8)
