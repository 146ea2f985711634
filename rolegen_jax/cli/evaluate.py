"""Evaluates a trained run again and rewrites its report; trains only what is missing.

python -m rolegen_jax evaluate --workdir=runs/demo --set evaluation.bootstrap=10000
"""

from absl import flags

from rolegen_jax import overrides

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run of rolegen train.', required=True)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)


def main() -> None:
  from rolegen_jax.pipeline.run import Run, saved_config

  config = overrides.apply(saved_config(_WORKDIR.value), _SET.value)
  Run(config, _WORKDIR.value).report(print_tables=True)
