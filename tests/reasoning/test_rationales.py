"""Chains in words: what they say, where words come from, what is written between BOS and END."""

import dataclasses
import re

import numpy as np
import pytest

from rolegen_jax.config import ROLE_NAMES, WORD_TASKS, MeshConfig
from rolegen_jax.evaluation.alignment import sentences
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.reasoning.rationales import Rationales
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.sharding import make_mesh
from tests import tiny
from tests.text import catalogue

CONVERT, COMPARE = ROLE_NAMES.index('CONVERT'), ROLE_NAMES.index('COMPARE')
BEGIN, END = '<|control_bos|>', '<|control_end|>'


def squeeze(text: str) -> str:
  return text.replace(' ', '')


@pytest.fixture(scope='module')
def table():
  """All examples; every event is an alternative to what was bought, purchases aside."""
  examples = catalogue.log_and_examples()[2]
  m, log = examples.roles.shape[1], examples.log
  rows = examples.end[:, None] - m + np.arange(m)
  is_event = rows >= log.offsets[examples.user][:, None]
  is_purchase = log.event[np.maximum(rows, 0)] == tiny.PURCHASE
  roles = np.where(is_event, np.where(is_purchase, CONVERT, COMPARE), -1)
  return dataclasses.replace(examples, roles=roles.astype(np.int32))


class Said:
  """What may be said of the items of a table."""

  def __init__(self, table):
    self.a, self.table = catalogue.alignment(), table

  def words(self, item: int, attribute: str, unknown: str) -> str:
    return squeeze(unknown if self.a.held_out[item] else self.a.words.say(item, attribute))

  def compare(self, row: int) -> str:
    """The template's sentence of an event that plays COMPARE."""
    item = self.table.log.item[row]
    title = self.words(item, 'title', 'an item')
    category = self.words(item, 'category', 'something else')
    return f'{title}isanalternativewithin{category}'

  def name(self, item: int) -> str:
    return ''.join(self.a.vocab.named[token][0] for token in self.a.sid[item])


def test_a_chain_says_why_after_every_role_and_what_after_every_intent(table):
  """One sentence is imported, the others are the template's."""
  a, said, log = catalogue.alignment(), Said(table), table.log
  example = int(np.flatnonzero((table.roles == COMPARE).sum(1) > 1)[0])
  roles, path, end = table.roles[example], table.path[example], int(table.end[example])
  *_, other, row = end - len(roles) + np.flatnonzero(roles == COMPARE)
  chains = Rationales(a, table, {(example, row): 'an outside voice'})
  chain = chains.chain(example)
  text = squeeze(a.text.decode(chain.tokens[chain.taught]))
  assert text.count(BEGIN) == (roles >= 0).sum() + len(chains.intents(path))
  imported = f'<|role_compare|>{said.name(log.item[row])}{BEGIN}anoutsidevoice{END}'
  assert imported in text and said.compare(other) in text
  assert a.held_out[log.item[row]] or said.compare(row) not in text
  wanted = said.words(table.target[example], 'category', 'something else')
  assert 'wants' + wanted in text.split('<|control_intent|>')[1]
  path_text = text.split('<|control_path|>')[1]
  assert path_text.startswith(said.name(table.target[example])) and path_text.endswith(END)
  np.testing.assert_array_equal(chain.tokens[~chain.taught], chains.prompt(example))
  plan = squeeze(a.text.decode(chains.plan(example, roles, path)))
  sentence = r'(<.control_bos.>)[^<]*<.control_end.>'
  assert plan == re.sub(sentence, r'\1', text.split('<|control_path|>')[0])


def test_words_of_held_out_items_appear_nowhere(table):
  a = catalogue.alignment()
  chains, items = Rationales(a, table, {}), table.log.item[table.end - 1]
  assert a.held_out[items].any()
  for example, (row, item) in enumerate(zip(table.end - 1, items)):
    why = chains.why(example, row, COMPARE)
    assert why.startswith('an item ') == a.held_out[item]
    assert (a.words.say(item, 'title') not in why) == a.held_out[item]


def test_rows_hold_a_chain_each_and_examples_of_align_after_it(table):
  chains = Rationales(catalogue.alignment(), table, {})
  index = np.arange(0, len(table), 5)
  packed = chains.rows(index)
  assert packed.token.shape == (len(index), chains.width)
  for row, example in enumerate(index):
    chain = chains.chain(example)
    np.testing.assert_array_equal(packed.token[row, : len(chain.tokens)], chain.tokens)
    tasks = set(packed.task[row][packed.segment[row] == 1])
    assert tasks == {0, 1 + WORD_TASKS.index('rationale')}
  assert (packed.segment.max(1) > 1).mean() > 0.5
  np.testing.assert_array_equal(chains.rows(index[3:4]).token[0], packed.token[3])


def test_what_the_reasoner_writes_is_cut_into_its_sentences(table):
  rolegen = RoleGen(catalogue.config('text.sentence=4'))
  a, mesh = catalogue.alignment('text.sentence=4'), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  worlds, candidates = 2, 4
  path = np.broadcast_to(table.path[:, None], (len(table), worlds, candidates))
  predictions = Predictions(None, None, None, roles=table.roles, candidates=path)
  chosen = [0, 3, len(table) - 1]
  params = tiny.random_params(rolegen.model_fns['reasoner'])
  written = sentences(rolegen, params, a.over(table), chosen, predictions, mesh)
  chains = Rationales(a, table, {})
  for example, (events, intents) in zip(chosen, written):
    assert len(events) == (table.roles[example] >= 0).sum()
    assert len(intents) == len(chains.intents(table.path[example]))
    assert all(isinstance(sentence, str) for sentence in events + intents)
