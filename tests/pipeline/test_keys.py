"""What stages say that they read: every field has a place, and training reads nothing else."""

import dataclasses
import json

import jax
import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import ABLATIONS, Config
from rolegen_jax.models import functional
from rolegen_jax.overrides import apply, field_paths
from rolegen_jax.pipeline import evaluation, keys, stages
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import (
  assign_semantic_ids,
  choose_on_validation,
  prepare_data,
  prepare_inputs,
)
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.training import state as states
from tests import runs

SMALL = [
  *runs.SMALL,
  'reasoner.candidates=2',
  'reasoner.kinds=2',
  'roles.max_conversions=64',
  'text.width=96',
  'text.sentence=8',
  'loop.worlds=2',
  'calibration.steps=1',
  'evaluation.sasrec.steps=1',
  *(f'{stage}.batch=8' for stage in ('warmup', 'kinds', 'align', 'reason', 'loop_stage')),
]
# Where a run trains is not what it trains, and the content of these files counts, not their path.
WITHOUT_EFFECT = {
  'mesh.rollout',
  'data.shards',
  'roles.annotations',
  'update.parent',
  'evaluation.batch',
}
INPUT_OF = dict(log='data', occasions='data', text_vectors='semantic_ids')


def test_every_field_is_read_by_a_stage_or_by_none():
  read = {path for kind in keys.READS for path in keys.fields(kind)}
  unread = set(keys.under(*keys.UNREAD))
  assert read | unread == set(field_paths(Config())) and not read & unread
  for name in [*keys.UNREAD, *(name for names in keys.READS.values() for name in names)]:
    assert keys.under(name), f'{name}: no such field or section'


def test_settings_that_came_later_count_where_they_are_not_the_default():
  assert not set(keys.LATER) & set(keys.settings('data', Config()))
  changed = keys.settings('data', apply(Config(), ['data.cold_items=0.1']))
  assert [name for name in keys.LATER if name in changed] == ['data.cold_items']


def test_text_embeddings_by_the_reasoner_are_of_its_model():
  """And without them semantic IDs do not depend on it."""
  by_text = {
    text: keys.settings(
      'semantic_ids', apply(Config(), ['reasoner.pretrained=x', f'semantic_ids.text={text}'])
    )
    for text in ('minilm', 'reasoner')
  }
  of_reasoner = {name for name in by_text['reasoner'] if name.startswith('reasoner.')}
  assert {'reasoner.pretrained', 'reasoner.tokenizer'} <= of_reasoner
  assert 'reasoner.transformer.dtype' in of_reasoner
  assert not any(name.startswith('reasoner.') for name in by_text['minilm'])


def test_every_stage_of_a_run_has_an_entry():
  all_of_them = f'evaluation.ablations={tuple(ABLATIONS)}'
  config = apply(Config(), [all_of_them, 'reasoner.text_pieces=400', 'reasoner.kinds=2'])
  updated = apply(config, ['update.parent=x', 'update.parent_key=y', 'update.appends=true'])
  names = {*keys.stages(config), *keys.stages(updated)}
  assert {keys.kind(stage) for stage in names} == set(keys.READS)
  assert not {'align', 'reason'} & set(keys.stages(updated))


@pytest.mark.parametrize(
  'assignment, first',
  [
    ('backbone.beam=60', None),
    ('serving.exploration_weight=0', None),
    ('evaluation.bootstrap=7', None),
    ('evaluation.batch=16', None),
    ('warmup.save_every=7', None),
    ('mesh.fsdp=2', None),
    ('name=other', None),
    ('evaluation.ks=(1,50)', None),
    ('serving.exposure_penalty=0.5', None),
    ('evaluation.ks=(1,20)', 'baselines'),
    ('text.sentence=7', None),  # there is no text
    ('simulator.users=7', 'data'),
    ('semantic_ids.codes=64', 'semantic_ids'),
    ('backbone.context=64', 'warmup'),
    ('seed=1', 'warmup'),
    ('warmup.steps=7', 'warmup'),
    ('roles.trigger_z=3.0', 'roles'),
    ('roles.max_conversions=9', 'roles'),
    ('reasoner.events=20', 'align'),
    ('reasoner.kinds=2', 'choices'),
    ('reasoner.attributes=9', None),  # there are no kinds of users
    ('align.optimizer.learning_rate=0.1', 'align'),
    ('reasoner.candidates=3', 'reason'),
    ('reasoner.temperature=0.3', 'loop'),
    ('loop.kl=0.1', 'loop'),
    ('calibration.steps=7', 'loop/calibration'),
    ('evaluation.seed=7', None),
    ('evaluation.sasrec.steps=7', 'baselines'),
    ('serving.filter_history=bar', 'baselines'),
    ('evaluation.tiger_steps=7', None),  # it is not asked for
    ('backbone.negatives=64', 'warmup'),
    ("backbone.experts=('dense',)", 'warmup'),
    ("loop.experts=('intent',)", 'loop'),
  ],
)
def test_the_first_stage_that_a_setting_changes(assignment, first):
  config = Config()
  changed = apply(config, [assignment])
  differing = [
    stage
    for stage in keys.stages(config)
    if keys.settings(stage, config) != keys.settings(stage, changed)
  ]
  assert (differing or [None])[0] == first


def test_an_ablation_reads_its_own_settings_of_the_loop():
  settings = keys.settings('ablations/tiger', Config())
  assert settings['backbone.experts'] == ['generative']
  # What a switch of the train step turns off is no setting: the name tells such ablations apart.
  names = ('loop', 'ablations/no_reflection', 'ablations/no_interventions')
  assert len({keys.record(name, Config(), {}).key for name in names}) == 3


