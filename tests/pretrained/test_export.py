"""Loading, exporting and loading again; folders whose tokenizer has semantic-ID tokens."""

import jax
import numpy as np
import pytest
from safetensors import safe_open

from rolegen_jax.pretrained.export import export
from rolegen_jax.text.tokenizers import TextVocabulary, open_tokenizer
from tests.pretrained import transformers_models
from tests.pretrained.loaded import LoadedReasoner

MISSING = 'transformers and torch are not installed: requirements-third-party.txt'
torch = pytest.importorskip('torch', reason=MISSING)
transformers = pytest.importorskip('transformers', reason=MISSING)


def read_model(folder) -> dict:
  arrays = {}
  for path in sorted(folder.glob('model*.safetensors')):
    with safe_open(path, framework='numpy') as file:
      arrays |= {name: file.get_tensor(name) for name in file.keys()}
  return arrays


def bits(array) -> bytes:
  return np.ascontiguousarray(array).tobytes()


def assert_same_params(ours, again, spare_rows):
  """All parameters bit for bit; the spare rows of the tables may differ."""
  leaves = jax.tree_util.tree_flatten_with_path(ours.params)[0]
  for (path, before), after in zip(leaves, jax.tree.leaves(again.params), strict=True):
    before, after = np.asarray(before), np.asarray(after)
    if path[0].key in ('tokens', 'readout'):
      before, after = (np.delete(table, spare_rows, axis=0) for table in (before, after))
    assert bits(before) == bits(after), path


@pytest.mark.parametrize(
  'family, dtype', [('qwen3', 'bfloat16'), ('llama', 'float16'), ('gemma3', 'float32')]
)
def test_a_round_trip_is_exact_and_transformers_reads_it(tmp_path, family, dtype):
  source, target = tmp_path / 'in', tmp_path / 'out'
  transformers_models.save_model(family, source, dtype)
  ours = LoadedReasoner(source)
  export(ours.params, ours.vocab, source, target, file_bytes=100_000)
  before, after = read_model(source), read_model(target)
  text = TextVocabulary(ours.vocab, open_tokenizer(source))
  size = open_tokenizer(source).size
  assert len(list(target.glob('model*.safetensors'))) > 2
  assert set(after) == set(before)
  for name, array in before.items():
    # Spare rows may hold our tokens.
    rows = slice(0, size if len(after[name]) != len(array) else None)
    assert after[name].dtype == array.dtype, name
    assert bits(after[name][rows]) == bits(array[rows]), name

  again = LoadedReasoner(target)
  assert again.vocab == ours.vocab
  if dtype == 'float32':
    assert_same_params(ours, again, slice(ours.first + size, ours.first + ours.pieces))

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    target, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  own = np.array([3, 9, 80, ours.vocab.blocks['sid1'][0] + 2])
  tokens = np.concatenate([ours.first + np.arange(5, 25), own]).reshape(4, 6)
  own_ids = text.ids[np.minimum(tokens, len(text.ids) - 1)]
  ids = np.where(tokens >= ours.first, tokens - ours.first, own_ids)
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  logits = again.all_logits(tokens)
  text_logits = logits[..., ours.first : ours.first + size]
  assert np.abs(text_logits - expected[..., :size]).max() <= 1e-4
  assert np.abs(logits[..., : ours.first] - expected[..., text.ids]).max() <= 1e-4
  their_tokenizer = transformers.AutoTokenizer.from_pretrained(target)
  role_id = their_tokenizer.convert_tokens_to_ids('<|role_trigger|>')
  assert role_id == text.ids[ours.vocab.role(0)]


def test_semantic_id_tokens_of_a_checkpoint_are_ours(tmp_path):
  """As OpenOneRec's: Qwen3 whose tokenizer knows more codes per level than we use."""
  names = ('<|sid_begin|>', '<|sid_end|>') + tuple(
    f'<s_{level}_{code}>' for level in 'abc' for code in range(20)
  )
  theirs = transformers_models.save_model('qwen3', tmp_path, names=names)
  ours, tokenizer = LoadedReasoner(tmp_path), open_tokenizer(tmp_path)
  table = theirs.get_input_embeddings().weight.detach().numpy()
  rows = np.asarray(ours.params['tokens'])
  codes = np.array([4, 0, 7])
  for token, name in zip(ours.vocab.sid(codes), ('<s_a_4>', '<s_b_0>', '<s_c_7>')):
    np.testing.assert_array_equal(rows[token], table[tokenizer.id_of(name)], err_msg=name)
  text = TextVocabulary(ours.vocab, tokenizer)
  sentence = 'red <|sid_begin|><s_a_4><s_b_0><s_c_7><|sid_end|>'
  encoded = text.encode(sentence)
  assert encoded[-4:-1] == ours.vocab.sid(codes).tolist()
  assert text.decode(encoded) == sentence
  # A sentence in their tokens and in ours is the same to the model.
  sentence = 'red <s_a_4><s_b_0><s_c_7> shoe'
  ids = np.array([tokenizer.encode(sentence)] * 4)
  tokens = np.array([text.encode(sentence)] * 4)
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  assert (tokens < ours.first).sum() == 12
  logits = ours.logits(tokens - ours.first, np.ones(ids.shape, np.int32))
  assert np.abs(logits - expected).max() <= 1e-4
