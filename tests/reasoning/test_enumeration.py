"""Interventions against enumeration of all chains that they leave possible."""

import numpy as np

from rolegen_jax.config import ROLE_NAMES
from rolegen_jax.reasoning import frcot
from rolegen_jax.reasoning.likelihood import likelihood
from rolegen_jax.reasoning.worlds import Tree, no_interventions, world_prompts
from rolegen_jax.runtime.compile import jit
from tests import tiny

ROLEGEN = tiny.rolegen()
LAYOUT = ROLEGEN.layout
M, VIEW = LAYOUT.config.role_events, 1
CODES, FIRST_CODE = np.arange(tiny.CODES), LAYOUT.vocab.blocks['sid0'][0]


def examples():
  """Histories of views: every event may have any role but CONVERT."""
  made = tiny.examples(5)
  event = np.full_like(made.history.event, VIEW)
  return made._replace(history=made.history._replace(event=event))


@jit
def scored(params, examples, tokens, intent, trie):
  """(log-probs of the tokens [B, T], of all roles [B, M, R]) under do(intent)."""
  prompt = frcot.build_prompt(
    LAYOUT, examples.history, examples.excites, examples.timestamp, trie.item_codes
  )
  done = no_interventions(tiny.USERS, 1, M)._replace(intent=intent[:, None])
  prompts = world_prompts(LAYOUT, prompt, done)
  reasoner = ROLEGEN.bind('reasoner', params)
  found = likelihood(reasoner, Tree(LAYOUT), prompts, tokens, trie, temperature=1.0)
  return found.log_prob, found.role_log_prob


def enumerated(intent: int, slot: int) -> np.ndarray:
  """p(role of an event) [B, R] under do(intent): all second intents and earlier roles summed."""
  params, made, trie = tiny.params('reasoner'), examples(), tiny.trie()
  tokens = np.tile(LAYOUT.start.astype(np.int32), (tiny.USERS, 1))
  tokens[:, LAYOUT.intent_slots[0, 0]] = FIRST_CODE + intent
  second, first_role = LAYOUT.intent_slots[1, 0], LAYOUT.role_slots[0]
  done, total = np.full(tiny.USERS, intent, np.int32), 0.0
  for other in CODES:
    tokens[:, second] = FIRST_CODE + other
    for role in range(len(ROLE_NAMES) if slot else 1):
      tokens[:, first_role] = LAYOUT.vocab.role(role)
      log_prob, roles = map(np.asarray, scored(params, made, tokens, done, trie))
      log_p = log_prob[:, second] + (log_prob[:, first_role] if slot else 0)
      possible = (roles[:, 0, role] > -1e5) if slot else True
      total += np.where(possible, np.exp(log_p), 0)[:, None] * np.exp(roles[:, slot])
  return total


@jit
def chances(params, examples, trie, intent):
  return ROLEGEN.role_chances(params, examples, trie, intent, 1024)


def test_roles_under_an_intent_are_those_of_all_chains_with_it():
  """The second role of 1024 chains drawn under do(intent = 2) against a sum over all chains."""
  made = examples()
  full = (made.history.segment[:, -M:] > 0).all(1)
  assert full.sum() >= 4
  got = chances(tiny.params('reasoner'), made, tiny.trie(), np.full(tiny.USERS, 2, np.int32))
  for slot, tolerance in ((0, 0.02), (1, 0.03)):
    exact = enumerated(2, slot)
    np.testing.assert_allclose(exact[full].sum(-1), 1, atol=1e-4)
    np.testing.assert_allclose(np.asarray(got)[full, slot], exact[full], atol=tolerance)