def test_what_is_left_without_an_expert_is_calibrated_and_no_more():
  config = apply(Config(), ["evaluation.ablations=('without_dense', 'tiger')"])
  stages_of_ablations = [s for s in keys.stages(config) if s.startswith('ablations/')]
  assert stages_of_ablations == ['ablations/without_dense/calibration', 'ablations/tiger']
  plain = apply(config, ['calibration.steps=0'])
  assert [s for s in keys.stages(plain) if s.startswith('ablations/')] == ['ablations/tiger']


@pytest.mark.parametrize('steps, expected', [(0, 300), (7, 7)])
def test_tiger_reads_the_settings_that_it_trains_with(steps, expected):
  config = apply(Config(), [f'evaluation.tiger_steps={steps}', 'warmup.steps=300'])
  settings = keys.settings('ablations/tiger', config)
  assert settings['backbone.experts'] == ['generative'] and settings['warmup.steps'] == expected
  # A run under these settings asks for the same.
  assert keys.settings('ablations/tiger', config.ablated('tiger')) == settings
  assert keys.settings('warmup', config)['warmup.steps'] == 300


def recording(section, seen, prefix=''):
  """A copy of a config that adds the path of each field that is looked at to `seen`."""
  paths = {field.name: prefix + field.name for field in dataclasses.fields(section)}

  class Recording(type(section)):
    # Compared by identity: comparing fields would look at them.
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __getattribute__(self, name):
      value = super().__getattribute__(name)
      if name in paths and not dataclasses.is_dataclass(value):
        seen.add(paths[name])
      return value

  copy = object.__new__(Recording)
  for name, path in paths.items():
    value = getattr(section, name)
    if dataclasses.is_dataclass(value):
      value = recording(value, seen, f'{path}.')
    object.__setattr__(copy, name, value)
  return copy


def trace_one_step(task, site, trie):
  """In place of training: make one batch and trace the step, which looks at all that it reads."""
  batch = next(task.batches())
  with jax.set_mesh(site.mesh):
    state = states.abstract(task.model_fns, task.optimizers, site.mesh)
    jax.eval_shape(task.step, state, batch, trie, *task.extra)
  return {}


@pytest.fixture
def traced(monkeypatch):
  """Stages that are traced instead of trained."""
  # Each builds its models anew, and looks at all that they are made of.
  monkeypatch.setattr(functional, 'abstract', functional.abstract.__wrapped__)
  monkeypatch.setattr(stages, 'fit', trace_one_step)
  monkeypatch.setattr(stages, 'calibrate', lambda run, inputs, trained, *_, **__: trained)


def declared(workdir, stage):
  """What a stage said that it reads, itself or through the stages whose results it reads."""
  record = json.loads((workdir / stage / 'KEY.json').read_text())
  names = {name.removeprefix('max(').removesuffix(')') for name in record['settings']}
  for earlier in {INPUT_OF.get(name, name) for name in record['inputs']} - {'vocabulary'}:
    names |= declared(workdir, earlier)
  return names | (set(keys.LATER) if stage == 'data' else set())


@pytest.mark.parametrize('experiment', ['demo', pytest.param('demo_llm', marks=pytest.mark.slow)])
def test_stages_read_what_they_say(tmp_path, monkeypatch, traced, experiment):
  words = ['reasoner.text_pieces=400'] if experiment == 'demo_llm' else []
  config, seen = entry.experiment(experiment, [*SMALL, *words]), set()
  plain = open_run(config, tmp_path)
  # What a stage says is read from the plain settings, what it does from those that take notes.
  monkeypatch.setattr(
    Run,
    'begin',
    lambda run, stage, given: run.folder.begin(keys.record(stage, config, given)),
  )
  noted = recording(config, seen)
  run = dataclasses.replace(plain, config=noted, rolegen=RoleGen(noted))

  def read_by(stage, work, *args):
    seen.clear()
    result = work(run, *args)
    extra = seen - declared(tmp_path, stage) - WITHOUT_EFFECT
    assert seen and not extra, f'{stage} reads {sorted(extra)}'
    return result

  data = read_by('data', prepare_data)
  read_by('semantic_ids', assign_semantic_ids, data)
  read_by('choices', choose_on_validation, data)
  plain, inputs = prepare_inputs(plain)
  run = run.with_catalogue(inputs.trie)
  alone = run.ablated('tiger')  # to make models is to look at all settings
  if inputs.words:
    monkeypatch.setattr(inputs.words.alignment, 'config', noted)
  warm = read_by('warmup', stages.warm_up, inputs)
  kinds = read_by('kinds', stages.learn_kinds, inputs)
  untrained = functional.init(plain.rolegen.kinds_fn, jax.random.key(0), plain.mesh)[1]
  labels = stages.Trained(kinds.key, lambda: {'kinds': untrained})
  labeled = read_by('roles', stages.label_roles, inputs, labels)
  aligned = read_by('align', stages.align, inputs, labeled, kinds)
  reasoned = read_by('reason', stages.reason, inputs, labeled, aligned)
  read_by('loop', stages.close_loop, inputs, labeled, warm, reasoned)
  read_by('ablations/tiger', lambda _: stages.warm_up(alone, inputs, 'ablations/tiger'))
  if not words:
    read_by('baselines', evaluation.rank_baselines, inputs)
