"""Folders written without transformers: values on a mesh, rows of our tokens, and bad folders."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained import load
from rolegen_jax.pretrained.files import TensorFiles
from rolegen_jax.pretrained.folder import Folder, configure, sized
from rolegen_jax.sharding import make_mesh
from rolegen_jax.text.tokenizers import open_tokenizer
from rolegen_jax.vocab import Vocabulary
from tests import tiny
from tests.pretrained.checkpoints import QWEN3_06B, read_tensors, write_folder, write_tokenizer
from tests.pretrained.loaded import MESH, LoadedReasoner, configured

HF_CONFIG = QWEN3_06B | dict(
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  vocab_size=400,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('qwen3')
  write_folder(folder, HF_CONFIG)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))


@pytest.mark.parametrize('piece', [load.PIECE, 20_000])
def test_weights_are_in_their_shards_as_the_files_have_them(folder, monkeypatch, piece):
  monkeypatch.setattr(load, 'PIECE', piece)  # small: arrays come in several pieces
  ours, theirs = LoadedReasoner(folder), read_tensors(folder)
  attention, mlp = (ours.params['transformer']['blocks'][name] for name in ('attention', 'mlp'))
  for layer in range(3):
    tensors = {
      name.removeprefix(f'model.layers.{layer}.').removesuffix('.weight'): array
      for name, array in theirs.items()
    }
    wq = tensors['self_attn.q_proj'].reshape(4, 32, 64).transpose(2, 0, 1)
    wo = tensors['self_attn.o_proj'].reshape(64, 4, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(attention['wq'][layer], wq)
    np.testing.assert_array_equal(attention['wo'][layer], wo)
    np.testing.assert_array_equal(mlp['down'][layer], tensors['mlp.down_proj'].T)
    np.testing.assert_array_equal(attention['q_norm']['scale'][layer], tensors['self_attn.q_norm'])
  assert {shard.data.shape for shard in attention['wq'].addressable_shards} == {(3, 32, 2, 32)}
  text_rows = np.asarray(ours.params['tokens'])[ours.first : ours.first + ours.pieces]
  np.testing.assert_array_equal(text_rows, theirs['model.embed_tokens.weight'])
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(ours.params))


def test_the_checkpoint_is_read_once_and_a_piece_at_a_time(folder, monkeypatch):
  monkeypatch.setattr(load, 'PIECE', 20_000)
  read, sizes = TensorFiles.read, []

  def recording_read(files, name, box):
    array = read(files, name, box)
    sizes.append(array.nbytes)
    return array

  monkeypatch.setattr(TensorFiles, 'read', recording_read)
  LoadedReasoner(folder)
  total = sum(array.nbytes for array in read_tensors(folder).values())
  # Rows of the text tokens that describe ours are read beside it.
  assert max(sizes) <= 20_000 and total < sum(sizes) < 1.2 * total


def test_rows_of_our_tokens_start_near_the_words_that_describe_them(folder):
  ours, table = LoadedReasoner(folder), read_tensors(folder)['model.embed_tokens.weight']
  tokenizer, rows = open_tokenizer(folder), np.asarray(ours.params['tokens'])[: ours.first]
  means = np.stack([table[tokenizer.encode(words)].mean(axis=0) for _, words in ours.vocab.named])
  size = np.sqrt((means**2).mean(axis=1))
  noise = np.sqrt(((rows - means) ** 2).mean(axis=1))
  np.testing.assert_allclose(noise / size, load.NOISE, rtol=0.5)
  assert len(np.unique(rows, axis=0)) == len(rows)
  again = LoadedReasoner(folder, 'mesh.fsdp=4')  # the rows do not depend on the mesh
  np.testing.assert_array_equal(np.asarray(again.params['tokens'])[: ours.first], rows)


def test_settings_come_from_the_folder(folder):
  dtype = 'reasoner.transformer.dtype=bfloat16'
  plain, config = tiny.config(dtype), configured(folder, dtype)
  transformer = config.reasoner.transformer
  assert (transformer.layers, transformer.width, transformer.mlp) == (3, 64, 96)
  assert transformer.qk_norm and transformer.dtype == 'bfloat16'
  assert config.reasoner.text_pieces == 400 and config.backbone == plain.backbone
  assert configure(config) == config and configure(plain) == plain
  vocab = Vocabulary.of(config)
  assert vocab.without_text.digest != vocab.digest and vocab.without_text.size < vocab.size


def test_settings_are_bound_to_the_tokenizer_of_the_folder(folder, copy):
  config = configured(folder)
  content = json.loads((copy / 'tokenizer.json').read_text())
  more = dict(id=open_tokenizer(copy).size, content='<|more|>')
  content['added_tokens'].append(content['added_tokens'][0] | more)
  (copy / 'tokenizer.json').write_text(json.dumps(content))
  changed, expected = Folder(copy).text[1], config.reasoner.tokenizer
  with pytest.raises(
    ConfigError, match=f'tokenizer {changed}, the settings have 400 of {expected!r}'
  ):
    Folder(copy).rows(Vocabulary.of(config))


# Bad folders


def edit_config(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(**changes):
  return functools.partial(edit_config, **changes)


def write(name, text):
  return lambda folder: (folder / name).write_text(text)


def remove(name):
  return lambda folder: (folder / name).unlink()


SECOND = 'model-00002-of-00002.safetensors'


def truncate(folder):
  (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-100])


def remove_tensor(folder):
  tensors = load_file(folder / SECOND)
  del tensors['model.norm.weight']
  save_file(tensors, folder / SECOND)


def make_integer(folder):
  tensors = load_file(folder / SECOND)
  tensors['model.norm.weight'] = tensors['model.norm.weight'].astype(np.int32)
  save_file(tensors, folder / SECOND)


BAD_FOLDERS = {
  'no folder': (shutil.rmtree, 'no such folder'),
  'no config': (remove('config.json'), 'config.json: no such file'),
  'config is not JSON': (write('config.json', '{'), 'must be JSON'),
  'another architecture': (
    edit(architectures=['QwenMoe'], model_type='qwen3_moe'),
    "'qwen3_moe'.*must be one of",
  ),
  'biases': (edit(attention_bias=True), 'attention_bias=True: must be False'),
  'quantized': (edit(quantization_config=dict(bits=4)), 'quantization_config'),
  'another activation': (edit(hidden_act='relu'), "'relu': must be one of silu"),
  'yarn': (
    edit(rope_scaling=dict(rope_type='yarn', factor=4.0)),
    'must be default, linear or llama3',
  ),
  'a size is missing': (
    write('config.json', json.dumps(dict(model_type='qwen3'))),
    'hidden_size is missing',
  ),
  'a file is missing': (
    remove(SECOND),
    f'{SECOND}: no such file.*as model.safetensors.index.json names it',
  ),
  'a file is truncated': (truncate, 'must be a whole safetensors file'),
  'a file is garbage': (write(SECOND, 'garbage' * 50), 'must be a whole safetensors file'),
  'the index names a missing tensor': (remove_tensor, 'has no tensor model.norm.weight'),
  'another shape': (
    edit(intermediate_size=128),
    r'has shape \[96, 64\]; must be \[128, 64\]',
  ),
  'another type': (make_integer, 'model.norm.weight is of type I32'),
  'fewer layers than tensors': (
    edit(num_hidden_layers=2),
    'tensors that a model of its config.json does not have',
  ),
  'more layers than tensors': (edit(num_hidden_layers=4), 'no tensor model.layers.3.'),
  'another number of rows': (edit(vocab_size=401), 'the token table has 400 rows'),
  'no tokenizer': (remove('tokenizer.json'), 'no tokenizer.json and no tokenizer.model'),
  'the tokenizer is garbage': (write('tokenizer.json', '{}'), 'must be a tokenizer'),
  'a larger tokenizer': (
    functools.partial(write_tokenizer, names=[f'<{i}>' for i in range(200)]),
    'pieces, the weights have 400 rows',
  ),
  'a tokenizer of other delimiters': (
    functools.partial(write_tokenizer, delimiters=()),
    'is eos_token_id in config.json, is not a delimiter there',
  ),
}


@pytest.mark.parametrize('name', BAD_FOLDERS)
def test_a_bad_folder_is_refused_before_memory_is_spent(copy, monkeypatch, name):
  change, message = BAD_FOLDERS[name]
  change(copy)
  monkeypatch.setattr(load, '_assemble', pytest.fail)
  with pytest.raises((DataError, ConfigError), match=message):
    config = configured(copy)
    Folder(copy).load(config.reasoner, Vocabulary.of(config), make_mesh(MESH))


@pytest.mark.parametrize('as_file', [False, True])
def test_the_sizes_of_a_config_json_alone(tmp_path, as_file):
  """As the whole folder gives them, but for the tokenizer."""
  (tmp_path / 'config.json').write_text(json.dumps(HF_CONFIG))
  config = tiny.config(f'reasoner.pretrained={tmp_path / "config.json" if as_file else tmp_path}')
  reasoner = sized(config).reasoner
  assert reasoner.transformer.layers == 3 and reasoner.transformer.qk_norm
  assert reasoner.transformer.dtype == config.reasoner.transformer.dtype
  assert (reasoner.text_pieces, reasoner.tokenizer) == (400, '')
  (tmp_path / 'config.json').write_text(json.dumps(HF_CONFIG | dict(vocab_size='400')))
  with pytest.raises(DataError, match="config.json: vocab_size='400'; must be the rows of"):
    sized(config)
  (tmp_path / 'config.json').write_text(json.dumps(HF_CONFIG | dict(model_type='bert')))
  with pytest.raises(ConfigError, match='config.json: model_type'):
    sized(config)


def test_the_sizes_of_no_model_say_what_is_missing(tmp_path):
  with pytest.raises(DataError, match='no such package is installed'):
    sized(tiny.config('reasoner.pretrained=package:no_such'))
  with pytest.raises(DataError, match='hf download Qwen/Qwen3-0.6B'):
    sized(tiny.config('reasoner.pretrained=Qwen/Qwen3-0.6B'))
