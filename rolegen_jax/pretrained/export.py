"""A reasoner back into the format that it came in: config.json, sharded safetensors with an index, the tokenizer with our tokens.

`export` writes a whole model, adapters and trained rows added to its weights; `export_adapters` what was added to the base, and
nothing of the base, as PEFT names it.

Tensors keep their type of the source folder, so what was not trained comes back bit for bit, and what was is rounded to it. One
file at a time is on the host. Our tokens get the rows after the tokenizer's last id, which may be spare rows of the source.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rolegen_jax.config import LoraConfig
from rolegen_jax.data.files import renamed, write_json
from rolegen_jax.models import lora as lora_lib
from rolegen_jax.pretrained import families
from rolegen_jax.pretrained.files import INDEX
from rolegen_jax.pretrained.folder import INTENT, OURS, Folder
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.compile import jit
from rolegen_jax.text.tokenizers import TextVocabulary, save
from rolegen_jax.vocab import Vocabulary

FILE_BYTES = 2 << 30  # of tensors in a file, at most, if no tensor alone is larger
NUMPY = {'F32': np.float32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16}
TRAINED = 'rolegen_trained.safetensors'
COPIED = (
  'generation_config.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
)


def export(
  params: dict,
  vocab: Vocabulary,
  source: str | os.PathLike,
  folder: str | os.PathLike,
  lora: LoraConfig = LoraConfig(),
  file_bytes: int = FILE_BYTES,
) -> None:
  """Writes the reasoner's parameters to `folder`, in the format of the folder `source` that they were loaded from; adapters, if it has
  any, are those of `lora`.

  A text row whose id is that of one of our tokens is written as our token. Raises DataError, ConfigError.
  """
  source, folder = Folder(source), pathlib.Path(folder)
  source.rows(vocab)  # refuses another vocabulary
  text = TextVocabulary(vocab, source.tokenizer)
  rows = max(vocab.text_pieces, 1 + int(max(text.ids)))
  distributed.once(lambda: folder.mkdir(parents=True, exist_ok=True))
  _weights(params, vocab, source, text.ids, rows, folder, lora, file_bytes)
  intent = {name: _whole(leaf) for name, leaf in params['intent'].items()}

  def rest():
    write_json(source.said | {'vocab_size': rows}, folder / 'config.json')
    save(text.extended, folder)
    for name in COPIED:
      if (source.path / name).exists():
        shutil.copyfile(source.path / name, folder / name)
    with renamed(folder / INTENT) as temporary:
      save_file(intent, temporary)
    pieces, digest = source.text
    write_json(
      dict(
        vocabulary=vocab.digest,
        text_pieces=pieces,
        tokenizer=digest,
        tokenizer_with_ours=text.extended.digest,
      ),
      folder / OURS,
    )

  distributed.once(rest)


def export_adapters(
  params: dict, lora: LoraConfig, source: str | os.PathLike, folder: str | os.PathLike
) -> None:
  """Writes what training added to the frozen base of the folder `source`: adapter_config.json and adapter_model.safetensors as PEFT
  has them; and what the base has no place for in rolegen_trained.safetensors: the equation of intent, and what was added to the rows of
  our tokens (tokens_delta, readout_delta; a row a token, in the order of the vocabulary)."""
  source, folder = Folder(source), pathlib.Path(folder)
  tensors, modules = {}, {}
  for path, tensor in families.layer_tensors(source.transformer).items():
    adapter = _beside(params['transformer']['blocks'], path)
    for layer in range(source.transformer.layers if adapter else 0):
      a, b = (_whole(adapter[name], layer) for name in 'ab')
      name = families.layer_name(layer, tensor).removesuffix('.weight')
      modules[name.rpartition('.')[2]] = None
      tensors[f'base_model.model.{name}.lora_A.weight'] = np.ascontiguousarray(
        a.reshape(-1, lora.rank).T
      )
      tensors[f'base_model.model.{name}.lora_B.weight'] = np.ascontiguousarray(
        b.reshape(lora.rank, -1).T
      )
  said = dict(
    peft_type='LORA',
    task_type='CAUSAL_LM',
    base_model_name_or_path=str(source.path),
    r=lora.rank,
    lora_alpha=lora.alpha,
    target_modules=list(modules),
    lora_dropout=0.0,
    bias='none',
    fan_in_fan_out=False,
    inference_mode=True,
  )
  rest = {name: _whole(leaf) for name, leaf in params['intent'].items()} | {
    n: _whole(leaf) for n, leaf in params.items() if n.endswith('_delta')
  }

  def write():
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
      write_json(said, folder / 'adapter_config.json')
    for name, arrays in (('adapter_model.safetensors', tensors), (TRAINED, rest)):
      if arrays:
        with renamed(folder / name) as temporary:
          save_file(arrays, temporary, metadata={'format': 'pt'})

  distributed.once(write)


def _beside(tree: dict, path: tuple[str, ...]) -> dict | None:
  """The adapter of a parameter."""
  for name in path[:-1]:
    tree = tree[name]
  return tree.get(f'{path[-1]}_lora')


def _weights(params, vocab, source, own, rows, folder, lora, file_bytes) -> None:
  """The safetensors and their index."""
  c, blocks = source.transformer, params['transformer']['blocks']
  plan = []  # (name, shape, what gives the array)
  first, size = vocab.blocks['text']

  def table(name):
    ours = _whole(params[name])
    if f'{name}_delta' in params:
      ours = np.concatenate([ours[:first] + _whole(params[f'{name}_delta']), ours[first:]])
    theirs = np.zeros((rows, c.width), np.float32)
    theirs[:size] = ours[first : first + size]
    theirs[own] = ours[: len(own)]
    return theirs

  for ours, theirs in families.tables(c).items():
    plan.append((theirs, (rows, c.width), lambda ours=ours: table(ours)))
  plan.append(
    (families.FINAL_NORM.name, (c.width,), lambda: _whole(params['transformer']['norm']['scale']))
  )
  for layer in range(c.layers):
    for path, tensor in families.layer_tensors(c).items():
      leaf, adapter = blocks, _beside(blocks, path)
      for part in path:
        leaf = leaf[part]
      shape = tuple(math.prod(leaf.shape[1 + axis] for axis in group) for group in tensor.groups)
      order = [axis for group in tensor.groups for axis in group]
      merged = functools.partial(_merged, leaf, adapter, layer, lora)
      get = lambda merged=merged, order=order, shape=shape: merged().transpose(order).reshape(shape)
      plan.append((families.layer_name(layer, tensor), shape, get))
  files, held = [[]], 0
  for entry in plan:
    name, shape, _ = entry
    size_here = math.prod(shape) * np.dtype(NUMPY[source.files.dtype(name)]).itemsize
    if files[-1] and held + size_here > file_bytes:
      files.append([])
      held = 0
    files[-1].append(entry)
    held += size_here
  where, total = {}, 0
  for number, entries in enumerate(files):
    file = f'model-{number + 1:05}-of-{len(files):05}.safetensors'
    arrays = {
      name: np.ascontiguousarray(get().astype(NUMPY[source.files.dtype(name)]))
      for name, _, get in entries
    }

    def write():
      with renamed(folder / file) as temporary:
        save_file(arrays, temporary, metadata={'format': 'pt'})

    distributed.once(write)
    where |= dict.fromkeys(arrays, file)
    total += sum(array.nbytes for array in arrays.values())
  index = dict(metadata=dict(total_size=total), weight_map=dict(sorted(where.items())))
  distributed.once(lambda: write_json(index, folder / INDEX))


def _merged(leaf: jax.Array, adapter: dict | None, layer: int, lora: LoraConfig) -> np.ndarray:
  """The weight of a layer with what its adapter adds."""
  weight = _whole(leaf, layer)
  if adapter is None:
    return weight
  a, b = (_whole(adapter[name], layer) for name in 'ab')
  return weight + np.float32(lora_lib.scale(lora)) * np.tensordot(a, b, 1)


def _whole(leaf: jax.Array, layer: int | None = None) -> np.ndarray:
  """An array, or one layer of a stacked one, on every host. Every process must ask."""
  if layer is not None:
    leaf = jax.lax.index_in_dim(leaf, layer, keepdims=False)
  if leaf.is_fully_addressable:
    return np.asarray(leaf)
  everywhere = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
  return np.asarray(jit(lambda x: x, out_shardings=everywhere)(leaf))
