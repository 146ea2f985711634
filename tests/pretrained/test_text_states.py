"""Text embeddings by a pretrained model: each text's own, in a run, kept by content."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.models.attention import causal
from rolegen_jax.pipeline import text
from rolegen_jax.reasoning import text_states as lib
from tests.pretrained import runs
from tests.pretrained.checkpoints import TINY_QWEN3, write_folder
from tests.pretrained.loaded import LoadedReasoner
from tests.runs import open_inputs

TEXTS = ['red shoes', '', 'a blue coat of wool', 'red shoes', 'x' * 400, 'tea']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('qwen3')
  write_folder(folder, TINY_QWEN3)
  return folder


def test_each_text_is_the_mean_of_its_own_states(folder, monkeypatch):
  """Of unit length, whatever lies beside it; as long as a row at most."""
  monkeypatch.setattr(lib, 'WIDTH', 40)
  monkeypatch.setattr(lib, 'MOST', 2)
  model = LoadedReasoner(folder, 'mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2')
  tokenizer = text.pretrained_folder().Folder(folder).tokenizer
  found = lib.text_states(model.rolegen, model.params, tokenizer, TEXTS, model.mesh)
  assert found.shape == (6, 32) and not found[1].any()
  np.testing.assert_array_equal(found[0], found[3])
  for row, said in zip(found, TEXTS):
    if not said:
      continue
    tokens = model.first + np.array([tokenizer.encode(said)[:40]], np.int32)

    def mean(reasoner, tokens):
      hidden = reasoner.hidden(tokens, np.arange(tokens.shape[1]), causal(jnp.ones_like(tokens)))
      return hidden.mean(axis=1)[0]

    alone = model.run(f'mean of {tokens.shape}', mean, tokens)
    np.testing.assert_allclose(row, alone / np.linalg.norm(alone), rtol=1e-3, atol=1e-4)


def test_a_run_embeds_its_items_once(folder, tmp_path, monkeypatch):
  """Another run that shares the cache does not, unless the texts or the model are others."""
  calls = []
  monkeypatch.setenv(text.TEXT_CACHE, str(tmp_path / 'cache'))
  config = runs.config(folder, 'semantic_ids.text=reasoner')
  made = functools.partial(_counted, lib.text_states, calls)
  monkeypatch.setattr('rolegen_jax.reasoning.text_states.text_states', made)
  _, inputs = open_inputs(config, tmp_path / 'one')
  assert inputs.text_vectors.vectors.shape == (64, 32) and len(calls) == 1
  # Neither adapters nor rows of our own tokens are part of what embeds.
  lora = runs.config(folder, 'semantic_ids.text=reasoner', 'reasoner.train=lora', 'seed=1')
  _, again = open_inputs(lora, tmp_path / 'two')
  np.testing.assert_array_equal(again.text_vectors.vectors, inputs.text_vectors.vectors)
  assert len(calls) == 1 and len(list((tmp_path / 'cache').iterdir())) == 1
  simulator = dataclasses.replace(config.simulator, seed=config.simulator.seed + 1)
  open_inputs(dataclasses.replace(config, simulator=simulator), tmp_path / 'three')
  assert len(calls) == 2
  write_folder(tmp_path / 'another_model', TINY_QWEN3, seed=1)
  another = runs.config(tmp_path / 'another_model', 'semantic_ids.text=reasoner')
  _, inputs = open_inputs(another, tmp_path / 'four')
  assert len(calls) == 3
  assert (inputs.text_vectors.vectors != again.text_vectors.vectors).any()


def _counted(work, calls, *args):
  calls.append(args)
  return work(*args)


def test_without_a_pretrained_reasoner_it_embeds_nothing():
  with pytest.raises(ConfigError, match='semantic_ids.text=.reasoner.: must be another embedder'):
    runs.config('', 'semantic_ids.text=reasoner').validated()
