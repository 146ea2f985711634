"""A checkpoint of random numbers in the true files, and the memory of a process that loads it: by `Folder.load`, or all of it at once."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import pathlib
import threading
import time
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

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
    architectures=['Qwen3ForCausalLM'], model_type='qwen3', hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, vocab_size=151_936, rms_norm_eps=1e-6, rope_theta=1_000_000, tie_word_embeddings=True, eos_token_id=0)
DTYPES = dict(F32=np.float32, BF16=ml_dtypes.bfloat16)


def write_folder(folder: pathlib.Path, said: dict, files: int = 2, dtype: str = 'BF16', seed: int = 0) -> None:
  """A checkpoint of config.json `said` with random weights in so many files of about one size, and a small tokenizer."""
  folder.mkdir(parents=True, exist_ok=True)
  shapes, rng = load.shapes(families.read_config(said), said['vocab_size']), np.random.default_rng(seed)
  total, held, parts = sum(map(np.prod, shapes.values())), 0, [[] for _ in range(files)]
  for name, shape in shapes.items():
    parts[min(files - 1, int(held * files // total))].append(name)
    held += np.prod(shape)
  where = {}
  for number, names in enumerate(parts):
    file = f'model-{number + 1:05}-of-{files:05}.safetensors'
    draw = lambda shape: (0.1 * rng.standard_normal(shape, np.float32) + (len(shape) == 1)).astype(DTYPES[dtype])
    save_file({name: draw(shapes[name]) for name in names}, folder / file, metadata={'format': 'pt'})
    where |= dict.fromkeys(names, file)
  write_json(dict(metadata={}, weight_map=where), folder / INDEX)
  write_json(said, folder / 'config.json')
  made = tokenizers.ByteLevelBPETokenizer()
  made.train_from_iterator(['item code a b c, days later'] * 20, vocab_size=300, special_tokens=['<|endoftext|>'])
  made.save(str(folder / 'tokenizer.json'))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All of them, in memory."""
  return {name: array for file in sorted(folder.glob('*.safetensors')) for name, array in load_file(file).items()}


def memory() -> dict[str, int]:
  """Bytes of this process in memory now: its own, and pages of files that it has mapped, which the system may take back."""
  lines = dict(line.split(':', 1) for line in pathlib.Path('/proc/self/status').read_text(encoding='utf-8').splitlines())
  return dict(own=1024 * int(lines['RssAnon'].split()[0]), mapped=1024 * int(lines['RssFile'].split()[0]))


@contextlib.contextmanager
def watched():
  """A dict that holds, after the block, the largest `memory` during it beyond that before it, and the seconds."""
  gc.collect()
  before, peak, found, stop = memory(), dict(own=0, mapped=0, both=0), {}, threading.Event()

  def look():
    while not stop.wait(0.002):
      now = {name: value - before[name] for name, value in memory().items()}
      now['both'] = sum(now.values())
      for name, value in now.items():
        peak[name] = max(peak[name], value)

  thread, started = threading.Thread(target=look), time.perf_counter()
  thread.start()
  try:
    yield found
  finally:
    stop.set()
    thread.join()
    found.update({f'peak_{name}_bytes': value for name, value in peak.items()}, seconds=time.perf_counter() - started)


def settled(folder: pathlib.Path, mesh: MeshConfig) -> Config:
  plain = Config(mesh=mesh)
  return configure(dataclasses.replace(plain, reasoner=dataclasses.replace(plain.reasoner, pretrained=str(folder))))


def streamed(folder: pathlib.Path, config: Config) -> Callable[[], dict]:
  rolegen, mesh = RoleGen(config), make_mesh(config.mesh)
  return lambda: Folder(folder).load(config.reasoner, rolegen.vocab, mesh)


def at_once(folder: pathlib.Path, config: Config) -> Callable[[], list]:
  """The plain way: every file read whole, turned to fp32 arrays of all layers, then put on the devices."""
  rolegen, mesh = RoleGen(config), make_mesh(config.mesh)
  sharding = functional.shardings(rolegen.makers['reasoner'], mesh)
  c = config.reasoner.transformer

  def run():
    theirs = tensors(folder)
    whole = [(sharding['tokens'], theirs[families.tables(c)['tokens']].astype(np.float32))]
    for path, tensor in families.layer_tensors(c).items():
      place = sharding['transformer']['blocks']
      for part in path:
        place = place[part]
      stacked = np.stack([theirs[families.layer_name(layer, tensor)].astype(np.float32) for layer in range(c.layers)])
      order = [axis for group in tensor.groups for axis in group]
      size = load._sizes(c)[path]
      stacked = stacked.reshape(c.layers, *(size[axis] for axis in order)).transpose(0, *(1 + np.argsort(order)))
      whole.append((place, np.ascontiguousarray(stacked)))
    return [jax.device_put(array, place) for place, array in whole]

  return run


def measure_load(make: Callable[[], object], files: pathlib.Path) -> dict:
  """Memory beside the loaded arrays, which on a CPU lie in the same memory, and whether it keeps within the largest file + 1 GiB."""
  with watched() as found:
    arrays = jax.block_until_ready(make())
  held = {shard.data.unsafe_buffer_pointer(): shard.data.nbytes for x in jax.tree.leaves(arrays) for shard in x.addressable_shards}
  sizes = [file.stat().st_size for file in files.glob('*.safetensors')]
  beside, bound = found['peak_both_bytes'] - sum(held.values()), max(sizes) + GIB
  return found | dict(arrays_bytes=sum(held.values()), files_bytes=sizes, beside_arrays_bytes=beside, bound_bytes=bound, within=beside <= bound)


def line(side: str, found: dict) -> str:
  of = lambda name: f'{found[name] / GIB:.2f}'
  peak = f'{of("peak_both_bytes")} GiB (own {of("peak_own_bytes")}, mapped files {of("peak_mapped_bytes")})'
  beside = f'{of("beside_arrays_bytes")}, bound {of("bound_bytes")}: {"within" if found["within"] else "OVER"}'
  return f'{side:9} {found["seconds"]:6.1f} s   peak {peak}   arrays {of("arrays_bytes")}   beside them {beside}'
