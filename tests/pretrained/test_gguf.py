"""GGUF files mean what the folders mean that they were made of; what is none is refused."""

import numpy as np
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained.export import export
from rolegen_jax.pretrained.folder import Folder
from rolegen_jax.text.tokenizers import open_tokenizer, train

gguf = pytest.importorskip('gguf', reason='gguf is not installed: requirements-llm.txt')

from tests.pretrained import gguf_files  # noqa: E402
from tests.pretrained.loaded import LoadedReasoner  # noqa: E402

TEXTS = ['item code a b c', 'days later, ', "It's  1234567\n\n\tdon't 12", 'naïve 你好 🙂', '']


def whole(files, name: str) -> np.ndarray:
  return files.read(name, tuple(slice(0, size) for size in files.shape(name)))


@pytest.fixture(scope='module', params=sorted(gguf_files.CONFIGS))
def pair(request, tmp_path_factory):
  """(a folder, the GGUF file of the same model)."""
  folder = tmp_path_factory.mktemp(request.param)
  path = folder.parent / f'{request.param}.gguf'
  gguf_files.write(folder, request.param, path)
  return folder, path


def test_settings_and_tensors_are_those_of_the_folder(pair):
  folder, one_file = (Folder(path) for path in pair)
  assert one_file.transformer == folder.transformer
  assert one_file.files.names == folder.files.names
  for name in folder.files.names:
    expected = whole(folder.files, name)
    np.testing.assert_allclose(whole(one_file.files, name), expected, atol=1e-6)
    if expected.ndim == 2:
      box = slice(3, 41), slice(7, 30)
      np.testing.assert_array_equal(one_file.files.read(name, box), expected[box])


def test_it_loads_and_is_exported(pair, tmp_path):
  folder, path = pair
  ours = LoadedReasoner(path)
  ids = np.random.default_rng(0).integers(3, 250, (2, 9)).astype(np.int32)
  text = slice(0, Folder(path).tokenizer.size)  # our tokens take rows that follow

  def logits(reasoner):
    return reasoner.logits(ids, np.ones_like(ids))[..., text]

  expected = logits(LoadedReasoner(folder))
  assert np.ptp(expected, axis=-1).min() > 1
  np.testing.assert_allclose(logits(ours), expected, atol=1e-4)
  export(ours.params, ours.vocab, path, tmp_path / 'out')
  np.testing.assert_allclose(logits(LoadedReasoner(tmp_path / 'out')), expected, atol=1e-4)


@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_1', 'BF16', 'F16'])
def test_quantized_tensors_are_dequantized_box_by_box(kind, tmp_path):
  gguf_files.write(tmp_path / 'llama', 'llama', tmp_path / 'llama.gguf', kind)
  folder, files = Folder(tmp_path / 'llama').files, Folder(tmp_path / 'llama.gguf').files
  for name in ('model.embed_tokens.weight', 'model.layers.1.self_attn.k_proj.weight'):
    exact, read = whole(folder, name), whole(files, name)
    assert 0 < np.abs(read - exact).max() < (0.05 if kind == 'Q4_1' else 0.01)
    box = slice(5, 28), slice(33, 64)
    np.testing.assert_array_equal(files.read(name, box), read[box])
    assert files.dtype(name) == (kind if kind in ('BF16', 'F16') else 'F32')


def test_byte_pairs_are_those_of_the_folder(pair):
  folder, path = pair
  expected, tokenizer = open_tokenizer(folder), Folder(path).tokenizer
  assert tokenizer.size == expected.size and tokenizer.is_delimiter(0)
  for text in TEXTS:
    assert tokenizer.encode(text) == expected.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Rule -> how it cuts a text before pieces are merged.
CUTS = {
  'llama-bpe': ['It', "'s", ' red', '123', '456', '7', '!!\n'],
  'qwen2': ['It', "'s", ' red', '1', '2', '3', '4', '5', '6', '7', '!!\n'],
  'smollm': ['It', "'s", ' red', '1', '2', '3', '4', '5', '6', '7', '!!', '\n'],
}


