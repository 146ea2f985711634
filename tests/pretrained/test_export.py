"""Out again, and in again; folders whose tokenizer has semantic-ID tokens."""

import hf
import jax
import numpy as np
import pytest
from ours import Ours
from safetensors import safe_open

torch = pytest.importorskip(
  'torch', reason='transformers and torch are not installed: requirements-peers.txt'
)
transformers = pytest.importorskip(
  'transformers', reason='transformers and torch are not installed: requirements-peers.txt'
)

from rolegen_jax.pretrained.export import export
from rolegen_jax.text.tokenizers import TextVocabulary, open_tokenizer


def tensors(folder) -> dict:
  found = {}
  for path in sorted(folder.glob('model*.safetensors')):
    with safe_open(path, framework='numpy') as file:
      found |= {name: file.get_tensor(name) for name in file.keys()}
  return found


def bits(array) -> bytes:
  return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
  'family, dtype', [('qwen3', 'bfloat16'), ('llama', 'float16'), ('gemma3', 'float32')]
)
def test_round_trip(tmp_path, family, dtype):
  """In, out, and in again; and transformers reads what we wrote, our tokens included."""
  hf.save_folder(family, tmp_path / 'in', dtype)
  ours = Ours(tmp_path / 'in')
  export(ours.params, ours.vocab, tmp_path / 'in', tmp_path / 'out', file_bytes=100_000)
  before, after = tensors(tmp_path / 'in'), tensors(tmp_path / 'out')
  text, size = (
    TextVocabulary(ours.vocab, open_tokenizer(tmp_path / 'in')),
    open_tokenizer(tmp_path / 'in').size,
  )
  assert len(list((tmp_path / 'out').glob('model*.safetensors'))) > 2
  assert set(after) == set(before)
  for name, array in before.items():
    rows = slice(
      0, size if len(after[name]) != len(array) else None
    )  # spare rows may hold our tokens
    assert after[name].dtype == array.dtype and bits(after[name][rows]) == bits(array[rows]), name

  again = Ours(tmp_path / 'out')
  assert again.vocab == ours.vocab
  spare = slice(ours.first + size, ours.first + ours.pieces)
  if dtype == 'float32':
    for (path, a), b in zip(
      jax.tree_util.tree_flatten_with_path(ours.params)[0], jax.tree.leaves(again.params)
    ):
      a, b = (
        np.delete(np.asarray(x), spare, axis=0)
        if path[0].key in ('tokens', 'readout')
        else np.asarray(x)
        for x in (a, b)
      )
      assert bits(a) == bits(b), path

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', dtype=torch.float32, attn_implementation='eager'
  ).eval()
  own = np.array([3, 9, 80, ours.vocab.blocks['sid1'][0] + 2])
  tokens = np.concatenate([ours.first + np.arange(5, 25), own]).reshape(4, 6)
  ids = np.where(
    tokens >= ours.first, tokens - ours.first, text.ids[np.minimum(tokens, len(text.ids) - 1)]
  )
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  valid = np.ones(ids.shape, np.int32)

  def program(r, tokens):
    from rolegen_jax.models.attention import causal

    return r.logits(r.hidden(tokens, np.arange(6), causal(valid)), 0, ours.first + ours.pieces)

  found = again.run('all', program, tokens)
  assert np.abs(found[..., ours.first : ours.first + size] - expected[..., :size]).max() <= 1e-4
  assert np.abs(found[..., : ours.first] - expected[..., text.ids]).max() <= 1e-4
  assert (
    transformers.AutoTokenizer.from_pretrained(tmp_path / 'out').convert_tokens_to_ids(
      '<|role_trigger|>'
    )
    == text.ids[ours.vocab.role(0)]
  )


def test_semantic_id_tokens_of_a_checkpoint_are_ours(tmp_path):
  """As OpenOneRec's: Qwen3 whose tokenizer knows more codes a level than we use."""
  names = ['<|sid_begin|>', '<|sid_end|>'] + [
    f'<s_{level}_{code}>' for level in 'abc' for code in range(20)
  ]
  theirs = hf.save_folder('qwen3', tmp_path, more=names)
  ours, tokenizer = Ours(tmp_path), open_tokenizer(tmp_path)
  table, rows = (
    theirs.get_input_embeddings().weight.detach().numpy(),
    np.asarray(ours.params['tokens']),
  )
  item = np.array([4, 0, 7])
  for level, (token, name) in enumerate(
    zip(ours.vocab.sid(item), ('<s_a_4>', '<s_b_0>', '<s_c_7>'))
  ):
    np.testing.assert_array_equal(rows[token], table[tokenizer.id_of(name)], err_msg=str(level))
  text = TextVocabulary(ours.vocab, tokenizer)
  read = text.encode('red <|sid_begin|><s_a_4><s_b_0><s_c_7><|sid_end|>')
  assert (
    read[-4:-1] == ours.vocab.sid(item).tolist()
    and text.decode(read) == 'red <|sid_begin|><s_a_4><s_b_0><s_c_7><|sid_end|>'
  )
  # What is said of an item in their tokens and in ours is the same to the model.
  ids = np.array([[*tokenizer.encode('red <s_a_4><s_b_0><s_c_7> shoe')]] * 4)
  tokens = np.array([text.encode('red <s_a_4><s_b_0><s_c_7> shoe')] * 4)
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  assert (tokens < ours.first).sum() == 12
  found = ours.logits(tokens - ours.first, np.ones(ids.shape, np.int32))
  assert np.abs(found - expected).max() <= 1e-4
