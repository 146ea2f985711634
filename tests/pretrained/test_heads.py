"""Heads and token tables as transformers reads them: without a head, with another, with spare
pieces."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rolegen_jax.data.files import DataError
from rolegen_jax.pretrained.export import export
from rolegen_jax.pretrained.folder import Folder
from rolegen_jax.text.tokenizers import TextVocabulary, open_tokenizer
from tests.pretrained import transformers_models
from tests.pretrained.checkpoints import TINY_QWEN3, read_tensors, write_folder, write_tokenizer
from tests.pretrained.loaded import LoadedReasoner

MISSING = 'transformers and torch are not installed: requirements-third-party.txt'
HEAD, TABLE = 'lm_head.weight', 'model.embed_tokens.weight'
CLOSE = 1e-4
IDS = np.random.default_rng(1).integers(3, 250, (4, 12)).astype(np.int32)


@pytest.fixture(scope='module')
def third_party():
  """(torch, transformers)."""
  return [pytest.importorskip(name, reason=MISSING) for name in ('torch', 'transformers')]


def their_logits(third_party, folder) -> np.ndarray:
  torch, transformers = third_party
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  with torch.no_grad():
    return model(torch.tensor(IDS, dtype=torch.long)).logits.numpy()


def our_logits(ours) -> np.ndarray:
  return ours.logits(IDS, np.ones(IDS.shape, np.int32))


def edit_config(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize('family', ['qwen3', 'gemma3'])
def test_a_model_without_a_head(third_party, tmp_path, family):
  """As Qwen3-Embedding is published."""
  torch, transformers = third_party
  model = transformers_models.random_model(family)
  model.model.save_pretrained(tmp_path, max_shard_size='200KB')
  transformers_models.write_json_tokenizer(tmp_path)
  tensors = read_tensors(tmp_path)
  assert 'embed_tokens.weight' in tensors and HEAD not in tensors
  edit_config(tmp_path, bos_token_id=0, eos_token_id=1)
  logits = our_logits(LoadedReasoner(tmp_path))
  assert np.abs(logits - their_logits(third_party, tmp_path)).max() <= CLOSE
  with torch.no_grad():
    hidden = transformers.AutoModel.from_pretrained(
      tmp_path, dtype=torch.float32, attn_implementation='eager'
    )(torch.tensor(IDS, dtype=torch.long))[0]
  if family == 'qwen3':  # whose logits have no cap
    expected = hidden.numpy() @ tensors['embed_tokens.weight'].T
    assert np.abs(logits - expected).max() <= CLOSE


def test_a_head_that_differs_is_not_tied_whatever_the_flag_says(third_party, tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  transformers_models.save_model('qwen3', source, tie_word_embeddings=False)
  tied = our_logits(LoadedReasoner(source))
  edit_config(source, tie_word_embeddings=True)
  ours = LoadedReasoner(source)
  logits = our_logits(ours)
  assert not ours.config.reasoner.transformer.tied
  assert np.abs(logits - their_logits(third_party, source)).max() <= CLOSE
  np.testing.assert_array_equal(logits, tied)
  export(ours.params, ours.vocab, source, target)
  written = json.loads((target / 'config.json').read_text())
  assert written['tie_word_embeddings'] is False and HEAD in read_tensors(target)


# Without transformers


def untied(folder, head) -> None:
  """A tied folder with a head beside its table."""
  write_folder(folder, TINY_QWEN3, files=1)
  path = next(folder.glob('*.safetensors'))
  tensors = read_tensors(folder)
  save_file(tensors | {HEAD: head(tensors[TABLE])}, path)
  index = folder / 'model.safetensors.index.json'
  index.unlink()
  path.rename(folder / 'model.safetensors')


def moved(table):
  table = table.copy()
  table[-1, -1] += 1
  return table


def test_the_flag_against_the_head(tmp_path):
  untied(tmp_path / 'same', np.copy)
  assert Folder(tmp_path / 'same').transformer.tied
  untied(tmp_path / 'other', moved)
  assert not Folder(tmp_path / 'other').transformer.tied
  untied(tmp_path / 'short', lambda table: table[:-1].copy())
  with pytest.raises(DataError, match=r'lm_head.weight has shape \[399, 32\]; must be \[400, 32\]'):
    Folder(tmp_path / 'short')
  write_folder(tmp_path / 'none', TINY_QWEN3)
  for flag, said in ((False, 'false'), (None, 'absent, which means false')):
    edit_config(tmp_path / 'none', tie_word_embeddings=flag)
    with pytest.raises(DataError, match=f'no tensor lm_head.*tie_word_embeddings={said};'):
      Folder(tmp_path / 'none')


def test_a_delimiter_without_a_row(tmp_path):
  """As Gemma 3's text models have for images: it is refused in a text, and never looked up."""
  write_tokenizer(tmp_path)
  rows = open_tokenizer(tmp_path).size
  write_folder(tmp_path, TINY_QWEN3 | dict(vocab_size=rows))
  content = json.loads((tmp_path / 'tokenizer.json').read_text())
  image = content['added_tokens'][0] | dict(id=rows, content='<image>')
  content['added_tokens'].append(image)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  ours = LoadedReasoner(tmp_path)
  text = TextVocabulary(ours.vocab, Folder(tmp_path).tokenizer)
  assert max(text.encode('red code')) < ours.vocab.size
  with pytest.raises(DataError, match=f"holds '<image>', piece {rows} of tokenizer.json"):
    text.encode('red <image> code')
  export(ours.params, ours.vocab, tmp_path, tmp_path / 'out')
  again = LoadedReasoner(tmp_path / 'out')
  assert again.vocab == ours.vocab
  own = np.asarray(ours.params['tokens'])[: ours.first]
  np.testing.assert_array_equal(np.asarray(again.params['tokens'])[: ours.first], own)
