"""Memory of loading a pretrained checkpoint: streamed into its shards, against reading it whole.

  python -m experiments.benchmarks.pretrained

Writes a folder of Qwen3-0.6B's sizes with random weights, 1.1 GiB of bfloat16 in two files, and
loads it onto 8 CPU devices, in a process of its own per side and round. Target: peak host memory
beside the loaded arrays at most the largest file + 1 GiB. Needs 8 GB of memory and 1.2 GB of disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import jax
import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

from experiments.benchmarks import harness
from rolegen_jax.config import Config, MeshConfig
from rolegen_jax.data.files import write_json
from rolegen_jax.models import functional
from rolegen_jax.pretrained import families, load
from rolegen_jax.pretrained.files import INDEX
from rolegen_jax.pretrained.folder import Folder, configure
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.sharding import make_mesh

GIB = 1 << 30
QWEN3_06B = dict(  # its published sizes: 1.19 GB of bfloat16
  architectures=['Qwen3ForCausalLM'],
  model_type='qwen3',
  hidden_size=1024,
  intermediate_size=3072,
  num_hidden_layers=28,
  num_attention_heads=16,
  num_key_value_heads=8,
  head_dim=128,
  vocab_size=151_936,
  rms_norm_eps=1e-6,
  rope_theta=1_000_000,
  tie_word_embeddings=True,
  eos_token_id=0,
)
FILES = 2
MESH = MeshConfig(data=1, fsdp=4, tensor=2)
DEVICES = MESH.fsdp * MESH.tensor
SIDES = dict(streamed='streamed into shards', at_once='read whole, then spread')


def measure(store: harness.Store, *, rounds: int = 3, layers: int = 28) -> dict:
  """Load the checkpoint both ways, in turn.

  rounds: Loads of each side.
  layers: Of the checkpoint; fewer for a trial.
  """
  with tempfile.TemporaryDirectory() as folder:
    write_folder(pathlib.Path(folder), QWEN3_06B | dict(num_hidden_layers=layers))

    def load_in_process(side: str) -> dict:
      environment = harness.cpu_devices(DEVICES)
      return harness.call_in_process(load_side, folder, side, environment=environment)

    for i in range(rounds):
      for side in SIDES:
        store.point(f'{side} {i}', [layers], functools.partial(load_in_process, side))
  return dict(layers=layers, devices=DEVICES, points=store.points)


def load_side(folder: str, side: str) -> dict:
  """Load the checkpoint in `folder` one way, in this process."""
  path = pathlib.Path(folder)
  default = Config(mesh=MESH)
  reasoner = dataclasses.replace(default.reasoner, pretrained=folder)
  config = configure(dataclasses.replace(default, reasoner=reasoner))
  loaders = dict(streamed=streamed_loader, at_once=at_once_loader)
  return measure_load(loaders[side](path, config), path)


def measure_load(load_arrays: Callable[[], object], folder: pathlib.Path) -> dict:
  """Return the memory beside the loaded arrays and whether it is within the largest file + 1 GiB.

  On a CPU the arrays lie in the same memory, so that their bytes are taken off the peak.
  """
  with watched_memory() as usage:
    arrays = jax.block_until_ready(load_arrays())
  buffers = {
    shard.data.unsafe_buffer_pointer(): shard.data.nbytes
    for array in jax.tree.leaves(arrays)
    for shard in array.addressable_shards
  }
  arrays_bytes = sum(buffers.values())
  files_bytes = [file.stat().st_size for file in folder.glob('*.safetensors')]
  beside, bound = usage['peak_both_bytes'] - arrays_bytes, max(files_bytes) + GIB
  return usage | dict(
    arrays_bytes=arrays_bytes,
    files_bytes=files_bytes,
    beside_arrays_bytes=beside,
    bound_bytes=bound,
    within=beside <= bound,
  )


# The two ways to load


def streamed_loader(folder: pathlib.Path, config: Config) -> Callable[[], dict]:
  """Return the library's way to load."""
  rolegen, mesh = RoleGen(config), make_mesh(config.mesh)
  return lambda: Folder(folder).load(config.reasoner, rolegen.vocab, mesh)


def at_once_loader(folder: pathlib.Path, config: Config) -> Callable[[], list]:
  """Return the plain way: read every file whole, turn all layers to fp32, then put on devices."""
  rolegen, mesh = RoleGen(config), make_mesh(config.mesh)
  shardings = functional.shardings(rolegen.model_fns['reasoner'], mesh)
  c = config.reasoner.transformer

  def load_arrays() -> list:
    files = sorted(folder.glob('*.safetensors'))
    weights = {name: array for file in files for name, array in load_file(file).items()}
    embedding = weights[families.tables(c)['tokens']].astype(np.float32)
    placed = [(shardings['tokens'], embedding)]
    for path, tensor in families.layer_tensors(c).items():
      sharding = functools.reduce(
        lambda tree, part: tree[part], path, shardings['transformer']['blocks']
      )
      names = [families.layer_name(layer, tensor) for layer in range(c.layers)]
      stacked = np.stack([weights[name].astype(np.float32) for name in names])
      order = [axis for group in tensor.groups for axis in group]
      sizes = load.layer_shapes(c)[path]
      stacked = stacked.reshape(c.layers, *(sizes[axis] for axis in order))
      stacked = stacked.transpose(0, *(1 + np.argsort(order)))
      placed.append((sharding, np.ascontiguousarray(stacked)))
    return [jax.device_put(array, sharding) for sharding, array in placed]

  return load_arrays


