"""Both file formats behind one interface, and our tokens in them."""

import numpy as np
import pytest
import tokenizers as library

from rolegen_jax.config import Config
from rolegen_jax.data.files import DataError
from rolegen_jax.text import tokenizers as lib
from rolegen_jax.vocab import Vocabulary

VOCAB = Vocabulary(levels=3, codes=4, text_pieces=500)
WORDS = (
  'red blue green wool cotton silver leather winter summer light heavy small large shirt dress '
  'shoe lamp table chair cup days later'
).split()
TEXTS = [' '.join(np.random.default_rng(i).choice(WORDS, 8)) + f' {i}' for i in range(300)]


def byte_level() -> lib.Json:
  tokenizer = library.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(TEXTS, vocab_size=400, special_tokens=['<|endoftext|>'])
  return lib.Json(tokenizer.to_str().encode())


def byte_pairs() -> lib.SentencePiece:
  return lib.train(TEXTS, 400)


TOKENIZER_FNS = {'tokenizer.json': byte_level, 'tokenizer.model': byte_pairs}


@pytest.fixture(scope='module', params=TOKENIZER_FNS)
def tokenizer(request):
  return TOKENIZER_FNS[request.param]()


@pytest.mark.parametrize('text', ['red wool shirt', 'größer 裙子 👗', 'a_b <not a token>'])
def test_decoding_gives_the_encoded_text(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text and all(0 <= id < tokenizer.size for id in ids)
  assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_a_saved_tokenizer_opens_as_the_same(tokenizer, tmp_path):
  lib.save(tokenizer, tmp_path)
  again = lib.open_tokenizer(tmp_path)
  assert (tmp_path / tokenizer.file).exists() and type(again) is type(tokenizer)
  assert again.digest == tokenizer.digest != tokenizer.with_names(['<|more|>']).digest
  assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_our_tokens_follow_the_text_and_are_never_split(tokenizer):
  text = lib.TextVocabulary(VOCAB, tokenizer)
  first = VOCAB.blocks['text'][0]
  assert (text.known < 0).all()
  assert (text.ids == tokenizer.size + np.arange(first)).all()
  assert text.extended.size == tokenizer.size + first
  sentence = 'red<|role_trigger|>wool<s_a_3><s_b_0><|event_purchase|>'
  tokens = text.encode(sentence)
  ours = [token for token in tokens if token < first]
  assert ours == [VOCAB.role(0), *VOCAB.sid(np.array([3, 0])), VOCAB.event(5)]
  assert text.decode(tokens).replace(' ', '') == sentence
  assert text.encode(TEXTS[0]) == [first + id for id in tokenizer.encode(TEXTS[0])]
  with pytest.raises(ValueError, match=f'token {first + 500}: must be 0 to {first + 499}'):
    text.decode([first + 500])


def test_names_that_a_tokenizer_has_keep_their_ids(tokenizer):
  with_two = tokenizer.with_names(['<s_a_1>', '<s_a_0>'])
  text = lib.TextVocabulary(VOCAB, with_two)
  start = VOCAB.blocks['sid0'][0]
  expected = [tokenizer.size + 1, tokenizer.size, text.extended.id_of('<s_a_2>')]
  assert text.ids[start : start + 3].tolist() == expected
  assert (text.known >= 0).sum() == 2
  assert text.extended.size == with_two.size + len(text.ids) - 2
  assert text.encode('<s_a_0><s_a_1><s_a_2>')[-3:] == [start, start + 1, start + 2]


def test_every_token_has_a_description_of_its_own_kind(tokenizer):
  descriptions = lib.TextVocabulary(VOCAB, tokenizer).descriptions
  assert len(descriptions) == VOCAB.blocks['text'][0] and all(descriptions)
  assert tokenizer.decode(descriptions[VOCAB.gap(33)]) == '2 days later'
  assert tokenizer.decode(descriptions[VOCAB.count(2)]) == '4 times'


def test_delimiters_are_told_from_text(tokenizer):
  delimiters = [id for id in range(tokenizer.size) if tokenizer.is_delimiter(id)]
  assert delimiters == ([0] if isinstance(tokenizer, lib.Json) else [0, 1, 2])
  assert not tokenizer.is_delimiter(tokenizer.size + 5)


def test_with_names_appends_pieces_to_a_copy(tokenizer):
  assert tokenizer.with_names(['<|x|>']).id_of('<|x|>') == tokenizer.size
  assert tokenizer.id_of('<|x|>') is None


def test_a_folder_without_a_tokenizer_or_with_a_damaged_one_is_refused(tmp_path):
  with pytest.raises(DataError, match='no tokenizer.json and no tokenizer.model'):
    lib.open_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.model').write_bytes(b'garbage')
  with pytest.raises(DataError, match='tokenizer.model: cannot be read'):
    lib.open_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(DataError, match='tokenizer.json: cannot be read'):
    lib.open_tokenizer(tmp_path)


def test_too_little_text_is_refused():
  with pytest.raises(DataError, match='a tokenizer of 400 pieces cannot be trained'):
    lib.train([], 400)


def test_the_vocabulary_is_bound_to_its_tokenizer():
  config = Config()
  without_text = Vocabulary(config.semantic_ids.levels, config.semantic_ids.codes)
  assert Vocabulary.of(config).digest == without_text.digest
  assert len({Vocabulary(3, 4, 500, tokenizer).digest for tokenizer in ('', 'a', 'b')}) == 3
  assert VOCAB.without_text == Vocabulary(3, 4)
  assert VOCAB.without_text.blocks['sid2'] == VOCAB.blocks['sid2']
