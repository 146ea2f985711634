"""A run whose reasoner starts from a pretrained folder, then needs its own folder alone."""

import json
import shutil

import jax
import numpy as np
import pytest

from rolegen_jax.pipeline.artifacts import saved_config
from tests.pretrained import runs
from tests.pretrained.checkpoints import TINY_QWEN3, read_tensors, write_folder
from tests.runs import run_to_reason

pytestmark = pytest.mark.slow


def test_a_run_trains_from_the_folder_and_then_needs_it_no_more(tmp_path):
  write_folder(tmp_path / 'model', TINY_QWEN3)
  # At this rate no step of align moves a row.
  config = runs.config(tmp_path / 'model', 'align.optimizer.learning_rate=1e-9')
  trained = run_to_reason(config, tmp_path / 'run')
  vocab = trained.run.rolegen.vocab
  backbone = trained.warm.load()['backbone']
  aligned = trained.aligned.load()['reasoner']
  table = read_tensors(tmp_path / 'model')['model.embed_tokens.weight']
  start, size = vocab.blocks['text']
  text_rows = np.asarray(aligned['tokens'])[start : start + size]
  np.testing.assert_allclose(text_rows, table, atol=1e-6)
  # The backbone reads no text.
  assert backbone['tokens'].shape[0] < start + 256 < vocab.size
  before = jax.device_get(trained.reasoned.load())

  shutil.rmtree(tmp_path / 'model')
  again = run_to_reason(saved_config(tmp_path / 'run'), tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(again.reasoned.load()))
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['reasoner']['text_pieces'] == 400
