import dataclasses
import json

import pytest

from rolegen_jax import config as lib
from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError


def test_the_default_is_valid():
  assert Config().validated() == Config()


@pytest.mark.parametrize(
  'assignment, message',
  [
    ('data.format=csv', "data.format='csv': must be one of 'simulated'"),
    ('data.format=contract', "data.path='': must be the log"),
    ('data.test_fraction=1.0', 'data.test_fraction=1.0: must be between 0 and 1'),
    ('data.valid_fraction=0.8', 'data.valid_fraction=0.8: must be between 0 and 1 - test_fraction'),
    ('semantic_ids.levels=1', 'semantic_ids.levels=1: must be 2 to 8'),
    (
      'semantic_ids.collaborative_dim=0',
      'semantic_ids.collaborative_dim=0: must be positive when no text embedder',
    ),
    ('backbone.temporal.kv_heads=3', 'backbone.temporal.kv_heads=3: must be a divisor of heads=4'),
    ('reasoner.transformer.head_dim=5', 'reasoner.transformer.head_dim=5: must be even'),
    (
      'reasoner.transformer.remat=some',
      "reasoner.transformer.remat='some': must be one of 'none', 'full', 'dots'",
    ),
    (
      'backbone.temporal.attention=flash',
      "backbone.temporal.attention='flash': must be one of 'auto', 'xla'",
    ),
    ('backbone.context=8', 'backbone.context=8: must be at least reasoner.events=24'),
    ('reasoner.role_events=25', 'reasoner.role_events=25: must be 1 to reasoner.events=24'),
    (
      'reasoner.intent_levels=3',
      'reasoner.intent_levels=3: must be 1 to semantic_ids.levels - 1 = 2',
    ),
    ('reasoner.temperature=0', 'reasoner.temperature=0.0: must be positive'),
    ('loop.worlds=1', 'loop.worlds=1: must be 2 to 16'),
    ('loop.worlds=17', 'loop.worlds=17: must be 2 to 16, the world tokens of the vocabulary'),
    ('loop.objective=dpo', "loop.objective='dpo': must be one of 'reinforce', 'weighted'"),
    ('loop_stage.steps=0', 'loop_stage.steps=0: must be at least 1'),
    ('mesh.fsdp=-1', 'mesh.data=-1: must be a number where another axis is -1'),
    ('mesh.tensor=0', 'mesh.tensor=0: must be at least 1, or -1'),
    ('data.max_users=-1', 'data.max_users=-1: must be at least 0'),
    ('simulator.users=0', 'simulator.users=0: must be at least 1'),
    ('backbone.dropout=1.0', 'backbone.dropout=1.0: must be at least 0 and below 1'),
    ('backbone.beam=20', 'backbone.beam=20: must be at least the largest of evaluation.ks=50'),
    ('reasoner.candidates=0', 'reasoner.candidates=0: must be at least 1'),
    ('roles.intent_days=0', 'roles.intent_days=0.0: must be positive'),
    ('loop.reference_decay=1.5', 'loop.reference_decay=1.5: must be 0 to 1'),
    ('loop.reflect_every=0', 'loop.reflect_every=0: must be at least 1'),
    ('warmup.optimizer.b2=1.0', 'warmup.optimizer.b2=1.0: must be between 0 and 1'),
    ('evaluation.ks=(10, 1)', 'evaluation.ks=(10, 1): must be one or more numbers from 1 on'),
    ('evaluation.batch=0', 'evaluation.batch=0: must be at least 1'),
    ('seed=-1', 'seed=-1: must be at least 0'),
  ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(assignment, message):
  with pytest.raises(ConfigError) as error:
    overrides.apply(Config(), [assignment])
  assert message in str(error.value)


def test_dict_round_trip_and_digest():
  config = overrides.apply(Config(), ['evaluation.ks=(1, 2)', 'loop.kl=0.5'])
  plain = json.loads(json.dumps(lib.to_dict(config)))
  assert lib.from_dict(plain) == config
  assert lib.digest(config) == lib.digest(plain) != lib.digest(Config())
  with pytest.raises(ConfigError, match="unknown field 'color'"):
    lib.from_dict(plain | {'color': 1})


def test_configs_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().seed = 1
