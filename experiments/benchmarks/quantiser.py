"""Residual k-means against faiss's ResidualQuantizer, 3 levels of 256 codes, SIMULATED vectors.

  pip install -r requirements-third-party.txt
  python -m experiments.benchmarks.quantiser

Both are timed in turn on the same threads, from vectors in memory to codes in memory. Ours runs
with the fewest iterations with which no setting of faiss has a lower reconstruction error. faiss
runs as it comes (beam 5), with beam 1, and with plain k-means, its fastest way. Then ours over
eight devices of this processor against one of them: results must agree, not be faster.

Legend: I rows, D width, L levels, K codes.
"""

from __future__ import annotations

import functools
import os
import pathlib

import jax
import numpy as np

from experiments.benchmarks import harness
from rolegen_jax.config import ConfigError, MeshConfig, SemanticIdConfig
from rolegen_jax.semantic_ids.residual_kmeans import residual_kmeans
from rolegen_jax.sharding import make_mesh

OURS = 'rolegen'
LEVELS, BITS = 3, 8
CODES = 2**BITS
DEVICES = 8
BLOCK = 65_536  # rows that are made or compared at a time
FAISS_BYTES = 2**30  # of distances in faiss at a time, instead of its 5 GiB

# Rows x width -> iterations of ours.
SIZES = {'12101x768': 5, '1000000x128': 16}
# beam 5 and progressive dimensions are faiss's defaults.
FAISS = {
  'faiss': dict(),
  'faiss_beam1': dict(beam=1),
  'faiss_plain_beam1': dict(beam=1, progressive=False),
}

# The simulated vectors: parts of the mixture, and how far a row is from its subtopic and that from
# its topic, as shares of how far topics are from the origin. The k-th principal direction has a
# variance ~ 1/k in each of the three.
TOPICS, SUBTOPICS = 64, 32
SUBTOPIC, NOISE = 0.7, 0.5

LABELS = dict(
  rolegen='RoleGen',
  rolegen_default='RoleGen, default iterations',
  faiss='faiss (beam 5)',
  faiss_beam1='faiss, beam 1',
  faiss_plain_beam1='faiss, beam 1, plain k-means',
  one='RoleGen, 1 of 8 devices',
  all='RoleGen, 8 devices',
)
COLORS = dict(
  rolegen=harness.BLUE,
  rolegen_default=harness.SKY,
  faiss=harness.VERMILION,
  faiss_beam1=harness.ORANGE,
  faiss_plain_beam1=harness.YELLOW,
  one='#CCCCCC',
  all='#999999',
)


def measure(store: harness.Store, *, sizes: tuple = tuple(SIZES), repeats: int = 3) -> dict:
  """Measure a point per size: `compare`, and `sharded` in a process that sees eight devices.

  sizes: Some of 12101x768 and 1000000x128.
  repeats: Timed rounds.
  """
  harness.require_known('sizes', sizes, tuple(SIZES))
  try:
    import faiss  # noqa: F401
  except ImportError as error:
    install = 'pip install -r requirements-third-party.txt'
    raise ConfigError(f'{error}: faiss is an extra, {install}') from error
  for size in sizes:
    store.point(size, [repeats, SIZES[size]], functools.partial(measure_size, size, repeats))
  simulated = dict(topics=TOPICS, subtopics=SUBTOPICS, subtopic=SUBTOPIC, noise=NOISE)
  return dict(simulated=simulated, points=store.points)


def measure_size(size: str, repeats: int) -> dict:
  """Return `compare` of one size with `sharded`."""
  rows, width = map(int, size.split('x'))
  result = compare(rows, width, SIZES[size], repeats, len(os.sched_getaffinity(0)))
  arguments = rows, width, SIZES[size], repeats
  devices = harness.cpu_devices(DEVICES)
  result['sharded'] = harness.call_in_process(sharded, *arguments, environment=devices)
  return result