@pytest.mark.parametrize('rule', CUTS)
def test_rules_that_cut_a_text_into_words(rule, tmp_path):
  gguf_files.write(tmp_path / 'f', 'qwen3', tmp_path / 'f.gguf', **{'tokenizer.ggml.pre': rule})
  inner = Folder(tmp_path / 'f.gguf').tokenizer._tokenizer
  cut = inner.pre_tokenizer.pre_tokenize_str("It's red1234567!!\n")
  assert [word.replace('Ġ', ' ').replace('Ċ', '\n') for word, _ in cut] == CUTS[rule]


def test_scored_pieces_are_those_of_sentencepiece(tmp_path):
  expected = train([f'red wool shirt {n}' for n in range(300)] * 3, 350)
  fields = gguf_files.scored_pieces(expected)
  gguf_files.write(tmp_path / 'f', 'gemma3', tmp_path / 'f.gguf', **fields)
  tokenizer = Folder(tmp_path / 'f.gguf').tokenizer
  # GGUF has no rules that rewrite characters; these texts need none.
  for text in ('item code a b c', 'naïve 你好 🙂', 'red wool', '  shirt 12 ', ''):
    assert tokenizer.encode(text) == expected.encode(text)


REFUSED = {
  'general.architecture': ('mamba', "general.architecture='mamba'; must be one of llama, qwen3"),
  'tokenizer.ggml.pre': ('tekken', 'tokenizer.ggml.pre=tekken; must be one of gpt-2, llama-bpe'),
  'tokenizer.ggml.model': ('bert', 'tokenizer.ggml.model=bert; must be gpt2 or llama'),
  'tokenizer.ggml.tokens': ([f'p{n}' for n in range(500)], 'must be a list of 500 types'),
  'tokenizer.ggml.merges': (None, 'no tokenizer.ggml.merges; must be there'),
  'tokenizer.ggml.token_type': ([1, 1], 'token_type; must be a list of'),
  'qwen3.block_count': ('two', 'qwen3.block_count=two; must be of type int'),
  'qwen3.embedding_length': (32, 'has shape [400, 64]; must be [400, 32]'),
  'qwen3.rope.scaling.type': ('yarn', "scaling.type='yarn'; must be none or linear"),
  'qwen3.rope.scale_linear': (4.0, 'qwen3.rope.scale_linear=4.0 is not supported; must be absent'),
  'qwen3.attention.causal': (False, 'qwen3.attention.causal=False is not supported'),
  'qwen3.rope.dimension_count': (16, 'qwen3.rope.dimension_count=16; must be 32'),
  'qwen3.attention.sliding_window': (4, 'qwen3.attention.sliding_window=4 is not supported'),
  'qwen3.vocab_size': (99, 'qwen3.vocab_size=99; must be 400'),
  'qwen3.attention.head_count': (0, 'qwen3.attention.head_count=0; must be 1 or more'),
  'split.count': (3, 'is one of 3 parts of a model; must be one file'),
}


@pytest.mark.parametrize('field', REFUSED)
def test_what_is_not_understood_is_refused_by_name(field, tmp_path):
  value, message = REFUSED[field]
  path = tmp_path / 'model.gguf'
  gguf_files.write(tmp_path / 'folder', 'qwen3', path, **{field: value})
  with pytest.raises((DataError, ConfigError)) as refused:
    Folder(path)
  assert str(path) in str(refused.value) and message in str(refused.value)


def test_a_factor_without_a_type_is_linear(tmp_path):
  fields = {'gemma3.rope.scaling.factor': 8.0, 'gemma3.final_logit_softcapping': 30.0}
  fields |= {'gemma3.rope.freq_base_swa': 20_000.0}
  gguf_files.write(tmp_path / 'folder', 'gemma3', tmp_path / 'model.gguf', **fields)
  config = Folder(tmp_path / 'model.gguf').transformer
  assert (config.rope_scaling.kind, config.rope_scaling.factor) == ('linear', 8.0)
  assert (config.logit_softcap, config.local_rope_theta) == (30.0, 20_000.0)


@pytest.mark.parametrize('value', [None, 'none'])
def test_a_tokenizer_that_does_not_say_how_it_cuts_is_refused(value, tmp_path):
  path = tmp_path / 'model.gguf'
  gguf_files.write(tmp_path / 'folder', 'qwen3', path, **{'tokenizer.ggml.pre': value})
  with pytest.raises(ConfigError, match='tokenizer.ggml.pre=(None|none); must be one of gpt-2'):
    Folder(path)


