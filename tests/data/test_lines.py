"""Text files from outside: encodings, and characters that are no ends of lines."""

import re

import pytest

from rolegen_jax.data.files import DataError
from rolegen_jax.data.lines import read_text, split_lines

EXPECTED = 'a list'


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'], ids=['plain', 'byte-order mark'])
def test_utf_8_is_read_with_and_without_a_byte_order_mark(tmp_path, mark):
  (tmp_path / 'f').write_bytes(mark + 'größer 裙子\r\n'.encode())
  assert read_text(tmp_path / 'f', EXPECTED) == 'größer 裙子\r\n'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('1001\n'.encode('utf-16'), 'encoded as UTF-16; must be a list encoded as UTF-8'),
    ('1001\n'.encode('utf-32'), 'encoded as UTF-32; must be a list encoded as UTF-8'),
    ('1\n2\n'.encode('utf-16-be'), 'f, line 1: byte 0x00, which is no UTF-8 text'),
    ('eins\nzwölf\n'.encode('latin-1'), 'f, line 2: byte 0xf6, which is no UTF-8 text'),
  ],
)
def test_other_encodings_are_named(tmp_path, content, message):
  (tmp_path / 'f').write_bytes(content)
  with pytest.raises(DataError, match=re.escape(message)):
    read_text(tmp_path / 'f', EXPECTED)


def test_files_that_cannot_be_read(tmp_path):
  for path in (tmp_path / 'nothing', tmp_path):
    with pytest.raises(DataError, match='cannot be read .*; must be a list'):
      read_text(path, EXPECTED)


def test_lines_end_at_line_feeds_only():
  inside = 'a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei'
  assert split_lines(f'{inside}\r\n\nlast') == [inside, '', 'last']
  assert split_lines('one\n') == ['one'] and split_lines('') == []
