"""Catalogues of 1e4 to 2e7 SIMULATED items: memory, swaps of items, masks of a decoding step.

A swap of n items removes n and adds n others, in tables with and without regions. It is timed from
the new items' codes on the host until every table on the device is ready for the next request; a
restock gives n items other regions. Nothing may compile meanwhile and every ID must lead to its
item afterwards, or the run fails. Beside them: tables built afresh, and a CSR trie, as vectorized
constrained decoders use it, whose masks are timed in turn with ours.

IDs are uniform and random: they share the fewest prefixes and so need the largest tables.
Legend: B requests, k beams, L levels, K codes a level.
"""

from __future__ import annotations

import functools
import gc
import pathlib
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from rolegen_jax.config import ConfigError
from rolegen_jax.runtime.compile import jit
from rolegen_jax.semantic_ids import trie as trie_lib
from rolegen_jax.serving.hot_swap import MutableCatalogue

LEVELS, CODES, REQUESTS, BEAMS, REGIONS = 4, 256, 64, 50, 32
SWAP = 10_000  # items; a tenth of the catalogue where that is less
TARGET_MS = 5  # of such a swap
LARGE_SWAP_REPEATS = 3  # of swaps of more items
CHECKED = 100_000  # IDs that are looked up after the swaps
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 20_000_000)


def measure(store: harness.Store, *, sizes: tuple = SIZES, repeats: int = 20) -> dict:
  """Measure each size as a point named by its items.

  sizes: Items of the catalogues, at least 1000; measured in ascending order.
  repeats: Timed rounds of masks and of swaps of up to 10,000 items; larger swaps have 3.
  """
  if min(sizes) < 1000:
    raise ConfigError(f'--sizes={min(sizes)}: must be at least 1000')
  for items in sorted(sizes):
    store.point(str(items), [repeats], functools.partial(measure_size, items, repeats))
  sizes_of_search = dict(levels=LEVELS, codes=CODES, requests=REQUESTS, beams=BEAMS)
  return sizes_of_search | dict(points=store.points)


