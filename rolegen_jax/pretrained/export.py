"""A reasoner back into the format that it came in.

`export` writes a whole model: config.json, sharded safetensors with an index, and the tokenizer
with our tokens; adapters and trained rows are added to the weights. `export_adapters` writes what
was added to the base, and nothing of the base, as PEFT names it.

Tensors keep the type of the source folder, so what was not trained comes back bit for bit, and what
was trained is rounded to it. The host holds one file at a time. Our tokens get the rows after the
tokenizer's last id, which may be spare rows of the source.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rolegen_jax.config import ConfigError, LoraConfig
from rolegen_jax.data.files import renamed, write_json
from rolegen_jax.fields import as_given
from rolegen_jax.models import functional
from rolegen_jax.models import lora as lora_lib
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.pretrained import families
from rolegen_jax.pretrained.files import EQUATIONS_FILE, INDEX
from rolegen_jax.pretrained.folder import OURS, Folder
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.runtime.compile import jit
from rolegen_jax.text.tokenizers import TextVocabulary, save
from rolegen_jax.vocab import Vocabulary

FILE_BYTES = 2 << 30  # of the tensors in a file, at most, unless one tensor alone is larger
NUMPY_DTYPES = {'F32': np.float32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16}
ADAPTERS, TRAINED = 'adapter_model.safetensors', 'rolegen_trained.safetensors'
# Files of the source that are copied where they exist.
COPIED = (
  'generation_config.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
)


class Entry(NamedTuple):
  """A tensor to write."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  # Returns the array, fp32, on every host; all processes must call it.
  read: Callable[[], np.ndarray]


# The whole model


def export(
  params: dict,
  vocab: Vocabulary,
  source: str | os.PathLike,
  folder: str | os.PathLike,
  lora: LoraConfig = LoraConfig(),
  file_bytes: int = FILE_BYTES,
) -> None:
  """Write the reasoner to `folder`, in the format of the folder that it was loaded from.

  Tensors get their published names, whatever they are called in `source`, and config.json says
  whether the tables are tied. A text row whose id is that of one of our tokens is written as our
  token. Raises DataError, and ConfigError where `folder` holds other weights.

  Args:
    params: the reasoner's parameters.
    vocab: the vocabulary that they were trained with.
    source: the folder that they were loaded from.
    folder: the folder to write.
    lora: of the adapters, if `params` has any.
    file_bytes: of the tensors in a file, at most.
  """
  base, folder = Folder(source), storage.path(folder)
  base.rows(vocab)  # refuses another vocabulary
  text = TextVocabulary(vocab, base.tokenizer)
  rows = max(vocab.text_pieces, 1 + int(max(text.ids)))
  distributed.once(lambda: folder.mkdir(parents=True, exist_ok=True))
  entries = [
    *_table_entries(params, base, text, rows),
    *_layer_entries(params, base, lora),
  ]
  files = _split_into_files(entries, file_bytes)
  _refuse_other_weights(base, folder, [*files, EQUATIONS_FILE])
  _write_weights(files, folder)
  equations = _equations(params)
  distributed.once(lambda: _write_other_files(base, text, vocab, rows, equations, folder))


def _table_entries(params: dict, base: Folder, text: TextVocabulary, rows: int) -> list[Entry]:
  """Return the tables of `rows` token rows, and the final norm."""
  width = base.transformer.width
  entries = [
    _entry(base, theirs, (rows, width), functools.partial(_read_table, params, ours, text, rows))
    for ours, theirs in families.tables(base.transformer).items()
  ]
  final_norm = params['transformer']['norm']['scale']
  read_norm = functools.partial(_gather, final_norm)
  return entries + [_entry(base, families.FINAL_NORM.name, (width,), read_norm)]


def _layer_entries(params: dict, base: Folder, lora: LoraConfig) -> list[Entry]:
  """Return the tensors of all layers, adapters merged."""
  blocks = params['transformer']['blocks']
  entries = []
  for layer in range(base.transformer.layers):
    for path, tensor in families.layer_tensors(base.transformer).items():
      leaf = functools.reduce(lambda tree, name: tree[name], path, blocks)
      shape = tuple(math.prod(leaf.shape[1 + axis] for axis in group) for group in tensor.groups)
      read = functools.partial(
        _read_layer, leaf, _adapter(blocks, path), layer, lora, tensor.groups, shape
      )
      entries.append(_entry(base, families.layer_name(layer, tensor), shape, read))
  return entries


