"""A pretrained base that stays as it is: adapters merged on export, saved alone, and trained by a run that keeps nothing of the base."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from ours import Ours
from safetensors.numpy import load_file
from test_run import SAID, SMALL

from experiments.benchmarks import pretrained_parts as parts
from rolegen_jax.config import Config
from rolegen_jax.models.attention import causal
from rolegen_jax.overrides import apply
from rolegen_jax.pipeline.artifacts import saved_config
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.pretrained.export import export, export_adapters
from rolegen_jax.text.tokenizers import open_tokenizer
from rolegen_jax.training.checkpoint import ArtifactMismatch
from tests.runs import run_to_reason

ROOT = pathlib.Path(__file__).parents[2]
LORA = (
  'reasoner.train=lora',
  'reasoner.lora.rank=2',
  'reasoner.lora.alpha=6.0',
  "reasoner.lora.targets=('wq','wo','down')",
)


def logits(ours: Ours, tokens) -> np.ndarray:
  valid = np.ones(tokens.shape, np.int32)
  read = lambda r, tokens: r.logits(
    r.hidden(tokens, np.arange(tokens.shape[1]), causal(valid)), 0, ours.first + ours.pieces
  )
  return ours.run('all', read, tokens)


@pytest.mark.parametrize('tied', [True, False])
def test_merged_on_export_and_saved_alone(tmp_path, tied):
  parts.write_folder(tmp_path / 'base', SAID | dict(tie_word_embeddings=tied), dtype='F32')
  ours, rng = Ours(tmp_path / 'base', *LORA), np.random.default_rng(0)
  spare = (
    ours.first + open_tokenizer(tmp_path / 'base').size
  )  # from here on, rows of the base may come back as our tokens
  tokens = rng.integers(0, spare, (8, 6))
  before = logits(ours, tokens)
  np.testing.assert_array_equal(
    before, logits(Ours(tmp_path / 'base', 'reasoner.train=all'), tokens)
  )

  def move(path, x):
    added = any(p.key.endswith(('_lora', '_delta')) for p in path)
    return x + 0.1 * rng.normal(size=x.shape).astype(np.float32) if added else x

  ours.params = jax.tree_util.tree_map_with_path(move, ours.params)
  lora = ours.config.reasoner.lora
  export(ours.params, ours.vocab, tmp_path / 'base', tmp_path / 'merged', lora)
  merged, found = Ours(tmp_path / 'merged', 'reasoner.train=all'), logits(ours, tokens)
  np.testing.assert_allclose(found[..., :spare], logits(merged, tokens)[..., :spare], atol=1e-4)
  assert np.abs(found - before).max() > 0.1

  export_adapters(ours.params, lora, tmp_path / 'base', tmp_path / 'adapters')
  said = json.loads((tmp_path / 'adapters' / 'adapter_config.json').read_text())
  saved = load_file(tmp_path / 'adapters' / 'adapter_model.safetensors')
  assert said['target_modules'] == ['q_proj', 'o_proj', 'down_proj'] and (
    said['r'],
    said['lora_alpha'],
  ) == (2, 6.0)
  base, whole = parts.tensors(tmp_path / 'base'), parts.tensors(tmp_path / 'merged')
  adapted = {n for n in base if n.rpartition('.weight')[0].endswith(tuple(said['target_modules']))}
  assert len(saved) == 2 * len(adapted) == 12
  for name in adapted:  # as PEFT adds them
    a, b = (saved[f'base_model.model.{name.removesuffix(".weight")}.lora_{x}.weight'] for x in 'AB')
    np.testing.assert_allclose(
      base[name] + said['lora_alpha'] / said['r'] * b @ a, whole[name], atol=1e-6
    )
  for name in set(base) - adapted - {'model.embed_tokens.weight', 'lm_head.weight'}:
    np.testing.assert_array_equal(base[name], whole[name])
  rows = load_file(tmp_path / 'adapters' / 'rolegen_trained.safetensors')
  np.testing.assert_array_equal(rows['tokens_delta'], np.asarray(ours.params['tokens_delta']))
  assert ('readout_delta' in rows) == (not tied) and 'role_gain' in rows


def test_a_run_keeps_adapters_beside_the_hash_of_its_base(tmp_path):
  parts.write_folder(tmp_path / 'model', SAID, dtype='F32')
  loop = ('loop_stage.steps=1', 'loop_stage.batch=8', 'loop.worlds=2')
  config = apply(Config(), SMALL + [f'reasoner.pretrained={tmp_path / "model"}', *LORA, *loop])
  trained = run_to_reason(config, tmp_path / 'run')
  reasoned = jax.device_get(trained.reasoned.load()['reasoner'])
  base = jax.device_get(trained.run.base())
  for name in ('tokens', 'transformer'):
    moved = jax.tree_util.tree_map_with_path(
      lambda path, a, b: bool((a != b).any()), reasoned[name], base[name]
    )
    for path, changed in jax.tree_util.tree_flatten_with_path(moved)[0]:
      assert changed == any(p.key.endswith('_lora') for p in path), path
  assert np.abs(reasoned['tokens_delta']).max() > 0
  state = next((tmp_path / 'run' / 'reason' / 'checkpoints').glob('*/state'))
  saved = json.loads((state / '_METADATA').read_text())['tree_metadata']
  names = [[key['key'] for key in entry['key_metadata']] for entry in saved.values()]
  assert any('tokens_delta' in n for n in names) and not any(
    n[-1] in ('tokens', 'wq', 'gate') for n in names
  )

  again = run_to_reason(saved_config(tmp_path / 'run'), tmp_path / 'run')
  restored = jax.device_get(again.reasoned.load()['reasoner'])
  jax.tree.map(np.testing.assert_array_equal, reasoned, restored)

  command = [
    sys.executable,
    '-m',
    'rolegen_jax',
    'export',
    f'--workdir={tmp_path / "run"}',
    f'--output={tmp_path / "out"}',
    '--what=adapters',
  ]
  refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (
    refused.returncode == 2
    and 'its stage loop is not complete' in refused.stderr
    and not (tmp_path / 'out').exists()
  )
  models = train_models(again.run, again.inputs)
  reasoner = jax.device_get(models.calibrated.load()['reasoner'])
  subprocess.run(command, cwd=ROOT, check=True)
  np.testing.assert_array_equal(
    load_file(tmp_path / 'out' / 'rolegen_trained.safetensors')['tokens_delta'],
    reasoner['tokens_delta'],
  )
  assert json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())['r'] == 2
  subprocess.run(command[:-1], cwd=ROOT, check=True)
  base, whole = (parts.tensors(tmp_path / folder) for folder in ('model', 'out'))
  assert {
    name.split('.')[-2] for name in base if 'layers' in name and (base[name] != whole[name]).any()
  } == {'q_proj', 'o_proj', 'down_proj'}

  parts.write_folder(tmp_path / 'model', SAID, dtype='F32', seed=1)
  with pytest.raises(ArtifactMismatch, match='its base is'):
    run_to_reason(saved_config(tmp_path / 'run'), tmp_path / 'run').reasoned.load()
