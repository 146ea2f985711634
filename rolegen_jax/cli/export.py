"""Export the reasoner of a run in the Hugging Face format it came in, or the decoder as StableHLO.

  rolegen export --workdir=runs/mine --output=reasoner
  rolegen export --workdir=runs/mine --output=adapters --what=adapters
  rolegen export --workdir=runs/demo --output=decoder --what=decoder --platforms=cpu,cuda

The model comes whole: adapters merged, our tokens appended. Adapters are what was added to a
frozen base, as PEFT names it. The decoder is what recommends: a program for each platform, its
tables and a manifest, which docs/run_decoder.py runs without this package.
"""

from absl import flags

from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import Config, ConfigError

_WORKDIR = path_flag(
  'workdir',
  None,
  'Folder of a run of rolegen train; model and adapters: with reasoner.pretrained, which is read '
  'again.',
  required=True,
  urls=True,
)
_OUTPUT = path_flag('output', None, 'Folder to write.', required=True, urls=True)
_WHAT = flags.DEFINE_enum(
  'what',
  'model',
  ['model', 'adapters', 'decoder'],
  'The whole reasoner, what training added to a frozen base, or the program that recommends.',
)
_PLATFORMS = flags.DEFINE_list(
  'platforms', ['cpu', 'cuda', 'tpu'], 'decoder: some of cpu, cuda and tpu; any machine will do.'
)
_BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['1', '8'], 'decoder: users of a call.')

_RETRAIN = flags.DEFINE_bool(
  'retrain',
  False,
  'Train what is missing, and again what was trained with other settings or on other files.',
)


def main() -> None:
  """Export what the flags ask for."""
  from rolegen_jax.pipeline.artifacts import current, saved_config

  config = saved_config(current(_WORKDIR.value))
  if _WHAT.value == 'decoder':
    platforms, sizes = _platforms(), _batch_sizes()
    _decoder(config, platforms, sizes)
  else:
    _reasoner(config)
  print(f'{_WHAT.value} -> {_OUTPUT.value}')


def _platforms() -> list[str]:
  wrong = [name for name in _PLATFORMS.value if name not in ('cpu', 'cuda', 'tpu')]
  if wrong or not _PLATFORMS.value:
    listed = ','.join(_PLATFORMS.value)
    raise ConfigError(f'--platforms={listed}: must be some of cpu, cuda, tpu')
  return sorted(set(_PLATFORMS.value))


def _batch_sizes() -> list[int]:
  listed = ','.join(_BATCH_SIZES.value)
  sizes = {int(size) if size.isdecimal() else 0 for size in _BATCH_SIZES.value}
  if not sizes or min(sizes) < 1 or max(sizes) > 4096:
    raise ConfigError(f'--batch_sizes={listed}: must be whole numbers from 1 to 4096')
  return sorted(sizes)


def _decoder(config: Config, platforms: list[str], sizes: list[int]) -> None:
  from rolegen_jax.pipeline.artifacts import current
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.pipeline.run import train_models
  from rolegen_jax.serving import program

  program.require_folder(_OUTPUT.value)
  folder = current(_WORKDIR.value)
  run = open_run(config, folder, may_train=_RETRAIN.value, retrain=_RETRAIN.value)
  run, inputs = prepare_inputs(run)
  params = train_models(run, inputs).calibrated.load()
  item_ids = inputs.log.items['item_id'].to_list()
  decoder = program.Decoder(run.rolegen, params, inputs.trie, inputs.excitation, item_ids)
  program.write(decoder, _OUTPUT.value, platforms, sizes)


def _reasoner(config: Config) -> None:
  from rolegen_jax.pipeline.artifacts import current
  from rolegen_jax.pipeline.context import open_run
  from rolegen_jax.pipeline.inputs import prepare_inputs
  from rolegen_jax.pipeline.run import train_models

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
  folder = current(_WORKDIR.value)
  run = open_run(config, folder, may_train=_RETRAIN.value, retrain=_RETRAIN.value)
  params = train_models(*prepare_inputs(run)).calibrated.load()['reasoner']
  from rolegen_jax.pretrained.export import export, export_adapters

  if _WHAT.value == 'model':
    export(params, run.rolegen.vocab, reasoner.pretrained, _OUTPUT.value, reasoner.lora)
  else:
    export_adapters(params, reasoner.lora, reasoner.pretrained, _OUTPUT.value)
