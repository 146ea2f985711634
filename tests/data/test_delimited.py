"""The reader of comma-separated logs: typed columns, and errors that name the line."""

import polars as pl
import pytest

from rolegen_jax.data import delimited
from rolegen_jax.data.delimited import Field, coded, integer, label, number
from rolegen_jax.data.files import DataError

KINDS = pl.Enum(['a', 'b'])
FIELDS = (
  Field('user', 'user_id', integer, 'an integer'),
  Field('kind', 'kind', coded({'0': 'a', '1': 'b'}, KINDS), '0 or 1'),
  Field('cost', 'cost', number, 'a number', optional=True),
  Field('note', 'note', label, 'text', optional=True),
)


def read(tmp_path, content, **options):
  path = tmp_path / 'log.csv'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return delimited.read(path, FIELDS, **{'header': False} | options)


@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('closed', [True, False])
def test_good_lines_become_typed_columns(tmp_path, end, closed):
  text = end.join(['user,kind,cost,note', '5,0,1.5,"x', '4,1,,']) + end * closed
  table, left_out = read(tmp_path, text, header=True)
  assert table.rows() == [(5, 'a', 1.5, '"x'), (4, 'b', None, None)]
  assert table.schema == {'user_id': pl.Int64, 'kind': KINDS, 'cost': pl.Float64, 'note': pl.String}
  assert left_out == {'cut_last_line': 0}


def test_a_line_cut_at_the_end_of_the_file_is_left_out_and_counted(tmp_path):
  table, left_out = read(tmp_path, '5,0,1,x\n6,1,2')
  assert table['user_id'].to_list() == [5] and left_out == {'cut_last_line': 1}


def test_max_users_keeps_the_first_users_with_all_their_lines(tmp_path):
  table, _ = read(tmp_path, '5,0,,\n3,0,,\n5,1,,\n4,0,,\n3,1,,\n', max_users=2)
  assert table['user_id'].to_list() == [5, 3, 5, 3]


@pytest.mark.parametrize(
  'content, words',
  [
    ('5,0,1,x\n6,2,1,x\n', ["line 2, field 'kind': '2'", '0 or 1']),
    ('5,0,1,x\n6.5,1,1,x\n', ["line 2, field 'user': '6.5'", 'an integer']),
    ('5,0,1,x\n,1,1,x\n', ["line 2, field 'user': ''"]),
    ('5,0,one,x\n', ["line 1, field 'cost': 'one'", 'a number']),
    ('5,0,1,x\n6,1,1\n', ['line 2 has 3 fields', 'must have 4: user,kind,cost,note']),
    ('5,0,1,x\n6,1,1,x,y\n', ['line 2 has 5 fields']),
    ('5,0,1,x\n\n6,1,1,x\n', ['line 2 has 1 fields']),
    (b'5,0,1,x\n\xff\xfe\x00,1,1,x\n', ["line 2, field 'user'"]),
    ('5,0,1,x\n6\x1f,1,1,x\n', ['text lines of 4 fields']),
    ('', ['must']),
  ],
  ids=range(10),
)
def test_errors_name_the_bad_line(tmp_path, content, words):
  with pytest.raises(DataError) as error:
    read(tmp_path, content)
  expected = ['log.csv', 'must', *words]
  assert all(word in str(error.value) for word in expected), str(error.value)


@pytest.mark.parametrize(
  'content', ['', 'user,kind\n5,0,1,x\n', '5,0,1,x\n', 'user,kind,cost,note\n']
)
def test_wrong_header_or_no_lines_after_it_is_refused(tmp_path, content):
  with pytest.raises(DataError, match='must (be|have)'):
    read(tmp_path, content, header=True)


def test_absent_file_or_folder_is_refused(tmp_path):
  for path in (tmp_path / 'absent.csv', tmp_path):
    with pytest.raises(DataError, match='must be text lines of 4 fields: user,kind,cost,note'):
      delimited.read(path, FIELDS, header=False)
