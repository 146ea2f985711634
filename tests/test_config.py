import dataclasses
import json

import pytest

from rolegen_jax import config as lib
from rolegen_jax import overrides
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.semantic_ids import embeddings
from rolegen_jax.simulator.rules import DEPARTMENT_SIZE


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
    ('reasoner.temperature=1e-12', 'reasoner.temperature=1e-12: must be at least 0.001'),
    ('reasoner.events=1', 'reasoner.events=1: must be at least 2'),
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
    ('seed=4294967296', 'seed=4294967296: must be at most 2147483647 in size'),
    ('name=', "name='': must be the name of the experiment"),
    ('backbone.beam=4', 'backbone.beam=4: must be at least the largest of evaluation.ks=50'),
    ('evaluation.bootstrap=0', 'evaluation.bootstrap=0: must be at least 1'),
    ('evaluation.ks=()', 'evaluation.ks=(): must be one or more numbers from 1 on'),
    ('evaluation.ks=(0, 10)', 'evaluation.ks=(0, 10): must be one or more numbers from 1 on'),
    ('evaluation.ks=(1, 1)', 'evaluation.ks=(1, 1): must be one or more numbers from 1 on'),
    ('evaluation.sasrec.steps=0', 'evaluation.sasrec.steps=0: must be at least 1'),
    ('evaluation.sasrec.widths=()', 'evaluation.sasrec.widths=(): must be one or more multiples'),
    ('evaluation.sasrec.widths=(64,7)', 'must be one or more multiples of 2 * heads=2'),
    ('evaluation.sasrec.dropout=1.0', 'evaluation.sasrec.dropout=1.0: must be at least 0 and be'),
    ('serving.filter_history=maybe', "must be one of 'auto', 'allow', 'bar'"),
    (
      "evaluation.ablations=('no_reasoner', 'no_reasoner')",
      'must be different ones of no_reasoner',
    ),
    ('backbone.beam=0', 'backbone.beam=0: must be at least 1'),
    ('backbone.beam=9223372036854775808', 'must be at most 2147483647 in size'),
    ('backbone.beam=100000', 'backbone.beam=100000: must be at most 65536'),
    ('backbone.dropout=2.0', 'backbone.dropout=2.0: must be at least 0 and below 1'),
    ('backbone.dropout=0.999', 'backbone.dropout=0.999: must be at most 0.99'),
    ('warmup.optimizer.learning_rate=-1e-3', 'learning_rate=-0.001: must be positive'),
    ('warmup.optimizer.b2=0.99999999', 'warmup.optimizer.b2=0.99999999: must be at most 0.99999'),
    ('warmup.batch=10000000', 'must be at most 214 with batch=10000000'),
    ('evaluation.tiger_steps=-1', 'evaluation.tiger_steps=-1: must be at least 0'),
    ('backbone.row_dropout=1.0', 'backbone.row_dropout=1.0: must be at least 0 and below 1'),
    ('backbone.negatives=1', 'backbone.negatives=1: must be at least 2'),
    (
      "backbone.experts=('history', 'popularity')",
      "'history', 'popularity'): must be generative or dense too, which find items",
    ),
    ("loop.experts=('roles',)", 'must be different ones of intent, retrieved, candidates'),
    ('calibration.steps=-1', 'calibration.steps=-1: must be at least 0'),
    ('loop.kl=1e400', 'loop.kl=inf: must be finite'),
    ('loop.weight_beta=1e-300', 'loop.weight_beta=1e-300: must be finite: 0, or 1e-12 to 1e+12'),
    ('roles.trigger_z=1e13', 'roles.trigger_z=10000000000000.0: must be finite'),
    ('semantic_ids.text=bert', "semantic_ids.text='bert': must be one of '', 'hashed_ngrams'"),
    ('simulator.categories=7', 'simulator.categories=7: must be 8 to a quarter of simulator.items'),
    ('simulator.items=60', 'must be 8 to a quarter of simulator.items=60'),
    ('semantic_ids.codes=4', 'reasoner.coarse_codes=8: must be 1 to semantic_ids.codes=4'),
    ('text.held_out=0.9', 'text.held_out=0.9: must be 0 to 0.5'),
    ('text.width=16', 'text.width=16: must be at least 20, four events'),
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


def test_values_of_a_wrong_type_in_python_are_named():
  for evaluation in (dict(ks=[1, 2]), dict(batch=64.0), dict(batch=True), dict(ks=('a',))):
    config = Config(evaluation=lib.EvaluationConfig(**evaluation))
    with pytest.raises(ConfigError, match=f'evaluation.{next(iter(evaluation))}=.*: must be of'):
      config.validated()
  with pytest.raises(ConfigError, match='mesh=None: must be a MeshConfig'):
    Config(mesh=None).validated()
  assert Config(loop=lib.LoopConfig(kl=1)).validated().loop.kl == 1  # a fine float


@pytest.mark.parametrize(
  'old, new, message',
  [
    ('"steps": 300', '"steps": "300"', "warmup.steps='300': must be of type int"),
    ('"steps": 300', '"steps": null', 'warmup.steps=None: must be of type int'),
    ('"steps": 300', '"steps": [300]', r'warmup.steps=\[300\]: must be of type int'),
    ('"steps": 300', '"stps": 300', "unknown field 'warmup.stps'"),
    ('"seed": 0', '"seed": 0.5', 'seed=0.5: must be of type int'),
    ('"ks": [', '"ks": ["a", ', r"evaluation.ks=\['a', .*: must be of type tuple of int"),
    ('"mesh": {', '"mesh": 3, "other": {', 'mesh=3: must be an object'),
    ('{', '', 'cannot be read'),
    ('}', '', 'cannot be read'),
  ],
)
def test_a_config_json_that_was_edited_wrongly_names_the_file_and_the_field(
  tmp_path, old, new, message
):
  path = tmp_path / 'config.json'
  text = json.dumps(lib.to_dict(Config()))
  path.write_text(text)
  assert lib.load(path) == Config()
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(ConfigError, match=f'{path}: {message}'):
    lib.load(path)


@pytest.mark.parametrize('content', [b'', b'[]', b'null', b'"x"', b'\xff\xfe', b'[' * 100_000])
def test_what_is_no_config_json_is_one_error(tmp_path, content):
  path = tmp_path / 'config.json'
  path.write_bytes(content)
  with pytest.raises(ConfigError, match=f'{path}: '):
    lib.load(path)
  with pytest.raises(ConfigError, match='absent.json: cannot be read'):
    lib.load(tmp_path / 'absent.json')


def test_names_that_the_config_repeats_are_those_of_the_code():
  assert set(lib.TEXT_EMBEDDERS) == {'column', 'reasoner', *embeddings.TEXT_EMBEDDERS}
  assert 2 * DEPARTMENT_SIZE == 8


def test_configs_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().seed = 1
