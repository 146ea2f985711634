"""Residual k-means against faiss's ResidualQuantizer, 3 levels of 256 codes, on SIMULATED vectors, in turn on the same threads.

  pip install -r requirements-third-party implementations.txt
  python -m experiments.benchmarks.quantiser

Ours runs at settings with which its reconstruction error is no higher than faiss's. faiss runs as it comes (beam 5), with beam 1,
and with plain k-means, which is its fastest way. Then ours over eight devices of this machine, in a process of its own, against one
of them: the results must agree; eight devices of one processor are not expected to be faster. `python -m experiments.benchmarks.draw`
makes the picture.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.config import ConfigError

DEVICES = 8

_CASES = flags.DEFINE_list('examples', ['12101x768', '1000000x128'], 'Some of 12101x768, 1000000x128.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed rounds.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', '', 'Folder of quantiser.json; default: that of the benchmarks.')
_SHARDED = flags.DEFINE_string('sharded', '', 'A file: write there what the one case of --examples is over all devices, and no more.')


def main() -> None:
  from experiments.benchmarks import measure, quantiser_parts as parts

  if unknown := sorted(set(_CASES.value) - set(parts.CASES)):
    raise ConfigError(f'--examples={unknown[0]}: must be some of {", ".join(parts.CASES)}')
  if _SHARDED.value:
    pathlib.Path(_SHARDED.value).write_text(json.dumps(parts.sharded(parts.CASES[_CASES.value[0]], _REPEATS.value)))
    return
  try:
    import faiss  # noqa: F401
  except ImportError as error:
    raise ConfigError(f'{error}: the peers are an extra, pip install -r requirements-peers.txt') from error
  examples = {}
  for name in _CASES.value:
    examples[name] = found = parts.compare(parts.CASES[name], _REPEATS.value, len(os.sched_getaffinity(0)))
    for side, times in found['sides'].items():
      print(f'{name} {side}: {times["median_s"]:.2f} s, error {times["error"][-1]:.5f}', flush=True)
    for side, ratio in found['ours_against'].items():
      print(f'{name}: ours is {ratio["speed"]:.2f}x as fast as {side} at {ratio["error"]:.4f} of its error', flush=True)
    found['sharded'] = shards = over_devices(name)
    one, eight = shards['sides']['one'], shards['sides']['all']
    print(f'{name}: {shards["devices"]} devices {eight["median_s"]:.2f} s, error {eight["error"][-1]:.5f}; one {one["median_s"]:.2f} s, '
          f'{one["error"][-1]:.5f}; equal codes {shards["equal_codes"]:.5f} of the rows', flush=True)
  simulated = dict(topics=parts.TOPICS, subtopics=parts.SUBTOPICS, subtopic=parts.SUBTOPIC, noise=parts.NOISE, made_by='quantiser_parts.simulate')
  found = dict(simulated=simulated, examples=examples)
  print(f"-> {measure.keep('quantiser', found, 'faiss-cpu', folder=_OUTPUT.value or measure.FOLDER)}")


def over_devices(case: str) -> dict:
  """`quantiser_parts.sharded` in a process that sees DEVICES CPU devices."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'sharded.json'
    command = [sys.executable, '-m', 'experiments.benchmarks.quantiser', f'--examples={case}', f'--repeats={_REPEATS.value}', f'--sharded={file}']
    flag = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={DEVICES}'.strip()
    subprocess.run(command, env=os.environ | dict(XLA_FLAGS=flag, JAX_PLATFORMS='cpu'), check=True)
    return json.loads(file.read_text())


if __name__ == '__main__':
  entry.run(main)
