"""Chains in words: what they say, where the words come from, and what is written between the marks."""

import dataclasses
import re

import numpy as np

from rolegen_jax.config import ROLE_NAMES, WORD_TASKS, MeshConfig
from rolegen_jax.evaluation.alignment import sentences
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.reasoning.rationales import Rationales
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.sharding import make_mesh
from tests import tiny
from tests.text import catalogue

CONVERT, COMPARE = ROLE_NAMES.index('CONVERT'), ROLE_NAMES.index('COMPARE')


def labelled():
  """The cases, every event an alternative to what was bought, purchases aside."""
  examples = catalogue.log_and_examples()[2]
  rows = examples.end[:, None] - examples.roles.shape[1] + np.arange(examples.roles.shape[1])
  real = rows >= examples.log.offsets[examples.user][:, None]
  roles = np.where(examples.log.event[np.maximum(rows, 0)] == tiny.PURCHASE, CONVERT, COMPARE)
  return dataclasses.replace(examples, roles=np.where(real, roles, -1).astype(np.int32))


def test_a_chain_says_why_after_every_role_and_what_after_every_intent():
  a, examples = catalogue.alignment(), labelled()
  example = int(np.flatnonzero((examples.roles == COMPARE).sum(1) > 1)[0])
  row = int(examples.end[example]) - 1 - int(np.argmax(examples.roles[example][::-1] == COMPARE))
  chains = Rationales(a, examples, {(example, row): 'an outside voice'})
  found = chains.chain(example)
  read = a.text.decode(found.tokens[found.taught]).replace(' ', '')
  say = lambda item, name, other: (other if a.held_out[item] else a.words.say(item, name)).replace(
    ' ', ''
  )
  title = lambda r: say(examples.log.item[r], 'title', 'an item')
  assert read.count('<|control_bos|>') == (examples.roles[example] >= 0).sum() + len(
    chains.intents(examples.path[example])
  )
  named = lambda item: ''.join(a.vocab.named[token][0] for token in a.sid[item])
  assert (
    f'<|role_compare|>{named(examples.log.item[row])}<|control_bos|>anoutsidevoice<|control_end|>'
    in read
  )
  assert a.held_out[examples.log.item[row]] or title(row) + 'isanalternativewithin' not in read
  other = next(
    r
    for r in range(examples.end[example] - 4, row)
    if examples.roles[example][r - examples.end[example] + 4] == COMPARE
  )
  assert (
    title(other)
    + 'isanalternativewithin'
    + say(examples.log.item[other], 'category', 'something else')
    in read
  )
  assert (
    'wants' + say(examples.target[example], 'category', 'something else')
    in read.split('<|control_intent|>')[1]
  )
  assert read.split('<|control_path|>')[1].startswith(
    named(examples.target[example])
  ) and read.endswith('<|control_end|>')
  np.testing.assert_array_equal(found.tokens[~found.taught], chains.prompt(example))
  plan = chains.plan(example, examples.roles[example], examples.path[example])
  silent = re.sub(
    r'(<.control_bos.>)[^<]*<.control_end.>', r'\1', read.split('<|control_path|>')[0]
  )
  assert a.text.decode(plan).replace(' ', '') == silent


def test_words_of_held_out_items_are_said_nowhere():
  a, examples = catalogue.alignment(), labelled()
  chains = Rationales(a, examples, {})
  rows = examples.end - 1
  assert a.held_out[examples.log.item[rows]].any()
  for example, row in zip(range(len(examples)), rows):
    said = chains.why(example, row, COMPARE)
    assert (
      said.startswith('an item ')
      == a.held_out[examples.log.item[row]]
      == (a.words.say(examples.log.item[row], 'title') not in said)
    )


def test_rows_hold_a_chain_each_and_examples_of_align_after_it():
  a, examples = catalogue.alignment(), labelled()
  chains = Rationales(a, examples, {})
  index = np.arange(0, len(examples), 5)
  packed = chains.rows(index)
  assert packed.token.shape == (len(index), chains.width)
  for row, example in enumerate(index):
    chain = chains.chain(example)
    np.testing.assert_array_equal(packed.token[row, : len(chain.tokens)], chain.tokens)
    assert set(packed.task[row][packed.segment[row] == 1]) == {0, 1 + WORD_TASKS.index('rationale')}
  assert (packed.segment.max(1) > 1).mean() > 0.5
  np.testing.assert_array_equal(chains.rows(index[3:4]).token[0], packed.token[3])


def test_what_the_reasoner_says_is_cut_into_its_sentences():
  rolegen, examples = RoleGen(catalogue.config('text.sentence=4')), labelled()
  a, mesh = catalogue.alignment('text.sentence=4'), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  n, (worlds, p) = len(examples), (2, 4)
  candidates = np.broadcast_to(examples.path[:, None], (n, worlds, p))
  found = Predictions(None, None, examples.roles, candidates, None, None, None, None)
  chosen = [0, 3, len(examples) - 1]
  said = sentences(
    rolegen,
    tiny.random_params(rolegen.model_fns['reasoner']),
    a.over(examples),
    chosen,
    found,
    mesh,
  )
  chains = Rationales(a, examples, {})
  for example, (events, intents) in zip(chosen, said):
    assert len(events) == (examples.roles[example] >= 0).sum() and len(intents) == len(
      chains.intents(examples.path[example])
    )
    assert all(isinstance(sentence, str) for sentence in events + intents)
