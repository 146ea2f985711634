"""Append new days to a run and continue its training; the version before stays until that is done.

  rolegen update --workdir=runs/shop --data=my_shop/2026-11-29

`--data` is a log of the data contract with the events of the new days alone, and its items those
that are new; a relative path is under $ROLEGEN_DATA. The run is first asked about the new days,
then trained on them, with some of the days before. The same command continues after any
interruption. recommend, serve, evaluate and export use the newest version;

  rolegen update --workdir=runs/shop --go_back=2026-11-28

puts another one to use.
"""

from absl import flags

from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True, urls=True)
_DATA = path_flag(
  'data', '', 'The new days: what data.path is of a log in the format contract.', urls=True
)
_GO_BACK = flags.DEFINE_string(
  'go_back', '', 'Version to use from now on: its name in WORKDIR/versions, or first.'
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_RETRAIN = flags.DEFINE_bool(
  'retrain', False, 'Make a version again that was made with other settings or of other files.'
)


def main() -> None:
  """Update the run that the flags name, or go back to another version of it."""
  if bool(_DATA.value) == bool(_GO_BACK.value):
    raise ConfigError('update: must have one of --data and --go_back')
  from rolegen_jax.pipeline import versions

  if _GO_BACK.value:
    versions.go_back(_WORKDIR.value, _GO_BACK.value)
  else:
    versions.update(_WORKDIR.value, _DATA.value, _SET.value, _RETRAIN.value)
