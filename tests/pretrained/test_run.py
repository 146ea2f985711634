"""A run whose reasoner starts from a pretrained folder, and the same run from its own folder alone."""

import json
import shutil

import jax
import numpy as np

from experiments.benchmarks import pretrained_parts as parts
from rolegen_jax.config import Config
from rolegen_jax.overrides import apply
from rolegen_jax.pipeline.artifacts import saved_config
from tests import tiny
from tests.runs import run_to_reason

SAID = parts.QWEN3_06B | dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  vocab_size=400,
)
SMALL = [
  *(f'backbone.temporal.{size}' for size in tiny.SIZES),
  'simulator.users=200',
  'simulator.items=64',
  'simulator.categories=8',
  'semantic_ids.codes=8',
  'semantic_ids.collaborative_dim=8',
  'backbone.context=16',
  'reasoner.events=6',
  'reasoner.role_events=4',
  'roles.max_conversions=64',
  *(
    f'{stage}.{size}'
    for stage in ('warmup', 'align', 'reason')
    for size in ('steps=2', 'batch=8', 'save_every=2')
  ),
]


def test_a_run_trains_from_the_folder_and_needs_it_no_more(tmp_path):
  parts.write_folder(tmp_path / 'model', SAID, dtype='F32')
  settings = SMALL + [
    f'reasoner.pretrained={tmp_path / "model"}',
    'align.optimizer.learning_rate=1e-9',
  ]
  config = apply(Config(), settings)
  trained = run_to_reason(config, tmp_path / 'run')
  backbone, aligned = (stage.load() for stage in (trained.warm, trained.aligned))
  backbone, aligned = backbone['backbone'], aligned['reasoner']
  table = parts.tensors(tmp_path / 'model')['model.embed_tokens.weight']
  start, size = trained.run.rolegen.vocab.blocks['text']
  np.testing.assert_allclose(
    np.asarray(aligned['tokens'])[start : start + size], table, atol=1e-6
  )  # no step of align moved it
  # The backbone reads no text.
  assert backbone['tokens'].shape[0] < start + 256 < trained.run.rolegen.vocab.size
  before = jax.device_get(trained.reasoned.load())
  shutil.rmtree(tmp_path / 'model')
  again = run_to_reason(saved_config(tmp_path / 'run'), tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(again.reasoned.load()))
  assert (
    json.loads((tmp_path / 'run' / 'config.json').read_text())['reasoner']['text_pieces'] == 400
  )
