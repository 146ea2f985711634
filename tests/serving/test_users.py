"""The users file of `recommend`: what is read, and what a wrong line is told."""

import re
import time
from types import SimpleNamespace

import polars as pl
import pytest

from rolegen_jax.data.files import DataError
from rolegen_jax.serving.audience import _read_users

NUMBERS = SimpleNamespace(users=pl.Series([7, 42, 1001, 2002, 30303]))
NAMES = SimpleNamespace(users=pl.Series(['Ann', ' Bob ', 'Bob', 'a,b', 'x\u2028y', 'user_id']))


def read(log, path, content: str | bytes) -> list:
  path = path / 'users.txt'
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return [log.users[int(index)] for index in _read_users(log, path)]


@pytest.mark.parametrize(
  'content',
  [
    '1001\n2002\n',
    '1001\n2002',
    '\ufeff1001\n2002\n',
    '1001\r\n2002\r\n',
    '\n 1001 \n\t\n2002\t\n\n',
    '2002\n1001\n2002\n',
  ],
)
def test_ids_one_per_line(tmp_path, content):
  assert read(NUMBERS, tmp_path, content) == [1001, 2002]


def test_an_id_is_taken_as_it_stands_and_only_then_without_its_spaces(tmp_path):
  assert read(NAMES, tmp_path, ' Bob \n') == [' Bob ']
  assert read(NAMES, tmp_path, 'Bob\n') == ['Bob'] == read(NAMES, tmp_path, ' Bob\n')
  assert read(NAMES, tmp_path, 'a,b\nx\u2028y\nuser_id') == ['a,b', 'x\u2028y', 'user_id']


def test_users_that_are_named_again_are_reported(tmp_path, capsys):
  read(NUMBERS, tmp_path, '7\n42\n7\n7\n')
  assert 'users.txt: 2 lines name a user again; each is listed once' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('7\n\n8\n', "line 3: user_id '8' is not in the log; must be a user_id of its events"),
    (
      'user_id\n7\n',
      "line 1: user_id 'user_id' is not in the log; must be one user id per line, w",
    ),
    (
      '7,42\n',
      "line 1: user_id '7,42' is not in the log; must be one user id per line, and nothing",
    ),
    ('7;Ann\n', 'must be one user id per line, and nothing else'),
    ('7\r42\r', 'must be one user id per line, and nothing else'),
    ('1001.0\n', "user_id '1001.0' is not in the log; the nearest is '1001'"),
    ('01001\n', "the nearest is '1001'"),
    ('"1001"\n', "the nearest is '1001'"),
    ('7\n\ufeff1001\n', "the nearest is '1001'"),
    ('3030\n', "the nearest is '30303'"),
    ('', 'users.txt: names no user; must have one user id per line'),
    ('\ufeff\r\n\r\n', 'users.txt: names no user'),
    ('1001\n'.encode('utf-16'), 'users.txt: encoded as UTF-16; must be --users=all, dormant or a'),
    ('1001\n'.encode('utf-16-le'), 'users.txt, line 1: byte 0x00, which is no UTF-8 text'),
    ('7\nJosé\n'.encode('latin-1'), 'users.txt, line 2: byte 0xe9, which is no UTF-8 text'),
  ],
)
def test_wrong_files(tmp_path, content, message):
  with pytest.raises(DataError, match=re.escape(message)):
    read(NUMBERS, tmp_path, content)


def test_names_have_a_nearest_too(tmp_path):
  with pytest.raises(DataError, match="'ann' is not in the log; the nearest is 'Ann'"):
    read(NAMES, tmp_path, 'ann')


def test_a_million_ids_take_seconds(tmp_path):
  log = SimpleNamespace(users=pl.Series(range(10**6)))
  (tmp_path / 'all').write_text(''.join(f'{user}\n' for user in range(10**6)))
  started = time.perf_counter()
  assert len(_read_users(log, tmp_path / 'all')) == 10**6
  (tmp_path / 'all').write_text('x\n')
  with pytest.raises(DataError, match="line 1: user_id 'x'"):
    _read_users(log, tmp_path / 'all')
  assert time.perf_counter() - started < 20