def _entry(
  base: Folder, name: str, shape: tuple[int, ...], read: Callable[[], np.ndarray]
) -> Entry:
  return Entry(name, shape, np.dtype(NUMPY_DTYPES[base.files.dtype(name)]), read)


def _read_table(params: dict, name: str, text: TextVocabulary, rows: int) -> np.ndarray:
  """Return one of our tables as rows by id, fp32 [rows, width]."""
  first_text, text_size = text.vocab.blocks['text']
  ours = _gather(params[name])
  if f'{name}_delta' in params:
    own = ours[:first_text] + _gather(params[f'{name}_delta'])
    ours = np.concatenate([own, ours[first_text:]])
  theirs = np.zeros((rows, ours.shape[1]), np.float32)
  theirs[:text_size] = ours[first_text : first_text + text_size]
  theirs[text.ids] = ours[: len(text.ids)]
  return theirs


def _read_layer(
  leaf: jax.Array,
  adapter: dict | None,
  layer: int,
  lora: LoraConfig,
  groups: families.Groups,
  shape: tuple[int, ...],
) -> np.ndarray:
  """Return the weight of a layer with what its adapter adds, in the layout of the files."""
  weight = _gather(leaf, layer)
  if adapter is not None:
    a, b = _gather(adapter['a'], layer), _gather(adapter['b'], layer)
    weight = weight + np.float32(lora_lib.scale(lora)) * np.tensordot(a, b, 1)
  order = [axis for group in groups for axis in group]
  return weight.transpose(order).reshape(shape)


def _write_weights(files: dict[str, list[Entry]], folder: pathlib.Path) -> None:
  """Write the safetensors and their index."""
  weight_map: dict[str, str] = {}
  total_size = 0
  for name, file_entries in files.items():
    arrays = {
      entry.name: np.ascontiguousarray(entry.read().astype(entry.dtype)) for entry in file_entries
    }
    distributed.once(functools.partial(_save_tensors, arrays, folder / name))
    weight_map |= dict.fromkeys(arrays, name)
    total_size += sum(array.nbytes for array in arrays.values())
  index = dict(metadata=dict(total_size=total_size), weight_map=dict(sorted(weight_map.items())))
  distributed.once(lambda: write_json(index, folder / INDEX))


def _split_into_files(entries: list[Entry], file_bytes: int) -> dict[str, list[Entry]]:
  """Return the name of each file -> its entries, in order."""
  files: list[list[Entry]] = [[]]
  used = 0
  for entry in entries:
    size = math.prod(entry.shape) * entry.dtype.itemsize
    if files[-1] and used + size > file_bytes:
      files.append([])
      used = 0
    files[-1].append(entry)
    used += size
  return {
    f'model-{number + 1:05}-of-{len(files):05}.safetensors': file_entries
    for number, file_entries in enumerate(files)
  }


def _refuse_other_weights(base: Folder, folder: pathlib.Path, written: list[str]) -> None:
  """Raise ConfigError where weights would be overwritten, or stand beside those of an export."""
  source = base.path.parent if base.path.is_file() else base.path
  if _place(folder) == _place(source):
    raise ConfigError(f'{folder}: is the folder that is read; must be another one')
  for path in sorted(folder.glob('*.safetensors')):
    if path.name not in written:
      raise ConfigError(
        f'{folder}: holds {path.name}, which would stand beside what is exported; '
        'must be an empty folder, or a new one'
      )


def _place(path: pathlib.Path) -> str:
  """Return where a path leads: links resolved; of a mirror, its URL."""
  name = as_given(str(path))
  return name if storage.is_remote(name) else str(pathlib.Path(name).resolve())