def test_a_tokenizer_of_more_pieces_than_rows_is_refused(tmp_path):
  path = tmp_path / 'model.gguf'
  gguf_files.write(tmp_path / 'folder', 'qwen3', path)
  known = gguf_files.byte_pairs(tmp_path / 'folder/tokenizer.json')['tokenizer.ggml.tokens']
  pieces = known + [f'p{n}' for n in range(500 - len(known))]
  fields = {'tokenizer.ggml.tokens': pieces, 'tokenizer.ggml.token_type': [1] * 500}
  gguf_files.write(tmp_path / 'again', 'qwen3', path, **fields)
  with pytest.raises(DataError, match='500 pieces, token_embd.weight has 400 rows'):
    Folder(path)


def test_only_the_blocks_of_a_box_are_dequantized(tmp_path, monkeypatch):
  gguf_files.write(tmp_path / 'llama', 'llama', tmp_path / 'llama.gguf', 'Q8_0')
  files, elements = Folder(tmp_path / 'llama.gguf').files, []

  def counted(data, kind):
    values = dequantize(data, kind)
    elements.append(values.size)
    return values

  dequantize = gguf.dequantize
  monkeypatch.setattr(gguf, 'dequantize', counted)
  files.read('model.embed_tokens.weight', (slice(8, 12), slice(33, 60)))
  assert elements == [4 * 32]


def test_vectors_in_bf16(tmp_path, monkeypatch):
  vectors = gguf_files.converted

  def in_bf16(config, name, array, quantized):
    name, data, shape, kind = vectors(config, name, array, quantized)
    if data.ndim == 1:
      kind = gguf.GGMLQuantizationType.BF16
      data = gguf.quantize(data, kind)
    return name, data, shape, kind

  monkeypatch.setattr(gguf_files, 'converted', in_bf16)
  gguf_files.write(tmp_path / 'folder', 'qwen3', tmp_path / 'model.gguf')
  norm = whole(Folder(tmp_path / 'model.gguf').files, 'model.norm.weight')
  exact = whole(Folder(tmp_path / 'folder').files, 'model.norm.weight')
  np.testing.assert_allclose(norm, exact, rtol=1e-2)


def test_rotary_factors_of_another_model_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(gguf_files, 'slower', lambda config: np.linspace(1, 9, 8, dtype=np.float32))
  gguf_files.write(tmp_path / 'folder', 'llama', tmp_path / 'model.gguf')
  with pytest.raises(ConfigError, match='rope_freqs.weight: must be the factors of Llama 3.1'):
    Folder(tmp_path / 'model.gguf')


def test_damaged_files_and_tensors_of_no_decoder(pair, tmp_path):
  content = pair[1].read_bytes()
  damaged = tmp_path / 'damaged.gguf'
  for part in (content[:200], content[: len(content) // 2], b'', b'GGUF', b'no model at all'):
    damaged.write_bytes(part)
    with pytest.raises(DataError, match='damaged.gguf: .*must be a whole GGUF file'):
      Folder(damaged)
  damaged.write_bytes(content.replace(b'blk.1.ffn_up', b'blk.1.ffn_xx'))
  with pytest.raises(DataError, match='tensor blk.1.ffn_xx.weight; must be one of a'):
    Folder(damaged)


def test_a_folder_that_holds_one_and_no_other_weights(pair, tmp_path):
  path = tmp_path / 'a.gguf'
  path.write_bytes(pair[1].read_bytes())
  assert Folder(tmp_path).path == path
  (tmp_path / 'b.gguf').touch()
  with pytest.raises(DataError, match=r'holds 2 GGUF files; must be one of them, e.g. .*a.gguf'):
    Folder(tmp_path)


def test_without_the_package(pair, tmp_path, monkeypatch):
  path = tmp_path / 'another.gguf'
  path.write_bytes(pair[1].read_bytes())
  monkeypatch.setitem(__import__('sys').modules, 'gguf', None)
  with pytest.raises(ConfigError, match='needs the package gguf: pip install .*requirements-llm'):
    Folder(path)