def simulate(rows: int, width: int, seed: int = 0) -> np.ndarray:
  """Return SIMULATED vectors float32 [I, D] of norm 1, shaped like embeddings of items.

  Subtopics lie in topics; both have Zipf-like sizes.
  """
  rng = np.random.default_rng(seed)
  deviation_D = np.arange(1, width + 1) ** -0.5
  deviation_D = (deviation_D / np.linalg.norm(deviation_D)).astype(np.float32)
  basis_DxD = np.linalg.qr(rng.standard_normal((width, width)))[0].T.astype(np.float32)

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal((*shape, width), np.float32) * deviation_D

  def draw(count: int, parts: int) -> np.ndarray:
    weight = np.arange(1, parts + 1) ** -0.8
    return rng.choice(parts, count, p=weight / weight.sum())

  topic_TxD, subtopic_TxSxD = normal(TOPICS), SUBTOPIC * normal(TOPICS, SUBTOPICS)
  x_IxD = np.empty((rows, width), np.float32)
  for start in range(0, rows, BLOCK):
    x = x_IxD[start : start + BLOCK]
    topic, subtopic = draw(len(x), TOPICS), draw(len(x), SUBTOPICS)
    center = topic_TxD[topic] + subtopic_TxSxD[topic, subtopic]
    np.matmul(center + NOISE * normal(len(x)), basis_DxD, out=x)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x_IxD


def quantize(x_IxD: np.ndarray, iterations: int, devices: list) -> tuple[np.ndarray, np.ndarray]:
  """Return (codes [I, L], codebooks [L, K, D]) of our residual k-means."""
  mesh = make_mesh(MeshConfig(), devices)
  result = residual_kmeans(x_IxD, LEVELS, CODES, iterations, 0, mesh)
  return result.codes, result.codebooks


def quantize_by_faiss(
  x_IxD: np.ndarray, beam: int | None = None, progressive: bool = True
) -> tuple[np.ndarray, np.ndarray]:
  """Return (codes [I, L], codebooks [L, K, D]) of faiss.ResidualQuantizer, defaults kept.

  faiss's k-means samples 256 rows per code where there are more, but would encode them all in
  training, once more for each level. It gets such a sample, which is faster and trains on as many.
  """
  import faiss

  quantiser = faiss.ResidualQuantizer(x_IxD.shape[1], LEVELS, BITS)
  quantiser.max_mem_distances = FAISS_BYTES
  if beam is not None:
    quantiser.max_beam_size = beam
  if not progressive:
    quantiser.train_type = faiss.ResidualQuantizer.Train_default
  most = quantiser.cp.max_points_per_centroid * CODES
  sample = x_IxD
  if len(x_IxD) > most:
    sample = x_IxD[np.random.default_rng(0).choice(len(x_IxD), most, replace=False)]
  quantiser.train(sample)
  codes_IxL = quantiser.compute_codes(x_IxD)  # of 8 bits a level: a byte each
  codebooks = faiss.vector_to_array(quantiser.codebooks).reshape(LEVELS, CODES, -1)
  return codes_IxL.astype(np.int32), codebooks


def relative_error(
  x_IxD: np.ndarray, codes_IxL: np.ndarray, codebooks_LxKxD: np.ndarray
) -> list[float]:
  """Return the squared distance to the approximation after each level, relative to the norm [L]."""
  total, left_L = 0.0, np.zeros(LEVELS)
  for start in range(0, len(x_IxD), BLOCK):
    rest = x_IxD[start : start + BLOCK].copy()
    total += np.einsum('id,id->i', rest, rest).sum(dtype=np.float64)
    for level, codebook_KxD in enumerate(codebooks_LxKxD):
      rest -= codebook_KxD[codes_IxL[start : start + BLOCK, level]]
      left_L[level] += np.einsum('id,id->i', rest, rest).sum(dtype=np.float64)
  return (left_L / total).tolist()


