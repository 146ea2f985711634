"""Files of JSON objects, however they are laid out."""

import json
import re

import pytest

from rolegen_jax.data.files import DataError
from rolegen_jax.text.records import read_records, write_lines

ROWS = [{'id': 'a', 'n': [1, 2]}, {'id': 'b', 'text': 'x, ] } ``` [ {'}, {'id': 'c'}]
LINES = '\n'.join(json.dumps(row) for row in ROWS)
ARRAY = json.dumps(ROWS)
INDENTED = json.dumps(ROWS, indent=2)
LAYOUTS = {
  'lines': LINES,
  'blank lines': LINES.replace('\n', '\n\n \n') + '\n\n',
  'carriage returns': LINES.replace('\n', '\r\n'),
  'byte-order mark': '\ufeff' + LINES,
  'commas at the ends': LINES.replace('\n', ',\n') + ',',
  'array': ARRAY,
  'indented array': INDENTED,
  'trailing comma': INDENTED[:-2] + ',\n]',
  'fenced array': f'```json\n{INDENTED}\n```',
  'fenced lines, prose around': f'Here are 3, as you said:\n\n```\n{LINES}\n```\n\nMore?',
  'two fences': 'First:\n```\n' + LINES.replace('\n', '\n```\nSecond:\n~~~json\n', 1) + '\n~~~',
}


@pytest.mark.parametrize('text', LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_objects(tmp_path, text):
  (tmp_path / 'f').write_text(text, encoding='utf-8', newline='')
  assert [row for _, row in read_records(tmp_path / 'f')] == ROWS


@pytest.mark.parametrize(
  'character', '\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e \x1f \x01 \t'.split(' ')
)
def test_characters_that_end_no_line_may_stand_in_strings(tmp_path, character):
  content = f'{{"id": "a{character}b"}}\n{{"id": "c"}}\n'
  (tmp_path / 'raw').write_text(content, encoding='utf-8')
  assert read_records(tmp_path / 'raw') == [(1, {'id': f'a{character}b'}), (2, {'id': 'c'})]
  escaped = content.replace(character, f'\\u{ord(character):04x}')
  (tmp_path / 'escaped').write_text(escaped, encoding='utf-8')
  assert read_records(tmp_path / 'escaped') == read_records(tmp_path / 'raw')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"id": 1}\nnot json\n', 'line 2: Expecting value'),
    ('{"id": 1}\n{"id": "cut off\n{"id": 3}\n', 'line 2: Invalid control character'),
    (INDENTED.replace('"b"', 'b'), 'line 10: Expecting value'),
    ('{"id": 1}\n"id"\n', "line 2: 'id'"),
    ('[1, 2]', 'line 1: 1'),
    ('Sorry, I cannot.\n```\nno json\n```', 'line 3: Expecting value'),
    ('{"id": ' + '9' * 5000 + '}', 'line 1: Exceeds the limit'),
    ('{"id":' * 100_000, 'line 1: '),
  ],
)
def test_what_is_no_json_is_named_by_its_line(tmp_path, text, message):
  (tmp_path / 'f').write_text(text)
  with pytest.raises(DataError, match=f'f, {re.escape(message)}.*; must be JSON objects'):
    read_records(tmp_path / 'f')


def test_written_lines_are_lines_to_every_reader(tmp_path):
  rows = [{'text': 'a\u2028b\u2029c\x85d\x0be\nf 裙子 👗'}, {'text': 'half a pair: \ud83d'}]
  write_lines(rows, tmp_path / 'f')
  content = (tmp_path / 'f').read_text(encoding='utf-8')
  assert [json.loads(line) for line in content.splitlines()] == rows
  assert '裙子 👗' in content
  assert [row for _, row in read_records(tmp_path / 'f')] == rows
