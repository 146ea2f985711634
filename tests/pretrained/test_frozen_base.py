"""A frozen pretrained base: adapters merged on export, exported alone, and trained by a run."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rolegen_jax.pipeline.artifacts import saved_config
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.pretrained.export import export, export_adapters
from rolegen_jax.text.tokenizers import open_tokenizer
from rolegen_jax.training.checkpoint import ArtifactMismatch
from tests.pretrained import runs
from tests.pretrained.checkpoints import TINY_QWEN3, read_tensors, write_folder
from tests.pretrained.loaded import LoadedReasoner
from tests.runs import run_to_reason

ROOT = pathlib.Path(__file__).parents[2]
LORA = (
  'reasoner.train=lora',
  'reasoner.lora.rank=2',
  'reasoner.lora.alpha=6.0',
  "reasoner.lora.targets=('wq','wo','down')",
)
TARGET_MODULES = ('q_proj', 'o_proj', 'down_proj')
TABLES = {'model.embed_tokens.weight', 'lm_head.weight'}


def is_added(path) -> bool:
  """Whether a parameter is an adapter or the rows added to a table."""
  return any(entry.key.endswith(('_lora', '_delta')) for entry in path)


def move_added_params(params, rng):
  def move(path, leaf):
    noise = 0.1 * rng.normal(size=leaf.shape).astype(np.float32) if is_added(path) else 0
    return leaf + noise

  return jax.tree_util.tree_map_with_path(move, params)


@pytest.mark.parametrize('tied', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_adapters_are_merged_on_export_or_exported_alone(tmp_path, tied):
  write_folder(tmp_path / 'base', TINY_QWEN3 | dict(tie_word_embeddings=tied))
  ours, rng = LoadedReasoner(tmp_path / 'base', *LORA), np.random.default_rng(0)
  # From here on, rows of the base may come back as our tokens.
  spare = ours.first + open_tokenizer(tmp_path / 'base').size
  tokens = rng.integers(0, spare, (8, 6))
  before = ours.all_logits(tokens)
  unadapted = LoadedReasoner(tmp_path / 'base', 'reasoner.train=all')
  np.testing.assert_array_equal(before, unadapted.all_logits(tokens))

  ours.params = move_added_params(ours.params, rng)
  lora = ours.config.reasoner.lora
  export(ours.params, ours.vocab, tmp_path / 'base', tmp_path / 'merged', lora)
  merged = LoadedReasoner(tmp_path / 'merged', 'reasoner.train=all').all_logits(tokens)
  adapted = ours.all_logits(tokens)
  np.testing.assert_allclose(adapted[..., :spare], merged[..., :spare], atol=1e-4)
  assert np.abs(adapted - before).max() > 0.1

  export_adapters(ours.params, lora, tmp_path / 'base', tmp_path / 'adapters')
  assert_adapters_give_the_merged_weights(tmp_path)
  rows = load_file(tmp_path / 'adapters' / 'rolegen_trained.safetensors')
  np.testing.assert_array_equal(rows['tokens_delta'], np.asarray(ours.params['tokens_delta']))
  assert ('readout_delta' in rows) == (not tied) and 'intent.role_gain' in rows


def assert_adapters_give_the_merged_weights(folder):
  """The base with the exported adapters, added as PEFT adds them, is the merged export."""
  peft_config = json.loads((folder / 'adapters' / 'adapter_config.json').read_text())
  adapters = load_file(folder / 'adapters' / 'adapter_model.safetensors')
  assert peft_config['target_modules'] == list(TARGET_MODULES)
  assert (peft_config['r'], peft_config['lora_alpha']) == (2, 6.0)
  base, merged = read_tensors(folder / 'base'), read_tensors(folder / 'merged')
  adapted = {name for name in base if name.removesuffix('.weight').endswith(TARGET_MODULES)}
  assert len(adapters) == 2 * len(adapted) == 12
  for name in adapted:
    prefix = f'base_model.model.{name.removesuffix(".weight")}'
    a, b = adapters[f'{prefix}.lora_A.weight'], adapters[f'{prefix}.lora_B.weight']
    scale = peft_config['lora_alpha'] / peft_config['r']
    np.testing.assert_allclose(base[name] + scale * b @ a, merged[name], atol=1e-6)
  for name in set(base) - adapted - TABLES:
    np.testing.assert_array_equal(base[name], merged[name])


@pytest.mark.slow
def test_a_run_keeps_adapters_beside_the_hash_of_its_base(tmp_path):
  write_folder(tmp_path / 'model', TINY_QWEN3)
  loop = ('loop_stage.steps=1', 'loop_stage.batch=8', 'loop.worlds=2')
  trained = run_to_reason(runs.config(tmp_path / 'model', *LORA, *loop), tmp_path / 'run')
  reasoned = jax.device_get(trained.reasoned.load()['reasoner'])
  base = jax.device_get(trained.run.base())
  for name in ('tokens', 'transformer'):
    changed = jax.tree_util.tree_map_with_path(
      lambda path, trained, initial: bool((trained != initial).any()), reasoned[name], base[name]
    )
    for path, has_changed in jax.tree_util.tree_flatten_with_path(changed)[0]:
      assert has_changed == is_added(path), path
  assert np.abs(reasoned['tokens_delta']).max() > 0
  assert_checkpoint_has_no_base(tmp_path / 'run')

  again = run_to_reason(saved_config(tmp_path / 'run'), tmp_path / 'run')
  restored = jax.device_get(again.reasoned.load()['reasoner'])
  jax.tree.map(np.testing.assert_array_equal, reasoned, restored)
  assert_exports(tmp_path, again)

  write_folder(tmp_path / 'model', TINY_QWEN3, seed=1)
  with pytest.raises(ArtifactMismatch, match='its base is'):
    run_to_reason(saved_config(tmp_path / 'run'), tmp_path / 'run').reasoned.load()


def assert_checkpoint_has_no_base(workdir):
  state = next((workdir / 'reason' / 'checkpoints').glob('*/state'))
  metadata = json.loads((state / '_METADATA').read_text())['tree_metadata']
  names = [[key['key'] for key in entry['key_metadata']] for entry in metadata.values()]
  assert any('tokens_delta' in path for path in names)
  assert not any(path[-1] in ('tokens', 'wq', 'gate') for path in names)


def assert_exports(folder, reasoned):
  """`rolegen export` refuses a run that is not complete, then exports adapters or the whole."""
  command = [sys.executable, '-m', 'rolegen_jax', 'export']
  command += [f'--workdir={folder / "run"}', f'--output={folder / "out"}']
  only_adapters = [*command, '--what=adapters']
  refused = subprocess.run(only_adapters, cwd=ROOT, capture_output=True, text=True)
  assert refused.returncode == 2 and 'is not complete' in refused.stderr
  assert not (folder / 'out').exists()

  models = train_models(reasoned.run, reasoned.inputs)
  trained = jax.device_get(models.calibrated.load()['reasoner'])
  subprocess.run(only_adapters, cwd=ROOT, check=True)
  exported = load_file(folder / 'out' / 'rolegen_trained.safetensors')
  np.testing.assert_array_equal(exported['tokens_delta'], trained['tokens_delta'])
  peft_config = json.loads((folder / 'out' / 'adapter_config.json').read_text())
  assert peft_config['r'] == 2

  subprocess.run([*command, f'--output={folder / "whole"}'], cwd=ROOT, check=True)
  base, whole = read_tensors(folder / 'model'), read_tensors(folder / 'whole')
  layer_tensors = [name for name in base if 'layers' in name]
  changed = {name for name in layer_tensors if (base[name] != whole[name]).any()}
  assert {name.split('.')[-2] for name in changed} == set(TARGET_MODULES)
