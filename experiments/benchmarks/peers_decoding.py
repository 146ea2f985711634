"""Constrained beam search against the third-party implementations: RoleGen's backbone, Hugging Face `generate` with a prefix tree, cornac's TIGER.

  pip install -r requirements-third-party implementations.txt
  python -m experiments.benchmarks.peers_decoding
  python -m experiments.benchmarks.peers_decoding --minutes=10    # leaves with 42 after so long; the same command continues

Every cell (requests of a batch, history items, beams) times all sides in turn, from histories to lists of items: encoding and
search. One catalogue, the 12,101 items of Beauty with four codes each; one count of parameters, fresh weights. Beside it: our
search against scoring every item by itself, where there are as many beams as items, and on the whole catalogue as a recall, with
fresh weights and with trained ones. Needs the Beauty log (README.md). What is finished is kept in --workdir;
experiments/benchmarks/peers_decoding.json is written when all is there.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import time

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError, digest

PACKAGES = ('torch', 'transformers', 'cornac')  # whose versions are written down
SMALL = [40, 100, 200]  # items of the catalogues that beams cover
RECALL_BEAMS, TOPS = [10, 20, 50, 200], [10, 50]

_HISTORIES = flags.DEFINE_list('histories', ['20', '200'], 'History items of a request.')
_BATCHES = flags.DEFINE_list('batches', ['1', '8', '64'], 'Requests of a batch.')
_BEAMS = flags.DEFINE_list('beams', ['10', '20', '50'], 'Beams, and items of a list.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/peers_decoding', 'Where finished parts are kept.')
_BUDGET = flags.DEFINE_float('budget', 8.0, 'Seconds of timed rounds of a cell; 3 rounds at least, 15 at most.', lower_bound=0.0)
_PEER_GIB = flags.DEFINE_float('peer_gib', 4.0, "Room for T5's copies of keys and values, GiB; what needs more is served in pieces.", lower_bound=0.1)
_USERS = flags.DEFINE_integer('users', 16, 'Requests whose whole catalogue is scored.', lower_bound=1)
_UPDATES = flags.DEFINE_integer('updates', 150, 'Training updates before the recall of trained weights; 0 = leave it out.', lower_bound=0)
_MINUTES = flags.DEFINE_float('minutes', 0.0, 'Leave after the first part finished past so long; the same command continues. 0 = never.')


def main() -> None:
  started = time.monotonic()
  from experiments.benchmarks import measure
  from rolegen_jax.training.fit import Preempted

  try:
    import cornac, torch, transformers  # noqa: F401, one line for the three
  except ImportError as error:
    raise ConfigError(f'{error}: the peers are an extra, pip install -r requirements-peers.txt') from error
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  folder, bench, parts = pathlib.Path(_WORKDIR.value), Bench(), {}
  numbers = lambda flag: [int(value) for value in flag.value]
  for width, batch, beams in itertools.product(numbers(_HISTORIES), numbers(_BATCHES), numbers(_BEAMS)):
    parts[f'history{width}_batch{batch}_beams{beams}'] = functools.partial(bench.cell, width, batch, beams)
  parts |= dict(exact=bench.exact, recall_fresh=bench.recall_fresh)
  if _UPDATES.value:
    parts[f'recall_after_{_UPDATES.value}_updates'] = bench.recall_trained
  key = digest([_BUDGET.value, _PEER_GIB.value, _USERS.value])
  for name, work in parts.items():
    if read(folder / f'{name}.json').get('key') != key:
      print(f'-> {measure.keep(name, work() | dict(key=key), *PACKAGES, folder=folder)}', flush=True)
      if _MINUTES.value and time.monotonic() - started > 60 * _MINUTES.value:
        raise Preempted(f'left after {_MINUTES.value:g} minutes; the same command continues')
  held = {name: read(folder / f'{name}.json') for name in parts}
  cells = [part for part in held.values() if 'ratios' in part]
  found = dict(cells=cells, checks={name: part for name, part in held.items() if 'ratios' not in part})
  found |= dict(threads=len(os.sched_getaffinity(0)), peer_gib=_PEER_GIB.value)
  print(f'-> {measure.keep("peers_decoding", found, *PACKAGES)}')


def read(path: pathlib.Path) -> dict:
  return json.loads(path.read_text()) if path.exists() else {}


class Bench:
  """What the parts need, made when the first of them asks."""

  @functools.cached_property
  def sequences(self):
    from experiments.benchmarks import beauty

    return beauty.sequences()

  @functools.cached_property
  def ours(self):
    from experiments.benchmarks import beauty
    from experiments.benchmarks.peers_decoding_parts import Ours

    return Ours(beauty.codes(), beauty.config())

  @functools.cached_property
  def sides(self) -> dict:
    from experiments.benchmarks import peers_decoding_parts as p

    codes = self.ours.codes_IxL
    return {p.OURS: self.ours, 'hf_t5': p.HuggingFace(codes, gib=_PEER_GIB.value), 'cornac': p.Cornac(self.sequences, codes)}

  def histories(self, width: int, count: int):
    from experiments.benchmarks.peers_decoding_parts import full_histories

    return full_histories(self.sequences, count, width)

  def cell(self, width: int, batch: int, beams: int) -> dict:
    from experiments.benchmarks import peers_decoding_parts as p

    found = p.cell(self.sides, self.histories(width, 64)[:batch], beams, _BUDGET.value)
    found['parameters'] = {name: side.parameters for name, side in self.sides.items()}
    told = ', '.join(f'{ratio:.1f}x {name}' for name, ratio in found['ratios'].items())
    print(f'history {width}, batch {batch}, beams {beams}: {1e3 * found["sides"][p.OURS]["p50_s"]:.1f} ms, {told}')
    return found

  def exact(self) -> dict:
    from experiments.benchmarks import peers_decoding_parts as p

    return dict(catalogues=p.exact(self.ours, self.histories(20, _USERS.value), SMALL), tie_nats=p.TIE)

  def _recall(self, ours) -> list[dict]:
    from experiments.benchmarks import peers_decoding_parts as p

    return p.attend(ours, self.histories(20, _USERS.value), RECALL_BEAMS, TOPS)

  def recall_fresh(self) -> dict:
    return dict(updates=0, lists=self._recall(self.ours))

  def recall_trained(self) -> dict:
    from experiments.benchmarks.peers_decoding_parts import Ours
    from experiments.benchmarks.peers_training_sides import Ours as InTraining

    side = InTraining(self.sequences, self.ours.codes_IxL, self.ours.config, batch=32)
    for _ in range(_UPDATES.value):
      side.update()
    trained = Ours(self.ours.codes_IxL, self.ours.config, side.state.params['backbone'])
    return dict(updates=_UPDATES.value, batch=32, loss=side.loss, lists=self._recall(trained))


if __name__ == '__main__':
  entry.run(main)
