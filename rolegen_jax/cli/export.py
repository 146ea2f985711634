"""Export the trained reasoner of a run in the Hugging Face format of the folder it came from.

  rolegen export --workdir=runs/mine --output=reasoner
  rolegen export --workdir=runs/mine --output=adapters --what=adapters

The model comes whole: adapters merged, our tokens appended. Adapters are what was added to a
frozen base, as PEFT names it.
"""

from absl import flags

from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError

_WORKDIR = path_flag(
  'workdir',
  None,
  'Folder of a run of rolegen train with reasoner.pretrained; that folder is read again.',
  required=True,
  urls=True,
)
_OUTPUT = path_flag('output', None, 'Folder to write.', required=True, urls=True)
_WHAT = flags.DEFINE_enum(
  'what',
  'model',
  ['model', 'adapters'],
  'The whole model, or what training added to a frozen base.',
)

_RETRAIN = flags.DEFINE_bool(
  'retrain',
  False,
  'Train what is missing, and again what was trained with other settings or on other files.',
)


def main() -> None:
  """Export what the flags ask for."""
  from rolegen_jax.pipeline.artifacts import saved_config
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.pipeline.run import train_models

  config = saved_config(_WORKDIR.value)
  reasoner = config.reasoner
  if not reasoner.pretrained:
    raise ConfigError(
      f'--workdir={_WORKDIR.value}: its reasoner was trained from scratch; '
      'must be a run with reasoner.pretrained=FOLDER'
    )
  if _WHAT.value == 'adapters' and reasoner.train == 'all':
    raise ConfigError(
      f'--workdir={_WORKDIR.value}: all of its reasoner was trained; '
      '--what=adapters needs a run with reasoner.train=lora or frozen'
    )
  run = open_run(config, _WORKDIR.value, may_train=_RETRAIN.value, retrain=_RETRAIN.value)
  params = train_models(*prepare_inputs(run)).calibrated.load()['reasoner']
  from rolegen_jax.pretrained.export import export, export_adapters

  if _WHAT.value == 'model':
    export(params, run.rolegen.vocab, reasoner.pretrained, _OUTPUT.value, reasoner.lora)
  else:
    export_adapters(params, reasoner.lora, reasoner.pretrained, _OUTPUT.value)
  print(f'{_WHAT.value} -> {_OUTPUT.value}')
