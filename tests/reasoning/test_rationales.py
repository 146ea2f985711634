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
  cases = catalogue.log_and_cases()[2]
  rows = cases.end[:, None] - cases.roles.shape[1] + np.arange(cases.roles.shape[1])
  real = rows >= cases.log.offsets[cases.user][:, None]
  roles = np.where(cases.log.event[np.maximum(rows, 0)] == tiny.PURCHASE, CONVERT, COMPARE)
  return dataclasses.replace(cases, roles=np.where(real, roles, -1).astype(np.int32))


def test_a_chain_says_why_after_every_role_and_what_after_every_intent():
  a, cases = catalogue.alignment(), labelled()
  case = int(np.flatnonzero((cases.roles == COMPARE).sum(1) > 1)[0])
  row = int(cases.end[case]) - 1 - int(np.argmax(cases.roles[case][::-1] == COMPARE))
  chains = Rationales(a, cases, {(case, row): 'an outside voice'})
  found = chains.chain(case)
  read = a.text.decode(found.tokens[found.taught]).replace(' ', '')
  say = lambda item, name, other: (other if a.held_out[item] else a.words.say(item, name)).replace(' ', '')
  title = lambda r: say(cases.log.item[r], 'title', 'an item')
  assert read.count('<|control_bos|>') == (cases.roles[case] >= 0).sum() + len(chains.intents(cases.path[case]))
  named = lambda item: ''.join(a.vocab.named[token][0] for token in a.sid[item])
  assert f'<|role_compare|>{named(cases.log.item[row])}<|control_bos|>anoutsidevoice<|control_end|>' in read
  assert a.held_out[cases.log.item[row]] or title(row) + 'isanalternativewithin' not in read
  other = next(r for r in range(cases.end[case] - 4, row) if cases.roles[case][r - cases.end[case] + 4] == COMPARE)
  assert title(other) + 'isanalternativewithin' + say(cases.log.item[other], 'category', 'something else') in read
  assert 'wants' + say(cases.target[case], 'category', 'something else') in read.split('<|control_intent|>')[1]
  assert read.split('<|control_path|>')[1].startswith(named(cases.target[case])) and read.endswith('<|control_end|>')
  np.testing.assert_array_equal(found.tokens[~found.taught], chains.prompt(case))
  plan = chains.plan(case, cases.roles[case], cases.path[case])
  silent = re.sub(r'(<.control_bos.>)[^<]*<.control_end.>', r'\1', read.split('<|control_path|>')[0])
  assert a.text.decode(plan).replace(' ', '') == silent


def test_words_of_held_out_items_are_said_nowhere():
  a, cases = catalogue.alignment(), labelled()
  chains = Rationales(a, cases, {})
  rows = cases.end - 1
  assert a.held_out[cases.log.item[rows]].any()
  for case, row in zip(range(len(cases)), rows):
    said = chains.why(case, row, COMPARE)
    assert said.startswith('an item ') == a.held_out[cases.log.item[row]] == (a.words.say(cases.log.item[row], 'title') not in said)


def test_rows_hold_a_chain_each_and_examples_of_align_after_it():
  a, cases = catalogue.alignment(), labelled()
  chains = Rationales(a, cases, {})
  index = np.arange(0, len(cases), 5)
  packed = chains.rows(index)
  assert packed.token.shape == (len(index), chains.width)
  for row, case in enumerate(index):
    chain = chains.chain(case)
    np.testing.assert_array_equal(packed.token[row, :len(chain.tokens)], chain.tokens)
    assert set(packed.task[row][packed.segment[row] == 1]) == {0, 1 + WORD_TASKS.index('rationale')}
  assert (packed.segment.max(1) > 1).mean() > 0.5
  np.testing.assert_array_equal(chains.rows(index[3:4]).token[0], packed.token[3])


def test_what_the_reasoner_says_is_cut_into_its_sentences():
  rolegen, cases = RoleGen(catalogue.config('text.sentence=4')), labelled()
  a, mesh = catalogue.alignment('text.sentence=4'), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  n, (worlds, p) = len(cases), (2, 4)
  candidates = np.broadcast_to(cases.path[:, None], (n, worlds, p))
  found = Predictions(None, None, cases.roles, candidates, None, None, None, None)
  chosen = [0, 3, len(cases) - 1]
  said = sentences(rolegen, tiny.random_params(rolegen.makers['reasoner']), a.over(cases), chosen, found, mesh)
  chains = Rationales(a, cases, {})
  for case, (events, intents) in zip(chosen, said):
    assert len(events) == (cases.roles[case] >= 0).sum() and len(intents) == len(chains.intents(cases.path[case]))
    assert all(isinstance(sentence, str) for sentence in events + intents)
