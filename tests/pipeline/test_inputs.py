"""What the stages before training leave for those that train: here, text vectors."""

import numpy as np
import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError
from rolegen_jax.pipeline import keys
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.semantic_ids import minilm
from tests.runs import SMALL, open_inputs


def test_text_vectors_are_read_from_the_stage_of_semantic_ids(tmp_path):
  config = entry.experiment('demo', [*SMALL, 'semantic_ids.text_dim=12'])
  _, inputs = open_inputs(config, tmp_path)
  vectors = inputs.text_vectors.vectors
  assert vectors.shape == (64, 12) and vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  assert inputs.hashes['text_vectors'] == inputs.text_vectors.digest
  # A run that is there does not embed again.
  _, again = prepare_inputs(open_run(config, tmp_path, may_train=False))
  np.testing.assert_array_equal(again.text_vectors.vectors, vectors)


def test_without_text_there_are_no_text_vectors_and_their_width_is_not_read(tmp_path):
  config = entry.experiment('demo', [*SMALL, 'semantic_ids.text='])
  _, inputs = open_inputs(config, tmp_path)
  assert inputs.text_vectors is None and 'text_vectors' not in inputs.hashes
  assert not (tmp_path / 'semantic_ids' / 'text.npz').exists()
  read = {
    text: keys.settings('semantic_ids', entry.experiment('demo', [f'semantic_ids.text={text}']))
    for text in ('', 'minilm')
  }
  assert ['semantic_ids.text_dim' in settings for settings in read.values()] == [False, True]


def test_an_embedder_that_is_not_installed_ends_the_run_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(minilm, 'PACKAGE', 'a_package_that_nobody_has')
  with pytest.raises(ConfigError, match="^semantic_ids.text='minilm': needs .*-text.txt$"):
    open_inputs(entry.experiment('demo', [*SMALL, 'semantic_ids.text=minilm']), tmp_path)