def _save_tensors(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
  with renamed(path) as temporary:
    save_file(arrays, temporary, metadata={'format': 'pt'})


def _write_other_files(
  base: Folder,
  text: TextVocabulary,
  vocab: Vocabulary,
  rows: int,
  equations: dict[str, np.ndarray],
  folder: pathlib.Path,
) -> None:
  """Write everything but the weights."""
  stated = dict(
    vocab_size=rows,
    tie_word_embeddings=base.transformer.tied,
    architectures=[families.with_head(base.hf_config)],
  )
  write_json(base.hf_config | stated, folder / 'config.json')
  save(text.extended, folder)
  for name in COPIED:
    if (base.path / name).exists():
      with renamed(folder / name) as temporary:
        shutil.copyfile(base.path / name, temporary)
  with renamed(folder / EQUATIONS_FILE) as temporary:
    save_file(equations, temporary)
  pieces, tokenizer = base.text
  ours = dict(
    vocabulary=vocab.digest,
    text_pieces=pieces,
    tokenizer=tokenizer,
    tokenizer_with_ours=text.extended.digest,
  )
  write_json(ours, folder / OURS)


# Adapters alone


def _equations(params: dict) -> dict[str, np.ndarray]:
  """Return the parameters of the structural equations by dotted names, such as 'intent.base'."""
  leaves = functional.flatten({name: params[name] for name in EQUATIONS})
  return {name: _gather(leaf) for name, leaf in leaves.items()}


def export_adapters(
  params: dict, lora: LoraConfig, source: str | os.PathLike, folder: str | os.PathLike
) -> None:
  """Write what training added to the frozen base of the folder `source`.

  adapter_config.json and adapter_model.safetensors are as PEFT has them. What the base has no place
  for is in rolegen_trained.safetensors: the structural equations, and what was added to the rows
  of our tokens (tokens_delta, readout_delta; one row per token, in the order of the vocabulary).
  """
  base, folder = Folder(source), storage.path(folder)
  _refuse_other_weights(base, folder, [ADAPTERS, TRAINED])
  adapters, modules = _adapter_tensors(params, lora, base)
  trained = _equations(params)
  trained |= {name: _gather(leaf) for name, leaf in params.items() if name.endswith('_delta')}
  peft_config = dict(
    peft_type='LORA',
    task_type='CAUSAL_LM',
    base_model_name_or_path=as_given(str(base.path)),
    r=lora.rank,
    lora_alpha=lora.alpha,
    target_modules=modules,
    lora_dropout=0.0,
    bias='none',
    fan_in_fan_out=False,
    inference_mode=True,
  )

  def write() -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if adapters:
      write_json(peft_config, folder / 'adapter_config.json')
      _save_tensors(adapters, folder / ADAPTERS)
    if trained:
      _save_tensors(trained, folder / TRAINED)

  distributed.once(write)


def _adapter_tensors(
  params: dict, lora: LoraConfig, base: Folder
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Return (the adapters of all layers by their names in PEFT, the modules that have one)."""
  tensors = {}
  modules: dict[str, None] = {}  # a set that keeps the order
  for path, tensor in families.layer_tensors(base.transformer).items():
    adapter = _adapter(params['transformer']['blocks'], path)
    if adapter is None:
      continue
    for layer in range(base.transformer.layers):
      a, b = _gather(adapter['a'], layer), _gather(adapter['b'], layer)
      name = families.layer_name(layer, tensor).removesuffix('.weight')
      modules[name.rpartition('.')[2]] = None
      a = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
      b = np.ascontiguousarray(b.reshape(lora.rank, -1).T)
      tensors[f'base_model.model.{name}.lora_A.weight'] = a
      tensors[f'base_model.model.{name}.lora_B.weight'] = b
  return tensors, list(modules)


# Parameters on the host


def _adapter(blocks: dict, path: tuple[str, ...]) -> dict | None:
  """Return the adapter of the parameter at `path`; None if it has none."""
  parent = functools.reduce(lambda tree, name: tree[name], path[:-1], blocks)
  return parent.get(f'{path[-1]}_lora')


def _gather(leaf: jax.Array, layer: int | None = None) -> np.ndarray:
  """Return an array, or one layer of a stacked one, on every host; all processes must call it."""
  if layer is not None:
    leaf = jax.lax.index_in_dim(leaf, layer, keepdims=False)
  if leaf.is_fully_addressable:
    return np.asarray(leaf)
  assert isinstance(leaf.sharding, jax.sharding.NamedSharding)
  replicated = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
  return np.asarray(jit(lambda x: x, out_shardings=replicated)(leaf))
