"""Throughput per chip of every phase of a config on the devices at hand, as JSON with provenance.

  python -m rolegen_jax.bench --experiment=demo --workdir=runs/demo --json=experiments/benchmarks/demo_cpu.json
  python -m rolegen_jax.bench --compare=before.json,after.json

The log is prepared in --workdir if it is not there yet; models are freshly initialised, since fixed shapes take as long whatever
the weights. --input=random needs no log: batches of the right shapes over a catalogue of --items.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from rolegen_jax import commands
from rolegen_jax.config import ConfigError

_EXPERIMENT = flags.DEFINE_string('experiment', 'demo', 'Name of a file in experiments/, or NAME:ARG.')
_WORKDIR = flags.DEFINE_string('workdir', '', 'Run folder that holds, or gets, the prepared log; needed with --input=log.')
_SET = flags.DEFINE_multi_string('set', [], 'Replace one field of the config: section.field=value. May be repeated.')
_PHASES = flags.DEFINE_list('phases', ['all'], 'Some of input, rollout, execution, reflection, step, recommend; or all.')
_INPUT = flags.DEFINE_enum('input', 'log', ['log', 'random'], 'Where batches come from.')
_ITEMS = flags.DEFINE_integer('items', 100_000, 'Catalogue size with --input=random.', lower_bound=1)
_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed calls of each phase.', lower_bound=3)
_JSON = flags.DEFINE_string('json', '', 'Also write everything to this file.')
_COMPARE = flags.DEFINE_list('compare', [], 'Two JSON files, FIRST,SECOND: print ratios of medians instead of running.')


def show(found: dict) -> str:
  lines = [f'{found["experiment"]} on {found["provenance"]["device_kind"]}, {found["input"]} input; medians of {found["repeats"]} calls',
           f'{"phase":<12} {"median":>10} {"quartiles":>19} {"compile":>8} {"MFU":>7} {"HBM":>7}  per second and chip']
  share = lambda x: '-' if x is None else f'{100 * x:.1f} %'
  for name, p in found['phases'].items():
    ms = lambda s: f'{1e3 * s:.1f}'
    rates = ', '.join(f'{unit} {rate:,.0f}' for unit, rate in p['per_second_per_chip'].items())
    lines.append(f'{name:<12} {ms(p["median_s"]):>7} ms {ms(p["quartiles_s"][0]):>8} to {ms(p["quartiles_s"][1]):>7} {p["compile_s"]:>6.1f} s'
                 f' {share(p["mfu"]):>7} {share(p["hbm_share"]):>7}  {rates}')
  memory = found['peak_memory']
  return '\n'.join([*lines, f'peak memory {memory["bytes"] / 2**30:.2f} GiB ({memory["of"]}); {found["mfu_convention"]}'])


def compare(first: dict, second: dict) -> str:
  """Ratios of medians by phase. Raises ConfigError on different devices: such a ratio says nothing about the code."""
  a, b = (f['provenance']['device_kind'] for f in (first, second))
  if a != b:
    raise ConfigError(f'--compare: the first ran on {a}, the second on {b}; both must be of equal devices')
  both = [name for name in first['phases'] if name in second['phases']]
  if not both:
    raise ConfigError('--compare: no phase is in both files')
  note = '' if first['provenance']['config_digest'] == second['provenance']['config_digest'] else '\nthe configs differ'
  speed = lambda name: first['phases'][name]['median_s'] / second['phases'][name]['median_s']
  return '\n'.join(f'{name:<12} the second is {speed(name):.2f} times as fast' for name in both) + note


def _read(path: str) -> dict:
  try:
    return json.loads(pathlib.Path(path).read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise ConfigError(f'--compare={path}: cannot be read ({error}); must be a file that --json wrote') from error


def main() -> None:
  if _COMPARE.value:
    if len(_COMPARE.value) != 2:
      raise ConfigError('--compare: must be two files, FIRST,SECOND')
    print(compare(*map(_read, _COMPARE.value)))
    return
  config = commands.experiment(_EXPERIMENT.value, _SET.value)
  if _INPUT.value == 'log' and not _WORKDIR.value:
    raise ConfigError('--workdir: must name a run folder with --input=log')
  from rolegen_jax.data.files import write_json
  from rolegen_jax import throughput

  found = throughput.measure(config, _WORKDIR.value, _PHASES.value, _INPUT.value, _ITEMS.value, _REPEATS.value)
  print(show(found))
  if _JSON.value:
    write_json(found, pathlib.Path(_JSON.value))
    print(f'-> {_JSON.value}')


if __name__ == '__main__':
  commands.run(main)