def measure_size(items: int, repeats: int) -> dict:
  """Return everything about a catalogue of `items` items."""
  swap_sizes = sorted({items // 100, items // 10, min(SWAP, items // 10)})
  pool = simulated_ids(items + 2 * max(swap_sizes), LEVELS, CODES, seed=items)
  beams = np.random.default_rng(0).integers(0, items, (REQUESTS, BEAMS))
  prefixes_BxkxL = pool[beams]
  result = dict(items=items, compact=_measure_compact(pool[:items], prefixes_BxkxL, repeats))
  started = time.perf_counter()
  csr = Csr(pool[:items], CODES)
  result['csr'] = dict(build_s=time.perf_counter() - started, bytes=csr.nbytes)
  for name, with_regions in (('live', False), ('live_with_regions', True)):
    gc.collect()
    live = LiveRun(pool, items, with_regions, seed=items)
    masks = live.mask_calls(prefixes_BxkxL) | dict(csr=csr.mask_calls(prefixes_BxkxL))
    result[name] = live.built | dict(mask_s=_time_masks(masks, repeats))
    result[name] |= live.measure_swaps(swap_sizes, repeats)
  return result | dict(peak_bytes=peak_bytes())


def simulated_ids(items: int, levels: int, codes: int, seed: int) -> np.ndarray:
  """Return distinct random IDs, int32 [items, levels]."""
  rng = np.random.default_rng(seed)
  numbers = np.zeros(0, np.uint64)
  while len(numbers) < items:
    count = items - len(numbers) + items // 50 + 64
    drawn = rng.integers(0, codes**levels, count, dtype=np.uint64)
    numbers = np.unique(np.concatenate([numbers, drawn]))
  numbers = rng.permutation(numbers)[:items]
  ids = np.empty((items, levels), np.int32)
  for level in reversed(range(levels)):
    ids[:, level] = numbers % np.uint64(codes)
    numbers //= np.uint64(codes)
  return ids


def peak_bytes() -> int:
  """Return the most memory that this process has held, the host's and the CPU device's."""
  status = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(re.search(r'VmHWM:\s+(\d+)', status).group(1))


@functools.cache
def compilations() -> list[str]:
  """Return a list that grows by one with every program that XLA compiles from the first call on."""
  events = []

  def listen(event: str, *_, **__) -> None:
    if 'backend_compile' in event:
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return events


def table_bytes(trie: trie_lib.Trie) -> dict[str, int]:
  """Return the bytes of each kind of table that the trie has."""
  names = ('child_bits', 'first_child', 'lists', 'leaf_item', 'item_codes', 'regions')
  leaves = {name: jax.tree.leaves(getattr(trie, name)) for name in names}
  return {name: sum(table.nbytes for table in leaves[name]) for name in names if leaves[name]}


# Masks


def trie_mask_calls(
  trie: trie_lib.Trie, prefixes_BxkxL: np.ndarray, allow_B=None
) -> list[Callable]:
  """Return, per level, the call that makes all masks, of regions `allow_B` if given."""

  def mask(level, trie, node, allow):
    return trie_lib.children_mask(trie, level, node, allow)[0]

  def descend(level, trie, node, code):
    return trie_lib.descend(trie, level, node, code)

  nodes = [trie_lib.root(prefixes_BxkxL.shape[:-1])]
  for level in range(trie.levels - 1):
    child = jit(functools.partial(descend, level))
    nodes.append(child(trie, nodes[-1], prefixes_BxkxL[..., level]))
  compiled = [jit(functools.partial(mask, level)) for level in range(trie.levels)]
  return [
    functools.partial(call, trie, node, allow_B) for call, node in zip(compiled, nodes, strict=True)
  ]


class Csr:
  """Children of a level as one sorted list of codes with offsets, read through a window.

  The window is the greatest fan-out of the level. Such tables cannot change in place.
  """

  def __init__(self, codes: np.ndarray, codes_per_level: int) -> None:
    order = trie_lib.id_order(codes.T, codes_per_level)
    dtype = np.uint8 if codes_per_level <= 256 else np.int32
    self.codes_per_level, self.tables, self.windows = codes_per_level, [], []
    for parent, code, _ in trie_lib.nodes_by_level(codes[order]):
      offsets = np.searchsorted(parent, np.arange(parent[-1] + 2)).astype(np.int32)
      self.windows.append(int(np.diff(offsets).max()))
      self.tables.append(jax.block_until_ready(jax.device_put((offsets, code.astype(dtype)))))

  @property
  def nbytes(self) -> int:
    return sum(table.nbytes for table in jax.tree.leaves(self.tables))

  def mask_calls(self, prefixes_BxkxL: np.ndarray) -> list[Callable]:
    """Return, per level, the call that makes the masks of all beams, bool [B, k, K]."""
    node, calls = jnp.zeros(prefixes_BxkxL.shape[:-1], jnp.int32), []
    for level, (table, window) in enumerate(zip(self.tables, self.windows, strict=True)):
      calls.append(functools.partial(jit(functools.partial(self._mask, window)), table, node))
      child = jit(functools.partial(self._child, window))
      node = child(table, node, prefixes_BxkxL[..., level])
    return calls

  def _mask(self, window: int, table, node):
    code, is_child = self._window(window, table, node)
    index = jnp.where(is_child, code, self.codes_per_level).reshape(-1, window)
    empty = jnp.zeros((self.codes_per_level,), bool)
    masks = jax.vmap(lambda row: empty.at[row].set(True, mode='drop'))(index)
    return masks.reshape(*node.shape, self.codes_per_level)

  def _child(self, window: int, table, node, code):
    codes, is_child = self._window(window, table, node)
    return table[0][node] + jnp.argmax(is_child & (codes == code[..., None]), axis=-1)

  @staticmethod
  def _window(window: int, table, node):
    offsets, codes = table
    index = offsets[node][..., None] + jnp.arange(window)
    return codes[index].astype(jnp.int32), index < offsets[node + 1][..., None]


def _time_masks(calls: dict[str, list[Callable]], repeats: int) -> dict[str, list[float]]:
  """Return name -> median seconds per level, the names of one level timed in turn."""
  medians = {name: [] for name in calls}
  for level in range(LEVELS):
    times = harness.alternate({name: of_level[level] for name, of_level in calls.items()}, repeats)
    for name, seconds in times.items():
      medians[name].append(float(np.median(seconds)))
  return medians


def _measure_compact(codes: np.ndarray, prefixes_BxkxL: np.ndarray, repeats: int) -> dict:
  """Return what tables that cannot change cost, which is what a catalogue costs without swaps."""
  started = time.perf_counter()
  trie = jax.block_until_ready(jax.device_put(trie_lib.build_trie(codes, CODES)))
  build_s = time.perf_counter() - started
  masks = dict(mask=trie_mask_calls(trie, prefixes_BxkxL))
  return dict(build_and_put_s=build_s, bytes=table_bytes(trie), mask_s=_time_masks(masks, repeats))


# Swaps


class LiveRun:
  """A catalogue of the first `items` IDs of `pool` that changes in place, and which IDs it has.

  row_of: the row of the pool of each item number, -1 = none. free: rows that are not listed.
  """

  def __init__(self, pool: np.ndarray, items: int, with_regions: bool, seed: int) -> None:
    self.pool, self.with_regions = pool, with_regions
    self.rng = np.random.default_rng(seed)
    started = time.perf_counter()
    self.catalogue = MutableCatalogue(pool[:items], CODES, regions=self._regions(items))
    build_s = time.perf_counter() - started
    with self.catalogue.serving() as trie:
      self.built = dict(build_s=build_s, bytes=table_bytes(trie))
      jax.block_until_ready(item_of(trie, pool[:1024]))
    self.row_of = np.full(self.catalogue.capacity, -1, np.int32)
    self.row_of[:items] = np.arange(items)
    self.free = np.arange(items, len(pool))

  def mask_calls(self, prefixes_BxkxL: np.ndarray) -> dict[str, list[Callable]]:
    with self.catalogue.serving() as trie:
      calls = dict(mask=trie_mask_calls(trie, prefixes_BxkxL))
      if self.with_regions:
        bit = self.rng.integers(0, REGIONS, len(prefixes_BxkxL)).astype(np.uint32)
        allow_B = np.uint32(1) << bit
        calls['mask_of_regions'] = trie_mask_calls(trie, prefixes_BxkxL, allow_B)
    return calls

  def measure_swaps(self, swap_sizes: list[int], repeats: int) -> dict:
    """Return seconds of swaps and restocks by their size.

    Raises RuntimeError when something was compiled or an ID leads to a wrong item afterwards.
    """
    compilations().clear()
    swaps, restocks = {}, {}
    for n in swap_sizes:
      rounds = repeats if n <= SWAP else min(repeats, LARGE_SWAP_REPEATS)
      swaps[str(n)] = harness.summary([self.swap(n) for _ in range(rounds)])
      if self.with_regions:
        restocks[str(n)] = harness.summary([self.restock(n) for _ in range(rounds)])
    compiled, wrong = len(compilations()), self.wrong_ids()
    if wrong or compiled:
      raise RuntimeError(
        f'after the swaps {wrong} IDs lead to a wrong item; {compiled} compilations'
      )
    return dict(swaps=swaps, restocks=restocks)

  def swap(self, n: int) -> float:
    """Return the seconds of replacing n listed items by n others."""
    removed = self._some_listed(n)
    few = len(self.free) < 1 << 20
    chosen = self.rng.permutation(len(self.free))[:n] if few else np.arange(n)
    added, regions = self.free[chosen], self._regions(n)
    codes = self.pool[added]
    gc.collect()
    started = time.perf_counter()
    numbers = self.catalogue.swap(codes, removed, regions)
    self._wait()
    seconds = time.perf_counter() - started
    self.free = np.concatenate([np.delete(self.free, chosen), self.row_of[removed]])
    self.row_of[removed] = -1
    self.row_of[numbers] = added
    return seconds

  def restock(self, n: int) -> float:
    """Return the seconds of giving n listed items other regions."""
    items, regions = self._some_listed(n), self._regions(n)
    started = time.perf_counter()
    self.catalogue.set_regions(items, regions)
    self._wait()
    return time.perf_counter() - started

  def wrong_ids(self) -> int:
    """Return how many of some IDs, listed and not listed, lead to a wrong item."""
    listed = self._some_listed(min(CHECKED, int((self.row_of >= 0).sum())))
    free = self.free[-CHECKED:]
    codes = self.pool[np.concatenate([self.row_of[listed], free])]
    expected = np.concatenate([listed, np.full(len(free), -1)])
    padded = np.resize(codes, (-(-len(codes) // 1024) * 1024, codes.shape[1]))
    with self.catalogue.serving() as trie:
      batches = [np.asarray(item_of(trie, batch)) for batch in padded.reshape(-1, 1024, LEVELS)]
    return int((np.concatenate(batches)[: len(codes)] != expected).sum())

  def _regions(self, n: int) -> np.ndarray | None:
    return self.rng.integers(0, 2**32, n, dtype=np.uint32) if self.with_regions else None

  def _some_listed(self, n: int) -> np.ndarray:
    return self.rng.choice(np.flatnonzero(self.row_of >= 0), n, replace=False)

  def _wait(self) -> None:
    with self.catalogue.serving() as trie:
      jax.block_until_ready(trie)


@jax.jit
def item_of(trie, codes_NxL):
  """Return the item of each ID, int32 [N]; -1 where there is none."""
  node = trie_lib.root(codes_NxL.shape[:1])
  for level in range(trie.levels):
    node = trie_lib.descend(trie, level, node, codes_NxL[:, level])
  return trie_lib.leaf(trie, node)


# Results


def _points(results: dict) -> list[dict]:
  return sorted(results['points'].values(), key=lambda point: point['items'])


def _swap_ms(live: dict, n: int) -> float:
  return 1e3 * live['swaps'][str(n)]['median_s']


def table(results: dict) -> str:
  """Return the main figures by number of items."""
  head = f'{"items":>12}{"tables, MB":>12}{"swap, ms":>10}{"of a tenth":>12}'
  lines = [head + f'{"afresh, s":>11}{"masks, ms":>11}{"CSR, ms":>9}']
  for point in _points(results):
    items, live = point['items'], point['live']
    small, large = (_swap_ms(live, n) for n in (min(SWAP, items // 10), items // 10))
    masks, csr = (1e3 * sum(live['mask_s'][name]) for name in ('mask', 'csr'))
    megabytes, build_s = sum(live['bytes'].values()) / 1e6, point['compact']['build_and_put_s']
    line = f'{items:>12,}{megabytes:>12.1f}{small:>10.1f}{large:>12.1f}'
    lines.append(line + f'{build_s:>11.2f}{masks:>11.1f}{csr:>9.1f}')
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw memory, swaps, masks and the first build against the number of items."""
  figure, ((memory, swaps), (masks, build)) = harness.panels(2, 2, (10, 7))
  points = _points(results)
  items = [point['items'] for point in points]
  dotted = dict(ls=':', color='gray')
  kinds = dict(live_with_regions='live, with regions', live='live', compact='compact')
  for name, label in kinds.items():
    megabytes = [sum(point[name]['bytes'].values()) / 1e6 for point in points]
    memory.plot(items, megabytes, 'o-', label=f'tables, {label}')
    mask_ms = [1e3 * sum(point[name]['mask_s']['mask']) for point in points]
    masks.plot(items, mask_ms, 'o-', label=label)
    field = 'build_and_put_s' if name == 'compact' else 'build_s'
    build.plot(items, [point[name][field] for point in points], 'o-', label=label)
  csr_megabytes = [point['csr']['bytes'] / 1e6 for point in points]
  memory.plot(items, csr_megabytes, 's', label='tables, CSR (no item codes)', **dotted)
  peak = [point['peak_bytes'] / 1e6 for point in points]
  memory.plot(items, peak, 'k--', label='peak of the process, host and device')
  for name, label in (('live_with_regions', 'with regions'), ('live', 'no regions')):
    small = [_swap_ms(point[name], min(SWAP, point['items'] // 10)) for point in points]
    swaps.plot(items, small, 'o-', label=f'{SWAP:,} (at most a tenth), {label}')
    large = [_swap_ms(point[name], point['items'] // 10) for point in points]
    swaps.plot(items, large, '^:', label=f'a tenth, {label}')
  afresh = [1e3 * point['compact']['build_and_put_s'] for point in points]
  swaps.plot(items, afresh, 's', label='tables built afresh', **dotted)
  swaps.axhline(TARGET_MS, color='black', ls='--', lw=0.8)
  regions = [1e3 * sum(p['live_with_regions']['mask_s']['mask_of_regions']) for p in points]
  masks.plot(items, regions, 'o-', label='live, regions of each request')
  csr_ms = [1e3 * sum(point['live']['mask_s']['csr']) for point in points]
  masks.plot(items, csr_ms, 's', label='CSR', **dotted)
  build.plot(items, [point['csr']['build_s'] for point in points], 's', label='CSR', **dotted)
  memory.set(ylabel='MB', title='Memory')
  swaps.set(ylabel='ms', title=f'Items removed and as many added (line: {TARGET_MS} ms)')
  beams = f'{results["requests"]} x {results["beams"]} beams'
  masks.set(ylabel=f'ms for all {results["levels"]} levels', title=f'Masks of {beams}')
  build.set(ylabel='s', title='First build, to tables on the device')
  for panel in (memory, swaps, masks, build):
    panel.set(xscale='log', yscale='log', xlabel='items (simulated)')
    panel.legend(fontsize=7)
  figure.savefig(figure_path, dpi=90)


if __name__ == '__main__':
  harness.main(measure, plot, table)
