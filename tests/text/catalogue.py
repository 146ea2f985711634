"""A small simulated log with words, its examples, and a tokenizer of its words.

No stage has run: codes are random.
"""

import functools

from rolegen_jax import overrides
from rolegen_jax.config import Config
from rolegen_jax.data.events import validate
from rolegen_jax.data.examples import training_examples
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import find_occasions
from rolegen_jax.features.excitation import Excitation
from rolegen_jax.features.interest_shift import InterestShift
from rolegen_jax.features.item_transitions import Kernel, Transitions
from rolegen_jax.reasoning.alignment import Alignment
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.simulator import world
from rolegen_jax.text.items import ItemWords
from tests import tiny

PIECES = 400


def config(*assignments: str) -> Config:
  sizes = [
    f'reasoner.text_pieces={PIECES}',
    'text.width=96',
    'text.held_out=0.25',
    'simulator.users=120',
    'simulator.items=64',
    'simulator.categories=8',
  ]
  return overrides.apply(tiny.config(), sizes + list(assignments))


@functools.cache
def log_and_examples():
  """(log, codes of its items, training examples)."""
  c = config()
  simulated = world.simulate(c.simulator)
  log = InteractionLog.build(*validate(simulated.events, simulated.items, 'events', 'items'))
  occasions = find_occasions(log, c.data)
  codes = tiny.codes(len(log.items))
  end = occasions.train_end(log)
  shift = InterestShift.of(log, end, codes[:, 0], tiny.CODES)
  excitation = Excitation.of_counts(shift, Transitions.of(log, end, Kernel()), c.reasoner)
  examples = training_examples(
    log, occasions, c.reasoner.role_events, c.reasoner.candidates, excitation
  )
  return log, codes, examples


@functools.cache
def tokenizer():
  return ItemWords.of(log_and_examples()[0].items).tokenizer(PIECES)


@functools.cache
def alignment(*assignments: str) -> Alignment:
  c, (log, codes, examples) = config(*assignments), log_and_examples()
  return Alignment(c, RoleGen(c).vocab, ItemWords.of(log.items), tokenizer(), codes, examples)