# Checkpoints of random numbers


def write_folder(folder: pathlib.Path, hf_config: dict) -> None:
  """Write a checkpoint of random bfloat16, in FILES of about one size, and a small tokenizer.

  hf_config: the content of config.json.
  """
  shapes = load.shapes(families.read_config(hf_config), hf_config['vocab_size'])
  rng = np.random.default_rng(0)
  total, before = sum(map(math.prod, shapes.values())), 0
  names_of_file = [[] for _ in range(FILES)]
  for name, shape in shapes.items():
    names_of_file[before * FILES // total].append(name)
    before += math.prod(shape)
  weight_map = {}
  for number, names in enumerate(names_of_file):
    file = f'model-{number + 1:05}-of-{FILES:05}.safetensors'
    normal = {name: 0.1 * rng.standard_normal(shapes[name], np.float32) for name in names}
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in normal.items()}
    save_file(tensors, folder / file, metadata={'format': 'pt'})
    weight_map |= dict.fromkeys(names, file)
  write_json(dict(metadata={}, weight_map=weight_map), folder / INDEX)
  write_json(hf_config, folder / 'config.json')
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  sentences = ['item code a b c, days later'] * 20
  tokenizer.train_from_iterator(sentences, vocab_size=300, special_tokens=['<|endoftext|>'])
  tokenizer.save(str(folder / 'tokenizer.json'))


# Memory of this process


def resident_memory() -> dict[str, int]:
  """Return the bytes in memory now: own, and mapped, pages of files that the system may drop."""
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  fields = dict(line.split(':', 1) for line in status.splitlines())
  kib = {
    name: int(fields[field].split()[0])
    for name, field in dict(own='RssAnon', mapped='RssFile').items()
  }
  return {name: 1024 * value for name, value in kib.items()}


@contextlib.contextmanager
def watched_memory() -> Iterator[dict]:
  """Yield a dict that after the block holds its seconds and its peak of memory over that before."""
  gc.collect()
  before, usage, stop = resident_memory(), {}, threading.Event()
  peak = dict(own=0, mapped=0, both=0)

  def watch() -> None:
    while not stop.wait(0.002):
      now = {name: value - before[name] for name, value in resident_memory().items()}
      now['both'] = sum(now.values())
      for name, value in now.items():
        peak[name] = max(peak[name], value)

  thread, started = threading.Thread(target=watch), time.perf_counter()
  thread.start()
  try:
    yield usage
  finally:
    stop.set()
    thread.join()
    usage.update({f'peak_{name}_bytes': value for name, value in peak.items()})
    usage.update(seconds=time.perf_counter() - started)


# What the numbers say


def _median(results: dict, side: str, field: str) -> float:
  points = results['points'].items()
  return float(np.median([point[field] for name, point in points if name.startswith(side)]))


def table(results: dict) -> str:
  lines = []
  for side in SIDES:
    gib = {
      name: _median(results, side, f'{name}_bytes') / GIB
      for name in ('peak_both', 'peak_own', 'peak_mapped', 'arrays', 'beside_arrays', 'bound')
    }
    verdict = 'within' if gib['beside_arrays'] <= gib['bound'] else 'OVER'
    lines.append(
      f'{side:9} {_median(results, side, "seconds"):6.1f} s   peak {gib["peak_both"]:.2f} GiB'
      f' (own {gib["peak_own"]:.2f}, mapped files {gib["peak_mapped"]:.2f})'
      f'   arrays {gib["arrays"]:.2f}   beside them {gib["beside_arrays"]:.2f},'
      f' bound {gib["bound"]:.2f}: {verdict}'
    )
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw the peak memory of both ways, what of it the arrays are, and the bound."""
  figure, grid = harness.panels(1, 1, (6.4, 2.4), grid='x')
  panel = grid[0, 0]
  for row, (side, label) in enumerate(reversed(SIDES.items())):
    arrays, beside, bound = (
      _median(results, side, f'{name}_bytes') / GIB for name in ('arrays', 'beside_arrays', 'bound')
    )
    labels = ('the loaded arrays', 'beside them', 'bound: largest file + 1 GiB')
    first, second, third = labels if row else (None, None, None)
    panel.barh(row, arrays, 0.5, color=harness.GRAY, label=first)
    panel.barh(row, beside, 0.5, left=arrays, color=harness.BLUE, label=second)
    edge = arrays + bound
    style = dict(color=harness.VERMILION, linestyle='--', label=third)
    panel.plot([edge, edge], [row - 0.35, row + 0.35], **style)
    seconds = _median(results, side, 'seconds')
    text = f'{label}: {beside:.2f} GiB beside, {seconds:.0f} s'
    panel.text(0.05, row + 0.3, text, fontsize=8)
  panel.set_yticks([])
  panel.set_ylim(-0.4, 2.1)
  checkpoint = sum(next(iter(results['points'].values()))['files_bytes']) / GIB
  xlabel = f'peak memory of the process, GiB; checkpoint of {checkpoint:.2f} GiB'
  panel.set_xlabel(xlabel, fontsize=8)
  panel.legend(frameon=False, fontsize=8, loc='upper right', ncols=3)
  figure.savefig(figure_path, dpi=100)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=('safetensors',))
