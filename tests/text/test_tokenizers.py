"""Both formats behind one interface, and our tokens in them."""

import numpy as np
import pytest
import tokenizers as library

from rolegen_jax.config import Config
from rolegen_jax.data.files import DataError
from rolegen_jax.text import tokenizers as lib
from rolegen_jax.vocab import Vocabulary

VOCAB = Vocabulary(levels=3, codes=4, text_pieces=500)
WORDS = 'red blue green wool cotton silver leather winter summer light heavy small large shirt dress shoe lamp table chair cup days later'.split()
TEXTS = [' '.join(np.random.default_rng(i).choice(WORDS, 8)) + f' {i}' for i in range(300)]


def byte_level() -> lib.Json:
  made = library.ByteLevelBPETokenizer()
  made.train_from_iterator(TEXTS, vocab_size=400, special_tokens=['<|endoftext|>'])
  return lib.Json(made.to_str().encode())


MAKERS = {'tokenizer.json': byte_level, 'tokenizer.model': lambda: lib.train(TEXTS, 400)}


@pytest.fixture(scope='module', params=MAKERS)
def tokenizer(request):
  return MAKERS[request.param]()


@pytest.mark.parametrize('text', ['red wool shirt', 'größer 裙子 👗', 'a_b <not a token>'])
def test_text_comes_back(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text and all(0 <= id < tokenizer.size for id in ids)
  assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_one_file_in_a_folder_is_one_tokenizer(tokenizer, tmp_path):
  lib.save(tokenizer, tmp_path)
  again = lib.open_tokenizer(tmp_path)
  assert (tmp_path / tokenizer.file).exists() and type(again) is type(tokenizer)
  assert again.digest == tokenizer.digest != tokenizer.with_names(['<|more|>']).digest
  assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_our_tokens_follow_the_text_and_are_never_cut(tokenizer):
  text = lib.TextVocabulary(VOCAB, tokenizer)
  first = VOCAB.blocks['text'][0]
  assert (
    (text.known < 0).all()
    and (text.ids == tokenizer.size + np.arange(first)).all()
    and text.extended.size == tokenizer.size + first
  )
  said = 'red<|role_trigger|>wool<s_a_3><s_b_0><|event_purchase|>'
  tokens = text.encode(said)
  ours = [token for token in tokens if token < first]
  assert ours == [VOCAB.role(0), *VOCAB.sid(np.array([3, 0])), VOCAB.event(5)]
  assert text.decode(tokens).replace(' ', '') == said
  assert text.encode(TEXTS[0]) == [first + id for id in tokenizer.encode(TEXTS[0])]
  with pytest.raises(ValueError, match=f'token {first + 500}: must be 0 to {first + 499}'):
    text.decode([first + 500])


def test_names_that_a_tokenizer_knows_keep_their_ids(tokenizer):
  known = tokenizer.with_names(['<s_a_1>', '<s_a_0>'])
  text = lib.TextVocabulary(VOCAB, known)
  a = VOCAB.blocks['sid0'][0]
  assert text.ids[a : a + 3].tolist() == [
    tokenizer.size + 1,
    tokenizer.size,
    text.extended.id_of('<s_a_2>'),
  ]
  assert (text.known >= 0).sum() == 2 and text.extended.size == known.size + len(text.ids) - 2
  assert text.encode('<s_a_0><s_a_1><s_a_2>')[-3:] == [a, a + 1, a + 2]


def test_every_token_says_something_of_its_own_kind(tokenizer):
  says = lib.TextVocabulary(VOCAB, tokenizer).says
  assert len(says) == VOCAB.blocks['text'][0] and all(says)
  assert (
    tokenizer.decode(says[VOCAB.gap(33)]) == '2 days later'
    and tokenizer.decode(says[VOCAB.count(2)]) == '4 times'
  )


def test_marks(tokenizer):
  marks = [id for id in range(tokenizer.size) if tokenizer.is_delimiter(id)]
  assert marks == ([0] if isinstance(tokenizer, lib.Json) else [0, 1, 2])
  assert (
    not tokenizer.is_delimiter(tokenizer.size + 5)
    and tokenizer.with_names(['<|x|>']).id_of('<|x|>') == tokenizer.size
  )
  assert tokenizer.id_of('<|x|>') is None


def test_a_folder_without_one_or_with_a_damaged_one(tmp_path):
  with pytest.raises(DataError, match='no tokenizer.json and no tokenizer.model'):
    lib.open_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.model').write_bytes(b'garbage')
  with pytest.raises(DataError, match='tokenizer.model: cannot be read'):
    lib.open_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(DataError, match='tokenizer.json: cannot be read'):
    lib.open_tokenizer(tmp_path)


def test_too_little_text_is_said():
  with pytest.raises(DataError, match='a tokenizer of 400 pieces cannot be trained'):
    lib.train([], 400)


def test_the_vocabulary_is_bound_to_its_tokenizer():
  config = Config()
  assert (
    Vocabulary.of(config).digest
    == Vocabulary(config.semantic_ids.levels, config.semantic_ids.codes).digest
  )
  assert len({Vocabulary(3, 4, 500, tokenizer).digest for tokenizer in ('', 'a', 'b')}) == 3
  assert VOCAB.without_text.blocks['sid2'] == VOCAB.blocks[
    'sid2'
  ] and VOCAB.without_text == Vocabulary(3, 4)
