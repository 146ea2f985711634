"""Folders by our own hand, without transformers: values on a mesh, our rows, memory, and every way in which a folder can be wrong."""

import json
import pathlib
import shutil

import hf
import jax
import numpy as np
import pytest
from ours import MESH, Ours, settled
from safetensors.numpy import load_file, save_file

from experiments.benchmarks import pretrained_parts as parts
from experiments.benchmarks import pretrained_plot
from rolegen_jax.config import ConfigError, MeshConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained import load
from rolegen_jax.pretrained.folder import Folder, configure
from rolegen_jax.sharding import make_mesh
from rolegen_jax.text.tokenizers import open_tokenizer
from rolegen_jax.vocab import Vocabulary
from tests import tiny

SAID = parts.QWEN3_06B | dict(
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
  made = tmp_path_factory.mktemp('qwen3')
  parts.write_folder(made, SAID, dtype='F32')
  return made


@pytest.fixture
def copy(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))


@pytest.mark.parametrize('piece', [load.PIECE, 20_000])
def test_weights_lie_in_their_shards_as_the_files_have_them(folder, monkeypatch, piece):
  monkeypatch.setattr(load, 'PIECE', piece)  # small: arrays come in several pieces
  ours, theirs = Ours(folder), parts.tensors(folder)
  attention, mlp = (ours.params['transformer']['blocks'][name] for name in ('attention', 'mlp'))
  for layer in range(3):
    of = lambda name: theirs[f'model.layers.{layer}.{name}.weight']
    np.testing.assert_array_equal(
      attention['wq'][layer], of('self_attn.q_proj').reshape(4, 32, 64).transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(
      attention['wo'][layer], of('self_attn.o_proj').reshape(64, 4, 32).transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(mlp['down'][layer], of('mlp.down_proj').T)
    np.testing.assert_array_equal(attention['q_norm']['scale'][layer], of('self_attn.q_norm'))
  assert {shard.data.shape for shard in attention['wq'].addressable_shards} == {(3, 32, 2, 32)}
  table = np.asarray(ours.params['tokens'])
  np.testing.assert_array_equal(
    table[ours.first : ours.first + ours.pieces], theirs['model.embed_tokens.weight']
  )
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(ours.params))


def test_rows_of_our_tokens_start_near_the_words_that_say_them(folder):
  ours, table = Ours(folder), parts.tensors(folder)['model.embed_tokens.weight']
  tokenizer, rows = open_tokenizer(folder), np.asarray(ours.params['tokens'])[: ours.first]
  words = np.stack([table[tokenizer.encode(says)].mean(axis=0) for _, says in ours.vocab.named])
  size = np.sqrt((words**2).mean(axis=1))
  np.testing.assert_allclose(
    np.sqrt(((rows - words) ** 2).mean(axis=1)) / size, load.NOISE, rtol=0.5
  )
  assert len(np.unique(rows, axis=0)) == len(rows)
  again = Ours(folder, 'mesh.fsdp=4')  # the rows do not depend on the mesh
  np.testing.assert_array_equal(np.asarray(again.params['tokens'])[: ours.first], rows)


def test_settings_come_from_the_folder_and_are_bound_to_it(folder, copy):
  plain, found = (
    tiny.config('reasoner.transformer.dtype=bfloat16'),
    settled(folder, 'reasoner.transformer.dtype=bfloat16'),
  )
  t, r = found.reasoner.transformer, found.reasoner
  assert (t.layers, t.width, t.mlp, t.qk_norm, t.dtype, r.text_pieces) == (
    3,
    64,
    96,
    True,
    'bfloat16',
    400,
  )
  assert (
    found.backbone == plain.backbone and configure(found) == found and configure(plain) == plain
  )
  vocab = Vocabulary.of(found)
  assert vocab.without_text.digest != vocab.digest and vocab.without_text.size < vocab.size
  said = json.loads((copy / 'tokenizer.json').read_text())
  said['added_tokens'].append(said['added_tokens'][0] | dict(id=300, content='<|more|>'))
  (copy / 'tokenizer.json').write_text(json.dumps(said))
  with pytest.raises(
    ConfigError, match=f'tokenizer {Folder(copy).text[1]}, the settings have 400 of {r.tokenizer!r}'
  ):
    Folder(copy).rows(vocab)


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def second(folder):
  return folder / 'model-00002-of-00002.safetensors'


def rewrite(folder, change):
  held = load_file(second(folder))
  change(held)
  save_file(held, second(folder))


def cut(folder):
  second(folder).write_bytes(second(folder).read_bytes()[:-100])


def whole_number(held):
  held['model.norm.weight'] = held['model.norm.weight'].astype(np.int32)


WRONG = {
  'no folder': (lambda f: shutil.rmtree(f), 'no such folder'),
  'no config': (lambda f: (f / 'config.json').unlink(), 'config.json: no such file'),
  'config is no JSON': (lambda f: (f / 'config.json').write_text('{'), 'must be JSON'),
  'another architecture': (
    lambda f: edit(f / 'config.json', architectures=['QwenMoe'], model_type='qwen3_moe'),
    "'qwen3_moe'.*must be one of",
  ),
  'biases': (
    lambda f: edit(f / 'config.json', attention_bias=True),
    'attention_bias=True: must be False',
  ),
  'quantised': (
    lambda f: edit(f / 'config.json', quantization_config=dict(bits=4)),
    'quantization_config',
  ),
  'another activation': (
    lambda f: edit(f / 'config.json', hidden_act='relu'),
    "'relu': must be one of silu",
  ),
  'yarn': (
    lambda f: edit(f / 'config.json', rope_scaling=dict(rope_type='yarn', factor=4.0)),
    'must be default, linear or llama3',
  ),
  'a size is missing': (
    lambda f: (f / 'config.json').write_text(json.dumps(dict(model_type='qwen3'))),
    'num_attention_heads is missing',
  ),
  'a file is missing': (
    lambda f: second(f).unlink(),
    'model-00002-of-00002.safetensors: no such file.*as model.safetensors.index.json names it',
  ),
  'a file is cut': (cut, 'must be a whole safetensors file'),
  'a file is garbage': (
    lambda f: second(f).write_bytes(b'garbage' * 50),
    'must be a whole safetensors file',
  ),
  'index names what is not there': (
    lambda f: rewrite(f, lambda held: held.pop('model.norm.weight')),
    'has no tensor model.norm.weight',
  ),
  'another shape': (
    lambda f: edit(f / 'config.json', intermediate_size=128),
    r'has shape \[96, 64\]; must be \[128, 64\]',
  ),
  'another type': (lambda f: rewrite(f, whole_number), 'model.norm.weight is of type I32'),
  'fewer layers than tensors': (
    lambda f: edit(f / 'config.json', num_hidden_layers=2),
    'tensors that a model of its config.json does not have',
  ),
  'more layers than tensors': (
    lambda f: edit(f / 'config.json', num_hidden_layers=4),
    'no tensor model.layers.3.',
  ),
  'another number of rows': (
    lambda f: edit(f / 'config.json', vocab_size=401),
    'the token table has 400 rows',
  ),
  'no tokenizer': (
    lambda f: (f / 'tokenizer.json').unlink(),
    'no tokenizer.json and no tokenizer.model',
  ),
  'tokenizer is garbage': (
    lambda f: (f / 'tokenizer.json').write_text('{}'),
    'must be a tokenizer',
  ),
  'a larger tokenizer': (
    lambda f: hf.json_tokenizer(f, more=[f'<{i}>' for i in range(200)]),
    'pieces, the weights have 400 rows',
  ),
  'a tokenizer of other marks': (
    lambda f: hf.json_tokenizer(f, marks=()),
    'is eos_token_id in config.json, is no mark there',
  ),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_what_is_wrong_is_said_before_memory_is_spent(copy, monkeypatch, wrong):
  change, message = WRONG[wrong]
  change(copy)
  monkeypatch.setattr(load, '_assemble', pytest.fail)
  with pytest.raises((DataError, ConfigError), match=message):
    found = settled(copy)
    Folder(copy).load(found.reasoner, Vocabulary.of(found), make_mesh(MESH))


def test_memory_beside_the_arrays_is_a_piece_and_not_the_checkpoint(folder, tmp_path):
  """The benchmark's own measurement, at 100 MB."""
  parts.write_folder(
    tmp_path, SAID | dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
  )
  config = parts.settled(tmp_path, MeshConfig(data=1, fsdp=4, tensor=2))
  found = parts.measure_load(parts.streamed(tmp_path, config), tmp_path)
  assert found['within'] and found['arrays_bytes'] > 100e6 and len(found['files_bytes']) == 2
  assert 'within' in parts.line('streamed', found)
  pretrained_plot.draw(
    dict(rounds=dict(streamed=[found], at_once=[found])), tmp_path / 'picture.png'
  )
  assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
  plain = parts.at_once(tmp_path, config)()
  assert json.dumps(found) and sum(array.nbytes for array in plain) > 0.95 * found['arrays_bytes']
