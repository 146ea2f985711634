"""Compile a config's real programs for chips that are not here.

  rolegen compile_check --experiment=pod:v5e_16 --topology=tpu:v5e:4x4 --json=check.json
  rolegen compile_check --experiment=pod:v5p_128 --topology=tpu:v5p:4x4x8 --search
  rolegen compile_check --experiment=pod:v5e_16 --topology=tpu:v5e:4x4 \\
    --set reasoner.pretrained=experiments/published/qwen3_0.6b.json --set reasoner.train=lora

Does it fit, what does it send, how fast could it be at best? Nothing runs on a chip and no data is
read; of a pretrained reasoner its config.json alone. Exit code 2 when a program does not fit, with
the compiler's sizes and what to change.
"""

import json
from typing import Any

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError, digest, to_dict
from rolegen_jax.perf.aot import topology

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'pod:v5e_16', 'Name of a file in experiments/, or the path of one; NAME:ARG.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'tpu:v5e:4x4, tpu:v6e:16x16:slices=2, gpu:h100:8x8 (hosts x GPUs of a host).',
  required=True,
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_PROGRAMS = flags.DEFINE_list(
  'programs', ['step', 'recommend'], 'Which to compile: step, recommend.'
)
_ITEMS = flags.DEFINE_integer(
  'items',
  1_000_000,
  'Catalogue size that the tables on the device have room for.',
  lower_bound=1,
)
_LEVEL = flags.DEFINE_string(
  'optimization_level',
  '',
  'XLA effort: O0 compiles faster and plans memory less well; empty = the default.',
)
_JSON = path_flag('json', '', 'Also write everything to this file.', urls=True)
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Try mesh shapes and remat policies for these chips and rank those that fit.'
)
_LIMIT = flags.DEFINE_integer(
  'search_limit', 12, 'Compile at most so many candidates.', lower_bound=1
)


def main() -> None:
  """Compile what the flags name and print what it needs."""
  config, place = entry.experiment(_EXPERIMENT.value, _SET.value), topology.parse(_TOPOLOGY.value)
  if config.reasoner.pretrained:
    from rolegen_jax.pretrained import folder

    config = folder.sized(config).validated()
  topology.prepare()
  import jax

  from rolegen_jax.perf.aot import check, programs, report
  from rolegen_jax.runtime.provenance import machine

  if not _PROGRAMS.value or set(_PROGRAMS.value) - set(programs.PROGRAMS):
    raise ConfigError(
      f'--programs={",".join(_PROGRAMS.value)}: must be of {", ".join(programs.PROGRAMS)}'
    )
  if _LEVEL.value:
    jax.config.update('jax_optimization_level', _LEVEL.value)
  devices = topology.devices(place)
  known = machine()
  result: dict[str, Any] = dict(
    experiment=config.name,
    topology=place.text,
    items=_ITEMS.value,
    config=to_dict(config),
    chip_source=place.chip.source,
    when=known['when'],
    commit=known['commit'],
    config_digest=digest(config),
    versions=known['versions'] | dict(compiler=topology.compiler(place)),
    optimization_level=_LEVEL.value or 'default',
    assumptions=check.ASSUMPTIONS,
  )
  failures = []
  if _SEARCH.value:
    results = report.search_meshes(config, place, devices, _ITEMS.value, _LIMIT.value)
    print(report.show_search(results))
    result['search'] = results
    if not results[0]['fits']:
      failures = ['nothing that was tried fits:', results[0]['error']]
  else:
    result['programs'] = []
    for program in _PROGRAMS.value:
      try:
        examined = report.examine(config, place, devices, program, _ITEMS.value)
      except check.DoesNotFit as error:
        examined = dict(program=program, error=str(error))
        failures.append(str(error))
      result['programs'].append(examined)
    if any('roofline' in examined for examined in result['programs']):
      print('assumes: ' + '; '.join(check.ASSUMPTIONS))
  if _JSON.value:
    from rolegen_jax.data.files import write_json

    write_json(json.loads(json.dumps(result, default=str)), _JSON.value)
  if failures:
    raise check.DoesNotFit('\n'.join(failures))