def compare(rows: int, width: int, iterations: int, repeats: int, threads: int) -> dict:
  """Return seconds and errors of all sides, ours on one device and faiss on `threads`."""
  import faiss

  faiss.omp_set_num_threads(threads)
  x, device = simulate(rows, width), jax.devices()[:1]
  settings = {OURS: iterations, 'rolegen_default': SemanticIdConfig().iterations}
  sides = {name: functools.partial(quantize, x, n, device) for name, n in settings.items()}
  for call in sides.values():
    call()  # compiles
  sides |= {name: functools.partial(quantize_by_faiss, x, **set_) for name, set_ in FAISS.items()}
  measured = _time(x, sides, repeats, warm_up=0)[0]
  faster = {}
  for name in FAISS:
    speed = measured[name]['median_s'] / measured[OURS]['median_s']
    error = measured[OURS]['error'][-1] / measured[name]['error'][-1]
    faster[name] = dict(speed=speed, error=error)
  shape = dict(rows=rows, width=width, levels=LEVELS, codes=CODES)
  return shape | dict(threads=threads, iterations=settings, sides=measured, faster=faster)


def sharded(rows: int, width: int, iterations: int, repeats: int) -> dict:
  """Return ours on all devices of this process against one: seconds, errors, how far they agree."""
  x, devices = simulate(rows, width), jax.devices()
  sides = {
    'one': functools.partial(quantize, x, iterations, devices[:1]),
    'all': functools.partial(quantize, x, iterations, devices),
  }
  measured, results = _time(x, sides, repeats, warm_up=1)
  (codes_one, books_one), (codes_all, books_all) = results['one'], results['all']
  return dict(
    devices=len(devices),
    sides=measured,
    equal_codes=float((codes_one == codes_all).all(axis=1).mean()),
    codebook_difference=float(np.abs(books_one - books_all).max()),
  )


def _time(x: np.ndarray, sides: dict, repeats: int, warm_up: int) -> tuple[dict, dict]:
  """Return (seconds and error, codes and codebooks) of each side, timed in turn."""
  results = {}

  def run(name: str) -> None:
    results[name] = sides[name]()

  times = harness.alternate(
    {name: functools.partial(run, name) for name in sides}, repeats, warm_up
  )
  measured = {}
  for name, seconds in times.items():
    measured[name] = harness.summary(seconds) | dict(error=relative_error(x, *results[name]))
  return measured, results


def table(results: dict) -> str:
  """Return seconds and error of all sides, and how much faster than faiss ours is."""
  lines = [f'{"":>12}  {"side":<30}{"seconds":>9}{"error":>9}{"faster":>8}{"error ratio":>12}']
  for size, point in results['points'].items():
    for name, side in (point['sides'] | point['sharded']['sides']).items():
      line = f'{size:>12}  {LABELS[name]:<30}{side["median_s"]:>9.2f}{side["error"][-1]:>9.5f}'
      if ratio := point['faster'].get(name):
        line += f'{ratio["speed"]:>7.2f}x{ratio["error"]:>12.4f}'
      lines.append(line)
    share = f'{point["sharded"]["equal_codes"]:.6f}'
    lines.append(f'{size:>12}  rows whose codes are those of one device: {share}')
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw seconds of every side, with its reconstruction error beside it."""
  points = results['points'].values()
  figure, [panels] = harness.panels(1, len(points), (6.0 * len(points), 2.9), grid='x')
  for panel, point in zip(panels, points, strict=True):
    sides = point['sides'] | point['sharded']['sides']
    for row, (name, side) in enumerate(sides.items()):
      median, error = side['median_s'], harness.error_bars(side)
      panel.barh(row, median, 0.7, color=COLORS[name], xerr=error)
      text = f'{median:.3g} s, error {side["error"][-1]:.4f}'
      panel.text(1.1 * side['quartiles_s'][1], row, text, va='center', fontsize=8)
    panel.set_yticks(range(len(sides)), [LABELS[name] for name in sides])
    panel.invert_yaxis()
    slowest = max(side['quartiles_s'][1] for side in sides.values())
    panel.set(xscale='log', xlabel='seconds from vectors to codes')
    panel.set_xlim(right=12 * slowest)
    vectors = f'{point["rows"]:,} x {point["width"]} simulated'
    title = f'{vectors}, {point["levels"]} levels of {point["codes"]} codes'
    panel.set_title(title, loc='left', fontsize=10)
  figure.savefig(figure_path, dpi=110)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=('faiss-cpu',))
