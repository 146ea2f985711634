"""What is no folder of safetensors: the error names the way to one."""

import json
import pathlib
import shutil

import pytest

from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained.folder import Folder
from rolegen_jax.text.tokenizers import open_tokenizer
from tests.pretrained.checkpoints import TINY_QWEN3, write_folder

SECOND = 'model-00002-of-00002.safetensors'
POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4967215360\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('qwen3')
  write_folder(folder, TINY_QWEN3)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))


def refusal(path) -> str:
  with pytest.raises(DataError) as refused:
    Folder(path)
  assert '\n' not in str(refused.value)
  return str(refused.value)


NO_FOLDERS = {
  'Qwen/Qwen3-0.6B': '`hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B`',
  'https://huggingface.co/Qwen/Qwen3-0.6B': '`hf download Qwen/Qwen3-0.6B --local-dir',
  'https://huggingface.co/Qwen/Qwen3-0.6B/tree/main': '`hf download Qwen/Qwen3-0.6B --local-dir',
  'hf://google/gemma-3-1b-it': '`hf download google/gemma-3-1b-it --local-dir gemma-3-1b-it`',
  'hdfs://host/models/qwen3': 'hdfs://host/models/qwen3: is no folder of this machine or of a buck',
  'package:no_such': 'package:no_such: no such package is installed; must be package:NAME of',
  'package:../x': 'no such package is installed',
  'no_such_folder': 'no_such_folder: no such folder; must be the folder of a pretrained model',
  'x' * 5000: 'no such folder',
}


@pytest.mark.parametrize('path', NO_FOLDERS, ids=lambda path: path[:30])
def test_what_is_no_folder(path):
  assert NO_FOLDERS[path] in refusal(path)


def test_the_home_folder_and_variables(copy, monkeypatch):
  monkeypatch.setenv('HOME', str(copy.parent))
  monkeypatch.setenv('MODELS', str(copy.parent))
  assert Folder('~/copy').path == Folder('$MODELS/copy').path == copy


def test_the_folder_of_a_package(copy, monkeypatch):
  """No code of it is run."""
  package = copy.rename(copy.parent / 'package_with_a_model')
  (package / '__init__.py').write_text('raise RuntimeError')
  monkeypatch.syspath_prepend(copy.parent)
  assert Folder(f'package:{package.name}').path == package


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', SECOND])
def test_pointers_of_git_lfs(copy, name):
  (copy / name).write_text(POINTER)
  assert f'{copy / name}: is a pointer of Git LFS' in refusal(copy)
  assert '`git lfs pull`' in refusal(copy)


CONVERTED = {
  'pytorch_model.bin': "M.from_pretrained('{folder}').save_pretrained('converted')",
  'pytorch_model-00001-of-00002.bin': "M.from_pretrained('{folder}').save_pretrained('converted')",
  'consolidated.00.pth': "save_file(torch.load('{folder}/consolidated.00.pth', weights_only=True)",
  'model.pt': "weights_only=True), '{folder}/model.safetensors')",
  'tf_model.h5': 'must be model.safetensors',
}


@pytest.mark.parametrize('name', CONVERTED)
def test_weights_in_another_format(copy, name):
  for path in copy.glob('model*'):
    path.unlink()
  (copy / 'training_args.bin').touch()
  (copy / name).touch()
  message = refusal(copy)
  assert f'{copy / name}: the weights are not safetensors' in message
  assert CONVERTED[name].format(folder=copy) in message
  (copy / 'config.json').unlink()
  assert "must be the model in transformers' layout, with a config.json" in refusal(copy)


def test_a_file_in_place_of_its_folder(copy):
  assert (
    f'{copy / SECOND}: is a file; must be the folder of a pretrained model, or a .gguf'
    in refusal(copy / SECOND)
  )


@pytest.mark.parametrize('has_base', [False, True])
def test_adapters(copy, has_base):
  if not has_base:
    (copy / 'config.json').unlink()
  adapter = dict(peft_type='LORA', base_model_name_or_path='Qwen/Qwen3-0.6B')
  (copy / 'adapter_config.json').write_text(json.dumps(adapter))
  message = refusal(copy)
  assert "these are adapters of the base model 'Qwen/Qwen3-0.6B'" in message
  assert 'merge_and_unload()' in message


def test_a_cache_of_downloads(copy, tmp_path):
  snapshot = tmp_path / 'models--Qwen--Qwen3' / 'snapshots' / '0a1b'
  shutil.copytree(copy, snapshot)
  message = refusal(snapshot.parents[1])
  assert f'is a cache of downloads; must be the model in it, e.g. {snapshot}' in message
  assert Folder(snapshot).path == snapshot


def test_an_empty_folder(tmp_path):
  assert f'{tmp_path / "config.json"}: no such file' in refusal(tmp_path)


# Files that disagree with each other


def edit(path, **changes):
  content = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(content | changes))


def test_a_field_that_is_there_twice(copy):
  path = copy / 'config.json'
  path.write_text(path.read_text().replace('{', '{"rope_theta": 5.0, ', 1))
  assert "'rope_theta' is there twice, with different values" in refusal(copy)


def test_delimiters_of_other_tokenizers(copy):
  edit(copy / 'generation_config.json', eos_token_id=[0, 290])
  assert 'piece 290, which is eos_token_id in generation_config.json' in refusal(copy)
  edit(copy / 'generation_config.json', eos_token_id='0')
  assert "generation_config.json: eos_token_id='0'; must be the number" in refusal(copy)


def test_added_tokens_of_other_tokenizers(copy):
  path = copy / 'tokenizer_config.json'
  edit(path, added_tokens_decoder={'0': dict(content='<|endoftext|>')})
  edit(copy / 'added_tokens.json', **{'<|endoftext|>': 0})
  Folder(copy)
  edit(copy / 'added_tokens.json', **{'<think>': 350})
  assert "'<think>' is piece 350, tokenizer.json is read with it as None" in refusal(copy)
  (copy / 'added_tokens.json').unlink()
  edit(path, added_tokens_decoder={'1': dict(content='<|endoftext|>')})
  assert "'<|endoftext|>' is piece 1, tokenizer.json is read with it as 0" in refusal(copy)


def test_added_tokens_that_the_library_numbers_anew(copy):
  path = copy / 'tokenizer.json'
  content = json.loads(path.read_text())
  content['added_tokens'].append(content['added_tokens'][0] | dict(id=390, content='<think>'))
  path.write_text(json.dumps(content))
  assert (
    f"'<think>' is piece 390, tokenizer.json is read with it as {open_tokenizer(copy).size - 1}"
    in (refusal(copy))
  )
