"""Run every stage of an experiment, from the log to the report.

  rolegen train --experiment=demo --workdir=runs/demo --set loop.worlds=6 --set loop.kl=0.05

The same command continues after any interruption. A stage that was trained with other settings or
on other files is an error, or trained again with --retrain.

  rolegen train --experiment=demo --workdir=runs/demo --profile=loop:10-14 --tracker=mlflow

traces five steps for xprof into runs/demo/profiles/ and reports metrics to MLflow too.

  rolegen train --experiment=contract --set data.path=shop --warm_start=runs/old --workdir=runs/new

starts from the semantic IDs, parameters and optimizer moments of another run. `rolegen update`
appends days to a run.
"""

from absl import flags

from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.runtime import storage

_EXPERIMENT = flags.DEFINE_string(
  'experiment', 'demo', 'Name of a file in experiments/, or the path of one; NAME:ARG passes ARG.'
)
_WORKDIR = path_flag(
  'workdir',
  None,
  'Run folder: outputs, checkpoints, report. Made if absent.',
  required=True,
  urls=True,
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'Replace one field of the config: section.field=value. May be repeated.'
)
_WARM_START = path_flag(
  'warm_start', '', 'Run folder whose models this run starts from; default: none.', urls=True
)
_RETRAIN = flags.DEFINE_bool(
  'retrain', False, 'Train again what was trained with other settings or on other files.'
)
_PROFILE = flags.DEFINE_list(
  'profile', [], 'Trace these steps for xprof: STAGE:FIRST-LAST, several separated by commas.'
)
_PROFILE_PROCESSES = flags.DEFINE_list(
  'profile_processes', ['0'], 'Processes that trace: numbers separated by commas, or all.'
)
_TRACKER = flags.DEFINE_enum(
  'tracker', None, ['wandb', 'mlflow'], 'Report metrics there too (requirements-trackers.txt).'
)


def main() -> None:
  """Train and evaluate the run that the flags name."""
  config = entry.experiment(_EXPERIMENT.value, _SET.value)
  storage.path(_WORKDIR.value)  # what is wrong with a bucket is said before jax is imported
  if _WARM_START.value:
    from rolegen_jax.pipeline.versions import warm_started

    config = warm_started(config, _WARM_START.value)
  from rolegen_jax.pipeline.run import train
  from rolegen_jax.runtime import distributed
  from rolegen_jax.training import profiling, trackers
  from rolegen_jax.training.fit import Observers

  workdir, kind = _WORKDIR.value, _TRACKER.value
  profile = profiling.parse(_PROFILE.value, _PROFILE_PROCESSES.value, config, workdir)
  tracking = None
  if kind:
    tracking = distributed.once(lambda: trackers.Tracking(kind, config, workdir))
  train(config, workdir, retrain=_RETRAIN.value, observers=Observers(profile, tracking))
