"""Tensors behind prefixes; weights that are missing, twice there, or of another kind."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.pretrained.export import export
from rolegen_jax.pretrained.files import INDEX, SINGLE, TensorFiles
from rolegen_jax.pretrained.folder import Folder
from tests.pretrained.checkpoints import TINY_QWEN3, read_tensors, write_folder
from tests.pretrained.loaded import LoadedReasoner

TABLE, HEAD, NORM = 'model.embed_tokens.weight', 'lm_head.weight', 'model.norm.weight'
Q = 'model.layers.1.self_attn.q_proj.weight'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('qwen3')
  write_folder(folder, TINY_QWEN3 | dict(tie_word_embeddings=False))
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))


def rewrite(folder, tensors: dict[str, np.ndarray]) -> None:
  """The same folder with these tensors, in one file."""
  for path in [*folder.glob('*.safetensors'), folder / INDEX]:
    path.unlink(missing_ok=True)
  save_file(tensors, folder / SINGLE)


def renamed(folder, body: str, head: str = '') -> dict[str, np.ndarray]:
  """The tensors with `body` in place of `model.`, and `head` before the head."""
  return {
    head + name if name == HEAD else body + name.removeprefix('model.'): tensor
    for name, tensor in read_tensors(folder).items()
  }


# In place of `model.`, and before `lm_head.`
PREFIXES = [
  ('', ''),
  ('model.', ''),
  ('language_model.', ''),
  ('language_model.model.', 'language_model.'),
  ('model.language_model.', ''),
  ('model.language_model.', 'model.'),
  ('_orig_mod.model.', '_orig_mod.'),
  ('_orig_mod.', ''),
  ('base_model.model.model.', 'base_model.model.'),
  ('module.model.', 'module.'),
  ('module._orig_mod.model.', 'module._orig_mod.'),
]


@pytest.mark.parametrize('body, head', PREFIXES)
def test_one_prefix_is_taken_off(folder, copy, body, head):
  rewrite(copy, renamed(copy, body, head))
  files, expected = Folder(copy).files, read_tensors(folder)
  assert files.names == set(expected)
  for name, tensor in expected.items():
    box = tuple(slice(0, size) for size in tensor.shape)
    np.testing.assert_array_equal(files.read(name, box), tensor, err_msg=name)


def test_an_export_has_the_published_names(folder, copy, tmp_path):
  rewrite(copy, renamed(copy, '_orig_mod.', '_orig_mod.'))
  config = json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps(config | dict(architectures=['Qwen3Model'])))
  ours = LoadedReasoner(copy)
  export(ours.params, ours.vocab, copy, tmp_path / 'out')
  exported, expected = read_tensors(tmp_path / 'out'), read_tensors(folder)
  size = Folder(copy).tokenizer.size
  assert set(exported) - set(expected) == {
    *functional.flatten({name: ours.params[name] for name in EQUATIONS})
  }
  for name, tensor in expected.items():
    rows = slice(0, size if name in (TABLE, HEAD) else None)  # spare rows may be ours
    np.testing.assert_array_equal(exported[name][rows], tensor[rows], err_msg=name)
  written = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert written['architectures'] == ['Qwen3ForCausalLM']
  assert written['tie_word_embeddings'] is False
  check_that_edits_of_an_export_are_refused(tmp_path / 'out', ours)


def check_that_edits_of_an_export_are_refused(folder, ours):
  path = folder / 'rolegen_equations.safetensors'
  equations = load_file(path)
  save_file(equations | {'intent.role_gain': ONE}, path)
  with pytest.raises(DataError, match='rolegen_equations.safetensors: has .*; must be .*settings'):
    Folder(folder).load(ours.config.reasoner, ours.vocab, ours.mesh)
  path = folder / 'rolegen.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | dict(text_pieces='400')))
  with pytest.raises(DataError, match="rolegen.json: text_pieces='400'; must be"):
    Folder(folder)


def test_buffers_that_follow_from_the_config_are_ignored(copy):
  tensors = read_tensors(copy)
  names = set(tensors)
  for name in ('model.rotary_emb.inv_freq', 'model.layers.0.self_attn.rotary_emb.inv_freq'):
    tensors[name] = np.ones(4, np.float32)
  rewrite(copy, tensors)
  assert Folder(copy).files.names == names


ONE = np.ones((2, 2), np.float32)
# What is there instead, as (tensors that are added, tensors that are removed).
REFUSED = {
  'a second decoder': (
    {'draft.embed_tokens.weight': ONE},
    [],
    'model.embed_tokens.weight beside draft.embed_tokens.weight',
  ),
  'a tensor behind another prefix': (
    {'_orig_mod.model.norm.weight': ONE},
    [],
    '_orig_mod.model.norm.weight is no tensor of the decoder whose token table is model.embed',
  ),
  'a tensor of another part': (
    {'vision_tower.patch.weight': ONE},
    [],
    'model.safetensors: vision_tower.patch.weight is no tensor of the decoder',
  ),
  'a classifier': ({'score.weight': ONE}, [], 'score.weight is no tensor of the decoder'),
  'a bias': (
    {'model.layers.0.self_attn.q_proj.bias': ONE},
    [],
    'model.safetensors: model.layers.0.self_attn.q_proj.bias is one of 1 tensors that a model',
  ),
  'a layer too many': (
    {'model.layers.2.input_layernorm.weight': ONE},
    [],
    'model.layers.2.input_layernorm.weight is one of 1',
  ),
  'one tensor twice': ({'model.lm_head.weight': ONE}, [], 'lm_head.weight is no tensor|one tensor'),
  'adapters': (
    {'model.layers.0.self_attn.q_proj.lora_A.default.weight': ONE},
    [],
    'lora_A.default.weight belongs to an adapter; must be a model with its adapters merged',
  ),
  'GPTQ': (
    {'model.layers.0.self_attn.q_proj.qweight': np.ones((2, 2), np.int32)},
    [],
    'q_proj.qweight belongs to quantized weights',
  ),
  'AWQ': ({'model.layers.0.mlp.up_proj.scales': ONE}, [], 'up_proj.scales belongs to quantized'),
  'FP8': (
    {'model.layers.0.mlp.up_proj.weight_scale_inv': ONE},
    [],
    'weight_scale_inv belongs to quantized weights',
  ),
  'INT8': ({NORM: np.ones(32, np.int8)}, [], 'model.norm.weight is of type I8; must be one of F32'),
  'F64': ({NORM: np.ones(32)}, [], 'model.norm.weight is of type F64'),
  'another shape': ({NORM: ONE[0]}, [], r'model.norm.weight has shape \[2\]; must be \[32\]'),
  'no layer tensor': ({}, [Q], f'no tensor {Q}; must be there'),
  'no norm': ({}, [NORM], f'no tensor {NORM}; must be there'),
  'no token table': ({}, [TABLE], 'no embed_tokens.weight, with or without a prefix.*lm_head'),
  'no head': (
    {},
    [HEAD],
    'no tensor lm_head.weight, and config.json has tie_word_embeddings=false',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_other_tensors_are_refused_by_name(copy, name):
  added, removed, message = REFUSED[name]
  tensors = read_tensors(copy) | added
  rewrite(copy, {name: tensor for name, tensor in tensors.items() if name not in removed})
  with pytest.raises(DataError, match=message) as refused:
    Folder(copy)
  assert '\n' not in str(refused.value)


def test_an_unknown_prefix_is_named(copy):
  rewrite(copy, renamed(copy, 'teacher.model.', 'teacher.'))
  message = "teacher.model.embed_tokens.weight is behind the prefix 'teacher.model.'"
  with pytest.raises(DataError, match=message):
    Folder(copy)


# Files

FIRST, SECOND = (f'model-0000{i}-of-00002.safetensors' for i in (1, 2))


def add_to(folder, file, tensors):
  save_file(load_file(folder / file) | tensors, folder / file)


def edit_index(folder, **weight_map):
  index = json.loads((folder / INDEX).read_text())
  index['weight_map'] |= weight_map
  (folder / INDEX).write_text(json.dumps(index))


def both_sets(folder):
  save_file(read_tensors(folder), folder / SINGLE)


BAD_FILES = {
  'a tensor in two files': (
    lambda folder: add_to(folder, SECOND, {TABLE: ONE}),
    f'{SECOND}: has {TABLE}, which {FIRST} has too',
  ),
  'a tensor that the index does not name': (
    lambda folder: add_to(folder, SECOND, {'model.extra': ONE}),
    f'{SECOND}: has a tensor model.extra, which {INDEX} does not name',
  ),
  'an index that names another file': (
    lambda folder: edit_index(folder, **{TABLE: SECOND}),
    f'{SECOND}: has no tensor {TABLE}, which {INDEX} says is there',
  ),
  'a shard that is missing': (
    lambda folder: (folder / SECOND).rename(folder / f'{SECOND}.incomplete'),
    f'{SECOND}: no such file.*as {INDEX} names it.*download interrupted',
  ),
  'an index that is missing': (lambda folder: (folder / INDEX).unlink(), f'{INDEX}: no such file'),
  'a path in the index': (
    lambda folder: edit_index(folder, **{TABLE: '../other.safetensors'}),
    f'{INDEX}: {TABLE} is in .../other.safetensors.; must be the name of a file',
  ),
  'a number in the index': (lambda folder: edit_index(folder, **{TABLE: 1}), f'{TABLE} is in 1;'),
  'two sets of weights': (both_sets, f'{SINGLE}: weights beside those of {INDEX}'),
  'weights of another model': (
    lambda folder: save_file({'x': ONE}, folder / 'model-00003-of-00003.safetensors'),
    f'model-00003-of-00003.safetensors: weights beside those of {INDEX}',
  ),
  'half an export': (
    lambda folder: save_file({'x': ONE}, folder / 'rolegen_equations.safetensors'),
    'rolegen.json: no such file; must be there beside rolegen_equations.safetensors',
  ),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_files_that_disagree_are_refused(copy, name):
  change, message = BAD_FILES[name]
  change(copy)
  with pytest.raises(DataError, match=message) as refused:
    Folder(copy)
  assert '\n' not in str(refused.value)


def test_the_copy_in_the_layout_of_its_publisher_is_not_read(copy):
  save_file({'tok_embeddings.weight': ONE}, copy / 'consolidated.safetensors')
  assert TABLE in TensorFiles(copy).names


def test_an_export_stands_beside_no_other_weights(copy):
  ours = LoadedReasoner(copy)
  with pytest.raises(ValueError, match='is the folder that is read; must be another one'):
    export(ours.params, ours.vocab, copy, copy)
  target = copy / 'out'
  target.mkdir()
  save_file({'x': ONE}, target / SINGLE)
  with pytest.raises(ValueError, match=f'holds {SINGLE}, which would stand beside what is'):
    export(ours.params, ours.vocab, copy, target)
  assert [path.name for path in target.iterdir()] == [SINGLE]
