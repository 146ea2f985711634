"""What `quantiser` measures: seconds and reconstruction error of our residual k-means and of faiss on the same vectors, in turn.

Legend: I rows, D width, L levels, K codes.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from experiments.benchmarks import measure
from rolegen_jax.config import MeshConfig, SemanticIdConfig
from rolegen_jax.semantic_ids.residual_kmeans import TRAIN_ROWS_PER_CODE, residual_kmeans
from rolegen_jax.sharding import make_mesh

OURS = 'rolegen'
LEVELS, BITS = 3, 8
CODES = 2**BITS
BLOCK = 65_536  # rows made or compared at a time
FAISS_BYTES = 2**30  # of distances in faiss at a time, instead of its 5 GiB

# The simulated vectors: parts of the mixture, and how far a row is from its subtopic and that from its topic, as shares of
# how far topics are from the origin. The k-th principal direction has a variance ~ 1/k in each of the three.
TOPICS, SUBTOPICS = 64, 32
SUBTOPIC, NOISE = 0.7, 0.5


@dataclasses.dataclass(frozen=True)
class Case:
  rows: int
  width: int
  iterations: int  # of ours: the fewest, of those tried, with which no side of faiss has a lower error


CASES = {'12101x768': Case(12_101, 768, 5), '1000000x128': Case(1_000_000, 128, 16)}


def simulate(rows: int, width: int, seed: int = 0) -> np.ndarray:
  """SIMULATED vectors float32 [I, D] of norm 1, shaped like embeddings of items: subtopics in topics, both of Zipf-like sizes."""
  rng = np.random.default_rng(seed)
  deviation_D = np.arange(1, width + 1) ** -0.5
  deviation_D /= np.linalg.norm(deviation_D)
  basis_DxD = np.linalg.qr(rng.standard_normal((width, width)))[0]
  normal = lambda *shape: rng.standard_normal((*shape, width), np.float32) * deviation_D.astype(np.float32)
  topic_TxD, subtopic_TxSxD = normal(TOPICS), SUBTOPIC * normal(TOPICS, SUBTOPICS)
  share = lambda n: (w := np.arange(1, n + 1) ** -0.8) / w.sum()
  x_IxD = np.empty((rows, width), np.float32)
  for start in range(0, rows, BLOCK):
    x = x_IxD[start:start + BLOCK]
    topic, subtopic = rng.choice(TOPICS, len(x), p=share(TOPICS)), rng.choice(SUBTOPICS, len(x), p=share(SUBTOPICS))
    np.matmul(topic_TxD[topic] + subtopic_TxSxD[topic, subtopic] + NOISE * normal(len(x)), basis_DxD.T.astype(np.float32), out=x)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x_IxD


def ours(x_IxD: np.ndarray, iterations: int, devices: list) -> tuple[np.ndarray, np.ndarray]:
  """(codes [I, L], codebooks [L, K, D])."""
  found = residual_kmeans(x_IxD, LEVELS, CODES, iterations, 0, make_mesh(MeshConfig(), devices))
  return found.codes, found.codebooks


def faiss_quantiser(x_IxD: np.ndarray, beam: int | None = None, progressive: bool = True) -> tuple[np.ndarray, np.ndarray]:
  """(codes [I, L], codebooks [L, K, D]) of faiss.ResidualQuantizer trained and applied; its own defaults where nothing is said.

  faiss's k-means looks at 256 rows per code and takes a sample where there are more, but it would encode them all in training,
  for each level once more. It gets such a sample instead, which is faster and trains on as many.
  """
  import faiss

  quantiser = faiss.ResidualQuantizer(x_IxD.shape[1], LEVELS, BITS)
  quantiser.max_mem_distances = FAISS_BYTES
  if beam is not None:
    quantiser.max_beam_size = beam
  if not progressive:
    quantiser.train_type = faiss.ResidualQuantizer.Train_default
  most = quantiser.cp.max_points_per_centroid * CODES
  sample = x_IxD if len(x_IxD) <= most else x_IxD[np.random.default_rng(0).choice(len(x_IxD), most, replace=False)]
  quantiser.train(sample)
  codes_IxL = quantiser.compute_codes(x_IxD)  # of 8 bits a level: a byte each
  return codes_IxL.astype(np.int32), faiss.vector_to_array(quantiser.codebooks).reshape(LEVELS, CODES, -1)


# beam 5 and progressive dimensions are faiss's defaults. Plain k-means is its fastest way, and here no worse.
FAISS = {
    'faiss': dict(),
    'faiss_beam1': dict(beam=1),
    'faiss_plain_beam1': dict(beam=1, progressive=False),
}


def relative_error(x_IxD: np.ndarray, codes_IxL: np.ndarray, codebooks_LxKxD: np.ndarray) -> list[float]:
  """Mean squared distance to the approximation after each level as share of the mean squared norm [L], summed in float64."""
  total, left_L = 0.0, np.zeros(LEVELS)
  for start in range(0, len(x_IxD), BLOCK):
    rest = x_IxD[start:start + BLOCK].copy()
    total += np.einsum('id,id->i', rest, rest).sum(dtype=np.float64)
    for level, codebook_KxD in enumerate(codebooks_LxKxD):
      rest -= codebook_KxD[codes_IxL[start:start + BLOCK, level]]
      left_L[level] += np.einsum('id,id->i', rest, rest).sum(dtype=np.float64)
  return (left_L / total).tolist()


def compare(case: Case, repeats: int, threads: int) -> dict:
  """All sides timed in turn from vectors in memory to codes in memory, ours on one device, faiss on `threads`, and their errors."""
  import faiss

  faiss.omp_set_num_threads(threads)
  x = simulate(case.rows, case.width)
  settings = {OURS: case.iterations, 'rolegen_default': SemanticIdConfig().iterations}
  result = {}
  run = lambda name, call, *args, **kwargs: lambda: result.update({name: call(x, *args, **kwargs)})
  calls = {name: run(name, ours, iterations, jax.devices()[:1]) for name, iterations in settings.items()}
  started = time.perf_counter()
  for call in calls.values():
    call()
  first_s = time.perf_counter() - started
  calls |= {name: run(name, faiss_quantiser, **kwargs) for name, kwargs in FAISS.items()}
  times = measure.alternate(calls, repeats, warm_up=0)
  sides = {name: times[name] | dict(error=relative_error(x, *result[name])) for name in calls}
  over = lambda name: dict(
      speed=sides[name]['median_s'] / sides[OURS]['median_s'], error=sides[OURS]['error'][-1] / sides[name]['error'][-1],
  )
  return dict(
      rows=case.rows, width=case.width, levels=LEVELS, codes=CODES, threads=threads, iterations=settings,
      trained_on=min(case.rows, TRAIN_ROWS_PER_CODE * CODES), first_calls_s=first_s, sides=sides, ours_against={name: over(name) for name in FAISS},
  )


def sharded(case: Case, repeats: int) -> dict:
  """Ours on all devices of this process against one of them: seconds, errors and how far the results agree."""
  x = simulate(case.rows, case.width)
  result = {}
  meshes = {'one': jax.devices()[:1], 'all': jax.devices()}
  calls = {name: lambda name=name, devices=devices: result.update({name: ours(x, case.iterations, devices)}) for name, devices in meshes.items()}
  times = measure.alternate(calls, repeats)
  (codes_one, books_one), (codes_all, books_all) = result['one'], result['all']
  return dict(
      devices=len(jax.devices()), sides={name: times[name] | dict(error=relative_error(x, *result[name])) for name in calls},
      equal_codes=float((codes_one == codes_all).all(axis=1).mean()), codebook_difference=float(np.abs(books_one - books_all).max()),
  )
