import dataclasses

import pytest

from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError, EvaluationConfig


@pytest.mark.parametrize(
  'assignment, read, value',
  [
    ('seed=3', lambda c: c.seed, 3),
    ('name=a=b', lambda c: c.name, 'a=b'),
    ('data.path=2024', lambda c: c.data.path, '2024'),  # a text field takes anything
    ('reasoner.transformer.tied=false', lambda c: c.reasoner.transformer.tied, False),
    ('reasoner.transformer.tied=True', lambda c: c.reasoner.transformer.tied, True),
    ('loop.kl=1', lambda c: c.loop.kl, 1.0),  # a whole number is a fine float
    ('loop.kl=1e-3', lambda c: c.loop.kl, 1e-3),
    ('evaluation.ks=[1, 20]', lambda c: c.evaluation.ks, (1, 20)),
    ('evaluation.ks=1,5,10', lambda c: c.evaluation.ks, (1, 5, 10)),
    ('evaluation.ablations=()', lambda c: c.evaluation.ablations, ()),
    ('warmup.optimizer.b2=0.95', lambda c: c.warmup.optimizer.b2, 0.95),
  ],
)
def test_replaces_one_field(assignment, read, value):
  found = read(overrides.apply(Config(), [assignment]))
  assert found == value and type(found) is type(value)


def test_later_assignments_win_and_nothing_else_changes():
  config = overrides.apply(Config(), ['seed=1', 'seed=2'])
  assert config.seed == 2 and overrides.apply(config, ['seed=0']) == Config()


@pytest.mark.parametrize(
  'assignment, nearest',
  [
    ('backbone.contxt=64', 'backbone.context'),
    ('loop.world=2', 'loop.worlds'),
    ('reasoner.transformer.head=2', 'reasoner.transformer.heads'),
    ('backbone.temporal=1', 'backbone.temporal.'),  # a section is no field
  ],
)
def test_an_unknown_field_names_the_nearest(assignment, nearest):
  with pytest.raises(ConfigError, match=f'no such field; the nearest is {nearest}'):
    overrides.apply(Config(), [assignment])


@pytest.mark.parametrize(
  'assignment',
  [
    'seed=1.5',
    'seed=true',
    'seed=one',
    'loop.kl=low',
    'loop.kl=True',
    'reasoner.transformer.tied=1',
    'evaluation.ks=5',
    'evaluation.ks=(1, 2.5)',
  ],
)
def test_a_wrong_type_is_refused(assignment):
  with pytest.raises(ConfigError, match='must be of type'):
    overrides.apply(Config(), [assignment])


def test_an_empty_tuple_is_replaced_by_the_type_that_is_declared():
  empty = overrides.apply(Config(), ['evaluation.ablations=()'])
  named = overrides.apply(empty, ["evaluation.ablations=('no_reasoner',)"])
  assert named.evaluation.ablations == ('no_reasoner',)
  with pytest.raises(ConfigError, match=r"must be of type tuple of str, like \('name',\)"):
    overrides.apply(empty, ['evaluation.ablations=no_reasoner'])
  saved = dataclasses.replace(Config(), evaluation=EvaluationConfig(ks=()))  # by hand
  assert overrides.apply(saved, ['evaluation.ks=(1, 10)']).evaluation.ks == (1, 10)
  with pytest.raises(ConfigError, match=r'must be of type tuple of int, like \(1, 10\)'):
    overrides.apply(saved, ['evaluation.ks=10'])


def test_an_assignment_needs_an_equals_sign():
  with pytest.raises(ConfigError, match='must be field=value'):
    overrides.apply(Config(), ['seed'])
