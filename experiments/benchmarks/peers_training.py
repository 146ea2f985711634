"""Training against the third-party implementations: RoleGen's backbone, Hugging Face T5 in TIGER's shape and cornac's TIGER, on the Beauty sequences.

  pip install -r requirements-third-party implementations.txt
  python -m experiments.benchmarks.peers_training --parts=throughput
  python -m experiments.benchmarks.peers_training --parts=ndcg --minutes=10    # leaves with 42; the same command continues

Part `throughput`: targets and sequences trained a second by full updates (batch, forward, backward, Adam), each side at its
fastest batch size, timed in turn. Part `ndcg`: seconds of training until our NDCG@10 on validation users is the best that a
peer reached; there every side has its smallest batch that is nearly as fast, since more updates teach more. One set of semantic IDs, one count
of parameters, the same threads. Needs the Beauty log (README.md). A finished part is kept in --workdir;
experiments/benchmarks/peers_training.json is written when all are there.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import time

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError, digest

PARTS = ('throughput', 'ndcg')
PACKAGES = ('torch', 'transformers', 'cornac')  # whose versions are written down
OUR_ROWS, EXAMPLES = [16, 32, 64, 128], [32, 64, 128, 256]  # batch sizes that are tried: rows of 32 items, and examples of a peer
GROUP = 1024  # examples that are drawn at once where batches are of like length
OUR_MARKS = (1 / 60, 1 / 30, 1 / 15, 2 / 15, 1 / 4, 1 / 2)  # of --budget, when ours is evaluated
PEER_MARKS = (1 / 4, 1 / 2, 3 / 4, 1)

_PARTS = flags.DEFINE_list('parts', list(PARTS), 'Some of throughput, ndcg.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/peers_training', 'Where parts and what continues them are kept.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed rounds of part throughput.', lower_bound=3)
_BUDGET = flags.DEFINE_float('budget', 300.0, 'Seconds of training of each peer in part ndcg; ours gets half.', lower_bound=1.0)
_USERS = flags.DEFINE_integer('users', 1000, 'Validation users of part ndcg, drawn once.', lower_bound=1)
_BEAMS = flags.DEFINE_integer('beams', 20, 'Beams of every side when it is evaluated.', lower_bound=10)
_RATE = flags.DEFINE_float('peer_learning_rate', 1e-3, 'AdamW learning rate of both peers.')
_DEVICES = flags.DEFINE_integer('devices', 1, 'CPU devices of ours, its batch spread over them; they share the same cores.', lower_bound=1)
_MINUTES = flags.DEFINE_float('minutes', 0.0, 'Leave part ndcg at the first mark after so long; the same command continues. 0 = never.')


def main() -> None:
  started = time.monotonic()
  if unknown := sorted(set(_PARTS.value) - set(PARTS)):
    raise ConfigError(f'--parts={unknown[0]}: must be some of {", ".join(PARTS)}')
  from experiments.benchmarks import beauty, measure

  try:
    import cornac, jax, torch, transformers  # noqa: F401, one line for all
  except ImportError as error:
    raise ConfigError(f'{error}: the peers are an extra, pip install -r requirements-peers.txt') from error
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  folder = pathlib.Path(_WORKDIR.value)
  model_fns = sides(beauty.sequences(), beauty.codes(), beauty.config(), _RATE.value)
  for part in _PARTS.value:
    work = dict(throughput=lambda: throughput(model_fns), ndcg=lambda: ndcg(model_fns, folder, started))[part]
    path = measure.keep(part, work(), *PACKAGES, folder=folder)
    print(f'-> {path}')
  kept = {part: folder / f'{part}.json' for part in PARTS}
  if all(path.exists() for path in kept.values()):
    found = {part: json.loads(path.read_text()) for part, path in kept.items()}
    print(f'-> {measure.keep("peers_training", found, *PACKAGES)}')


def sides(found, codes, config, rate: float) -> dict:
  """Name -> maker of the side from its batch size."""
  from experiments.benchmarks import peers_training_sides as s

  return dict(
      rolegen=lambda batch: s.Ours(found, codes, config, batch),
      hf_t5=lambda batch: s.HuggingFace(found, codes, batch, learning_rate=rate),
      hf_t5_grouped=lambda batch: s.HuggingFace(found, codes, batch, cycle=max(1, GROUP // batch), learning_rate=rate),
      cornac=lambda batch: s.Cornac(found, codes, batch, learning_rate=rate),
  )


def throughput(model_fns: dict) -> dict:
  from experiments.benchmarks import peers_training_parts as p

  fast, tried = {}, {}
  for name, make in model_fns.items():
    # Batches of like length are as large as the random ones: a round of them is long already.
    batches = OUR_ROWS if name == p.OURS else [fast['hf_t5'].batch] if name == 'hf_t5_grouped' else EXAMPLES
    fast[name], tried[name] = p.fastest(make, batches)
  found = p.throughput(fast, _REPEATS.value)
  for name, ratio in found['ratios'].items():
    print(f'RoleGen over {name}: {ratio["targets"]:.1f}x trained targets a second, {ratio["sequences"]:.1f}x sequences a second')
  return found | dict(tried_sequences_per_s=tried, threads=len(os.sched_getaffinity(0)), our_devices=_DEVICES.value)


def ndcg(model_fns: dict, folder: pathlib.Path, started: float) -> dict:
  import numpy as np

  from experiments.benchmarks import beauty
  from experiments.benchmarks import peers_training_parts as p
  from rolegen_jax.evaluation.baselines import popular_items
  from rolegen_jax.training.fit import Preempted

  rates = folder / 'throughput.json'
  if not rates.exists():
    raise ConfigError(f'--parts=ndcg: {rates} is not there; batch sizes are those of part throughput, run that first')
  held = json.loads(rates.read_text())
  timed, tried = held['sides'], held['tried_sequences_per_s']
  tried['hf_t5_grouped'] = tried['hf_t5']
  speed = lambda name: timed[name]['sequences_per_s']['median']
  racing = ['rolegen', max(('hf_t5', 'hf_t5_grouped'), key=speed), 'cornac']
  batches = {name: p.nearly_fastest(tried[name]) for name in racing}
  model_fns = {name: functools.partial(model_fns[name], batches[name]) for name in racing}
  marks = {name: [_BUDGET.value * share for share in (OUR_MARKS if name == p.OURS else PEER_MARKS)] for name in racing}
  found = beauty.sequences()
  users = np.sort(np.random.default_rng(0).choice(len(found.offsets) - 1, min(_USERS.value, len(found.offsets) - 1), replace=False))
  rows = found.held_out('valid')[users]
  target = found.item[rows]
  settings = dict(marks=marks, users=len(users), beams=_BEAMS.value, batches=batches, peer_learning_rate=_RATE.value, our_devices=_DEVICES.value)
  leave = lambda: _MINUTES.value > 0 and time.monotonic() - started > 60 * _MINUTES.value
  curves = p.race(model_fns, marks, rows, target, _BEAMS.value, folder / 'race', digest(settings, beauty.config(), beauty.codes().tolist()), leave)
  if curves is None:
    raise Preempted(f'--minutes={_MINUTES.value:g} are over; the same command continues')
  popular = np.tile(popular_items(found.log, found.occasions)[:p.CUTOFF], (len(rows), 1))
  reached = p.reach(curves)
  for name, r in reached.items():
    ours = 'never' if r['ours_s'] is None else f'{r["ours_s"]:.0f} s, {r["ratio"]:.1f}x ({r["ratio_with_compile"]:.1f}x with compilation)'
    print(f'{name}: NDCG@10 {r["ndcg"]:.4f} after {r["peer_s"]:.0f} s; RoleGen {ours}')
  return settings | dict(curves=curves, reached=reached, popularity=p.scored(popular, target))


if __name__ == '__main__':
  entry.run(main)
