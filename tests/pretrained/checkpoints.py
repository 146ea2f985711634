"""Checkpoints of random numbers in the files of a real one, written without transformers."""

from __future__ import annotations

import json
import pathlib

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

from rolegen_jax.data.files import write_json
from rolegen_jax.pretrained import families, load
from rolegen_jax.pretrained.files import INDEX

PUBLISHED = pathlib.Path(__file__).parents[2] / 'experiments' / 'published'


def published(name: str) -> dict:
  """What matters here of the config.json of a published model."""
  return json.loads((PUBLISHED / f'{name}.json').read_text())


# With the delimiter of the tokenizer that is written beside it.
QWEN3_06B = published('qwen3_0.6b') | dict(eos_token_id=0)
# The sizes of a run that trains in a minute.
TINY_QWEN3 = QWEN3_06B | dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  vocab_size=400,
)
DTYPES = dict(F32=np.float32, BF16=ml_dtypes.bfloat16)


def write_folder(
  folder: pathlib.Path, hf_config: dict, files: int = 2, dtype: str = 'F32', seed: int = 0
) -> None:
  """Write random weights, in `files` of about one size, with an index and a small tokenizer.

  hf_config: the content of config.json.
  """
  folder.mkdir(parents=True, exist_ok=True)
  shapes = load.shapes(families.read_config(hf_config), hf_config['vocab_size'])
  rng = np.random.default_rng(seed)

  def draw(shape: tuple[int, ...]) -> np.ndarray:
    mean = len(shape) == 1  # norms
    return (0.1 * rng.standard_normal(shape, np.float32) + mean).astype(DTYPES[dtype])

  weight_map = {}
  for number, names in enumerate(_split(shapes, files)):
    file = f'model-{number + 1:05}-of-{files:05}.safetensors'
    arrays = {name: draw(shapes[name]) for name in names}
    save_file(arrays, folder / file, metadata={'format': 'pt'})
    weight_map |= dict.fromkeys(names, file)
  write_json(dict(metadata={}, weight_map=weight_map), folder / INDEX)
  write_json(hf_config, folder / 'config.json')
  write_tokenizer(folder)


def write_tokenizer(folder: pathlib.Path, delimiters=('<|endoftext|>',), names=()) -> None:
  """Write a small byte-level BPE tokenizer; `names` are pieces that it has beside text."""
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  sentences = ['item code a b c, days later'] * 20
  tokenizer.train_from_iterator(sentences, vocab_size=300, special_tokens=list(delimiters))
  tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
  tokenizer.save(str(folder / 'tokenizer.json'))


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder, in memory."""
  files = sorted(folder.glob('*.safetensors'))
  return {name: array for file in files for name, array in load_file(file).items()}


def _split(shapes: dict[str, tuple[int, ...]], files: int) -> list[list[str]]:
  """The names of the tensors of each file."""
  names_of_file: list[list[str]] = [[] for _ in range(files)]
  total, before = sum(map(np.prod, shapes.values())), 0
  for name, shape in shapes.items():
    names_of_file[min(files - 1, int(before * files // total))].append(name)
    before += np.prod(shape)
  return names_of_file
