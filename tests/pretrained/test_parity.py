"""The same numbers as transformers, on random models of the true architectures and file formats."""

import numpy as np
import pytest

from tests.pretrained import transformers_models
from tests.pretrained.loaded import LoadedReasoner

MISSING = 'transformers and torch are not installed: requirements-third-party.txt'
torch = pytest.importorskip('torch', reason=MISSING)
pytest.importorskip('transformers', reason=MISSING)

B, T, CLOSE = 4, 24, 1e-4


@pytest.fixture(scope='module', params=transformers_models.FAMILIES)
def pair(request, tmp_path_factory):
  """(their model, ours)."""
  folder = tmp_path_factory.mktemp(request.param)
  theirs = transformers_models.save_model(request.param, folder)
  return theirs, LoadedReasoner(folder)


def batch(padding: str):
  """(ids, valid) int32 [B, T], with rows of several lengths."""
  ids = np.random.default_rng(1).integers(3, 300, (B, T)).astype(np.int32)
  length = np.array([T, 5, 13, 20])[:, None] if padding != 'none' else np.full((B, 1), T)
  place = np.arange(T)
  valid = place >= T - length if padding == 'left' else place < length
  return ids, valid.astype(np.int32)


def their_logits(model, ids, valid):
  with torch.no_grad():
    output = model(torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(valid))
  return output.logits.float().numpy()


@pytest.mark.parametrize('padding', ['none', 'left', 'right'])
def test_logits_of_whole_sequences(pair, padding):
  theirs, ours = pair
  ids, valid = batch(padding)
  expected, logits = their_logits(theirs, ids, valid), ours.logits(ids, valid)
  assert np.abs(expected[valid > 0]).max() > 3 and np.ptp(expected, axis=-1).min() > 1
  assert np.abs(logits - expected)[valid > 0].max() <= CLOSE


def test_positions_that_count_from_the_first_real_token(pair):
  theirs, ours = pair
  ids, valid = batch('left')
  positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
  difference = ours.logits(ids, valid, positions) - their_logits(theirs, ids, valid)
  assert np.abs(difference)[valid > 0].max() <= CLOSE


@pytest.mark.parametrize('padding, shared', [('none', 0), ('left', 4)])
def test_decoding_token_by_token(pair, padding, shared):
  theirs, ours = pair
  ids, valid = batch(padding)
  valid[:, -1] = 1
  prompt = 20 if padding == 'left' else 3  # a row's prompt must hold a real token
  logits, _ = ours.decode(ids, valid, prompt, shared)
  expected = their_logits(theirs, ids, valid)[:, prompt - 1 :]
  assert np.abs(logits - expected)[valid[:, prompt - 1 :] > 0].max() <= CLOSE


def test_greedy_generation(pair):
  theirs, ours = pair
  ids, valid = batch('left')
  _, tokens = ours.decode(ids, valid, T, 0, greedy=64)
  with torch.no_grad():
    theirs.generation_config.eos_token_id = None
    generated = theirs.generate(
      torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(valid),
      do_sample=False,
      max_new_tokens=64,
      pad_token_id=0,
    )
  expected = generated[:, T:].numpy()
  assert expected.shape == (B, 64) and len(set(expected.ravel().tolist())) > 12
  np.testing.assert_array_equal(tokens, expected)
