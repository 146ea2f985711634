"""What is measured of a catalogue's tables: bytes, swaps, masks of a decoding step; and the peers' ways of doing the same.

Two peers. `Csr`: a sorted list of child codes with offsets, read through a window of the greatest fan-out, as vectorised
constrained decoders do it. `DictTrie`: nested Python dictionaries walked for every beam, as in Hugging Face's `prefix_allowed_tokens_fn`.
Neither can change in place on the device: a new catalogue is new tables.
"""

from __future__ import annotations

import functools
import gc
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measure import alternate, summary
from rolegen_jax.compile import jit
from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.serving.hot_swap import LiveCatalogue

REGIONS = 32
DICT_LIMIT = 100_000  # items up to which the Python dictionaries are built


def simulated_ids(items: int, levels: int, codes: int, seed: int) -> np.ndarray:
  """Different random IDs int32 [items, levels]: uniform, which shares the fewest prefixes and so needs the largest tables."""
  rng = np.random.default_rng(seed)
  found = np.zeros(0, np.uint64)
  while len(found) < items:
    found = np.unique(np.concatenate([found, rng.integers(0, codes**levels, items - len(found) + items // 50 + 64, dtype=np.uint64)]))
  found = rng.permutation(found)[:items]
  table = np.empty((items, levels), np.int32)
  for level in reversed(range(levels)):
    table[:, level] = found % np.uint64(codes)
    found //= np.uint64(codes)
  return table


def peak_bytes() -> int:
  """The most memory that this process has held."""
  return 1024 * int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text()).group(1))


@functools.cache
def compilations() -> list[str]:
  """A list that gets an entry for every program that XLA compiles from the first call on."""
  found = []
  jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: found.append(event) if 'backend_compile' in event else None)
  return found


def table_bytes(trie: trie_lib.Trie) -> dict[str, int]:
  """Bytes of each part of the tables."""
  total = lambda tables: sum(table.nbytes for table in jax.tree.leaves(tables))
  names = ('child_bits', 'first_child', 'lists', 'leaf_item', 'item_codes', 'regions')
  return {name: total(getattr(trie, name)) for name in names if jax.tree.leaves(getattr(trie, name))}


class Csr:
  """Children as one sorted list of codes a level, with offsets; the window is the greatest fan-out of the level."""

  def __init__(self, codes: np.ndarray, codes_per_level: int):
    order = trie_lib.id_order(codes.T, codes_per_level)
    self.codes_per_level, self.tables, self.windows = codes_per_level, [], []
    for parent, code, _ in trie_lib.nodes_by_level(codes[order]):
      offsets = np.searchsorted(parent, np.arange(parent[-1] + 2)).astype(np.int32)
      self.windows.append(int(np.diff(offsets).max()))
      self.tables.append(jax.block_until_ready(jax.device_put((offsets, code.astype(np.uint8 if codes_per_level <= 256 else np.int32)))))

  @property
  def nbytes(self) -> int:
    return sum(table.nbytes for table in jax.tree.leaves(self.tables))

  def nodes(self, codes: np.ndarray) -> list[jax.Array]:
    """The node of each prefix of codes [..., L], per level l < L."""
    step = jax.jit(lambda table, window, node, code: _csr_child(table, window, node, code), static_argnums=1)
    nodes = [jnp.zeros(codes.shape[:-1], jnp.int32)]
    for level in range(len(self.tables) - 1):
      nodes.append(step(self.tables[level], self.windows[level], nodes[-1], codes[..., level]))
    return nodes

  def masks(self):
    """Per level, a compiled function (table, node [..., k]) -> mask bool [..., k, K]."""

    def mask(window, table, node):
      code, real = _csr_window(table, window, node)
      where = jnp.where(real, code, self.codes_per_level).reshape(-1, window)
      empty = jnp.zeros((self.codes_per_level,), bool)
      return jax.vmap(lambda row: empty.at[row].set(True, mode='drop'))(where).reshape(*node.shape, self.codes_per_level)

    return [jit(functools.partial(mask, window)) for window in self.windows]


def _csr_window(table, window: int, node):
  offsets, codes = table
  at = offsets[node][..., None] + jnp.arange(window)
  return codes[at].astype(jnp.int32), at < offsets[node + 1][..., None]


def _csr_child(table, window: int, node, code):
  found, real = _csr_window(table, window, node)
  return table[0][node] + jnp.argmax(real & (found == code[..., None]), axis=-1)


class DictTrie:
  """Nested dictionaries: code -> ... -> item."""

  def __init__(self, codes: np.ndarray):
    self.root: dict = {}
    self.add(codes, range(len(codes)))

  def add(self, codes: np.ndarray, items) -> None:
    for row, item in zip(codes.tolist(), items):
      node = self.root
      for code in row[:-1]:
        node = node.setdefault(code, {})
      node[row[-1]] = item

  def remove(self, codes: np.ndarray) -> None:
    for row in codes.tolist():
      path = [self.root]
      for code in row[:-1]:
        path.append(path[-1][code])
      for node, code in zip(reversed(path), reversed(row)):
        del node[code]
        if node:
          break

  def mask(self, prefixes: np.ndarray, codes_per_level: int) -> np.ndarray:
    """bool [n, K] of prefixes int [n, l]."""
    found = np.zeros((len(prefixes), codes_per_level), bool)
    for row, prefix in enumerate(prefixes.tolist()):
      node = self.root
      for code in prefix:
        node = node[code]
      found[row, list(node)] = True
    return found


@jax.jit
def item_of(trie, codes_NxL):
  """Item int32 [N] of each ID; -1 where there is none."""
  node = trie_lib.root(codes_NxL.shape[:1])
  for level in range(trie.levels):
    node = trie_lib.descend(trie, level, node, codes_NxL[:, level])
  return trie_lib.leaf(trie, node)


class Step:
  """Compiled functions of one decoding step of requests [B] x beams [k] at random prefixes of items, per level."""

  def __init__(self, trie: trie_lib.Trie, codes_BxkxL: np.ndarray, allow_B: np.ndarray | None):
    levels = range(trie.levels)
    descend = jit(lambda level, trie, node, code: trie_lib.descend(trie, level, node, code), static_argnums=0)
    self.nodes = [trie_lib.root(codes_BxkxL.shape[:-1])]
    for level in levels[:-1]:
      self.nodes.append(descend(level, trie, self.nodes[-1], codes_BxkxL[..., level]))
    self.codes, self.allow = [jnp.asarray(codes_BxkxL[..., level]) for level in levels], allow_B
    self.mask = [jit(lambda trie, node, level=level: trie_lib.children_mask(trie, level, node)[0]) for level in levels]
    self.region_mask = [jit(lambda trie, node, allow, level=level: trie_lib.children_mask(trie, level, node, allow)[0]) for level in levels]
    self.descend = [jit(lambda trie, node, code, level=level: trie_lib.descend(trie, level, node, code)) for level in levels]

  def calls(self, trie: trie_lib.Trie) -> dict[str, list]:
    """{name: a call for each level}."""
    nodes = list(enumerate(self.nodes))
    found = dict(
        mask=[functools.partial(self.mask[level], trie, node) for level, node in nodes],
        descend=[functools.partial(self.descend[level], trie, node, self.codes[level]) for level, node in nodes],
    )
    if self.allow is not None:
      found['mask_of_regions'] = [functools.partial(self.region_mask[level], trie, node, self.allow) for level, node in nodes]
    return found


def timed_levels(calls: dict[str, list], repeats: int) -> dict[str, list[dict]]:
  """{name: a summary for each level}, the names of one level in turn."""
  levels = len(next(iter(calls.values())))
  found = [alternate({name: each[level] for name, each in calls.items()}, repeats) for level in range(levels)]
  return {name: [level[name] for level in found] for name in calls}


def compact(codes: np.ndarray, codes_per_level: int, beams_codes: np.ndarray, repeats: int) -> dict:
  """The tables of a catalogue that stands still: what a new catalogue costs without a swap, and their masks."""
  started = time.perf_counter()
  built = trie_lib.build_trie(codes, codes_per_level)
  host_s = time.perf_counter() - started
  trie = jax.block_until_ready(jax.device_put(built))
  build_s = time.perf_counter() - started
  found = dict(build_s=host_s, build_and_put_s=build_s, bytes=table_bytes(trie))
  del built
  return found | dict(step=timed_levels(Step(trie, beams_codes, None).calls(trie), repeats))


def live(
    pool: np.ndarray, items: int, codes_per_level: int, with_regions: bool, beams_codes: np.ndarray, swaps: dict[int, int], repeats: int, peers: dict, seed: int,
) -> dict:
  """A live catalogue of the first `items` IDs of `pool` [., L]: build, swaps of {items out and in: how often}, masks beside the peers'.

  Raises RuntimeError when something was compiled during the swaps or an ID leads to another item than it should afterwards.
  """
  rng = np.random.default_rng(seed)
  regions = lambda n: rng.integers(0, 2**32, n, dtype=np.uint32) if with_regions else None
  started = time.perf_counter()
  catalogue = LiveCatalogue(pool[:items], codes_per_level, regions=regions(items))
  found = dict(build_s=time.perf_counter() - started, capacity=catalogue.capacity)
  with catalogue.serving() as trie:
    found['bytes'] = table_bytes(trie)
    allow = (np.uint32(1) << rng.integers(0, REGIONS, len(beams_codes)).astype(np.uint32)) if with_regions else None
    step = Step(trie, beams_codes, allow)
    found['step'] = timed_levels(step.calls(trie) | peers, repeats)
    jax.block_until_ready(item_of(trie, pool[:1024]))
    del trie
  row_of = np.full(catalogue.capacity, -1, np.int32)  # which row of the pool each item is
  row_of[:items] = np.arange(items)
  free = np.arange(items, len(pool))
  compilations().clear()
  found['swaps'], found['restocks'] = {}, {}
  for n, times in swaps.items():
    seconds, host_seconds = [], []
    for _ in range(times):
      remove = _some_listed(rng, row_of, n)
      chosen = rng.permutation(len(free))[:n] if len(free) < 1 << 20 else np.arange(n)
      add, words = free[chosen], regions(n)
      new_codes = pool[add]
      gc.collect()
      started = time.perf_counter()
      numbers = catalogue.swap(new_codes, remove, words)
      host_seconds.append(time.perf_counter() - started)
      _ready(catalogue)
      seconds.append(time.perf_counter() - started)
      free = np.concatenate([np.delete(free, chosen), row_of[remove]])
      row_of[remove] = -1
      row_of[numbers] = add
    found['swaps'][n] = summary(seconds) | dict(until_return=summary(host_seconds))
    if with_regions:
      seconds = []
      for _ in range(times):
        items_, words = _some_listed(rng, row_of, n), regions(n)
        started = time.perf_counter()
        catalogue.set_regions(items_, words)
        _ready(catalogue)
        seconds.append(time.perf_counter() - started)
      found['restocks'][n] = summary(seconds)
  with catalogue.serving() as trie:
    listed = _some_listed(rng, row_of, min(100_000, items))
    wrong = _wrong(trie, pool[row_of[listed]], listed) + _wrong(trie, pool[free[-100_000:]], -1)
  found['compilations'] = len(compilations())
  if wrong or found['compilations']:
    raise RuntimeError(f'{items} items: {wrong} IDs lead elsewhere after the swaps, {found["compilations"]} compilations')
  return found


def _ready(catalogue: LiveCatalogue) -> None:
  with catalogue.serving() as trie:
    jax.block_until_ready(trie)


def _some_listed(rng, row_of: np.ndarray, n: int) -> np.ndarray:
  """n different numbers of items in the catalogue."""
  return rng.choice(np.flatnonzero(row_of >= 0), n, replace=False)


def _wrong(trie, codes: np.ndarray, expected) -> int:
  """How many IDs [n, L] lead to another item than expected [n] (or -1), asked in batches of 1024."""
  padded = np.resize(codes, (-(-len(codes) // 1024) * 1024, codes.shape[1]))
  found = np.concatenate([np.asarray(item_of(trie, padded[i:i + 1024])) for i in range(0, len(padded), 1024)])[:len(codes)]
  return int((found != expected).sum())


def dict_trie(pool: np.ndarray, items: int, codes_per_level: int, beams_codes: np.ndarray, swap: int, repeats: int) -> dict:
  """The Python dictionaries: build, a swap of `swap` items in place, masks per level."""
  started = time.perf_counter()
  tree = DictTrie(pool[:items])
  build_s = time.perf_counter() - started
  prefixes = beams_codes.reshape(-1, beams_codes.shape[-1])
  step = [alternate(dict(mask=lambda level=level: tree.mask(prefixes[:, :level], codes_per_level)), repeats)['mask'] for level in range(prefixes.shape[1])]
  seconds = []
  for i in range(repeats):
    gone, new = pool[i * swap:(i + 1) * swap], pool[items + i * swap:items + (i + 1) * swap]
    started = time.perf_counter()
    tree.remove(gone)
    tree.add(new, range(swap))
    seconds.append(time.perf_counter() - started)
  return dict(build_s=build_s, step=step, swap=summary(seconds) | dict(items=swap))


def measure_size(items: int, levels: int, codes: int, beams: tuple[int, int], repeats: int, say=print) -> dict:
  """Everything about a catalogue of `items` items, with `beams` = (requests, beams of each) at random prefixes of its items."""
  swaps = {n: repeats if n <= 10_000 else min(repeats, 3) for n in sorted({items // 100, items // 10, min(10_000, items // 10)})}
  pool = simulated_ids(items + 2 * max(swaps), levels, codes, seed=items)
  beams_codes = pool[np.random.default_rng(0).integers(0, items, beams)]
  found = dict(items=items, compact=compact(pool[:items], codes, beams_codes, repeats))
  say(f'{items:,} items: built afresh in {found["compact"]["build_and_put_s"]:.2f} s')
  started = time.perf_counter()
  csr = Csr(pool[:items], codes)
  found['csr'] = dict(build_s=time.perf_counter() - started, bytes=csr.nbytes, windows=csr.windows)
  masks = [functools.partial(mask, table, node) for mask, table, node in zip(csr.masks(), csr.tables, csr.nodes(beams_codes), strict=True)]
  for name, with_regions in (('live', False), ('live_with_regions', True)):
    gc.collect()
    found[name] = each = live(pool, items, codes, with_regions, beams_codes, swaps, repeats, dict(csr=masks), seed=items)
    for n, times in each['swaps'].items():
      say(f'  {name}: {n:,} out and {n:,} in {1e3 * times["median_s"]:.2f} ms', flush=True)
    total = {step: 1e3 * sum(level['median_s'] for level in each['step'][step]) for step in each['step']}
    say(f'  {name}: {sum(each["bytes"].values()) / 1e6:,.1f} MB on the device, built in {each["build_s"]:.2f} s; '
        f'ms of the {levels} levels for {beams[0]} x {beams[1]} beams: ' + ', '.join(f'{step} {ms:.2f}' for step, ms in total.items()), flush=True)
  if items <= DICT_LIMIT:
    found['dict'] = dict_trie(pool, items, codes, beams_codes, min(10_000, items // 10), min(repeats, 3))
  return found | dict(peak_bytes=peak_bytes())
