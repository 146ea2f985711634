"""The reader of logs from outside: typed columns, and errors that name the row."""

import gzip

import polars as pl
import pytest

from rolegen_jax.data import records
from rolegen_jax.data.columns import Field, coded, integer, label, number
from rolegen_jax.data.faults import Faults
from rolegen_jax.data.files import DataError
from rolegen_jax.data.folders import files_under
from rolegen_jax.data.layouts import Delimited, JsonLines

KINDS = pl.Enum(['a', 'b'])
FIELDS = (
  Field('user', 'user_id', integer, 'an integer'),
  Field('kind', 'kind', coded({'0': 'a', '1': 'b'}, KINDS), '0 or 1'),
  Field('cost', 'cost', number, 'a number', optional=True),
  Field('note', 'note', label, 'text', optional=True),
)


NAMES = tuple(field.name for field in FIELDS)


def read(tmp_path, content, header=False, **options):
  path = tmp_path / 'log.csv'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return read_files([path], Delimited() if header else Delimited(header=NAMES), **options)


def read_folder(folder, **options):
  return read_files(files_under(folder), Delimited(), **options)


def read_files(files, layout, **options):
  faults = Faults()
  table = records.read(files, layout, FIELDS, faults=faults, may_be_cut=True, **options)
  return table, dict(faults.counts)


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


LINE = '{"user": 5, "note": "a \\u00e9 \\"b", "cost": -1.5, "x": [true, null]}'


def test_only_the_head_of_a_json_line_is_a_cut_one(tmp_path):
  heads = [LINE[:end] for end in range(1, len(LINE))]
  assert all(JsonLines().is_cut(tmp_path, head) for head in heads)
  for whole in (LINE, '[1]', '5', '{"user": 5,}', "{'user': 5}", '{"user": x y}', 'user'):
    assert not JsonLines().is_cut(tmp_path, whole)


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
    ('5,0,1,x\n\n6,1,1,x\n', ['line 2 has 1 field:']),
    (b'5,0,1,x\n\xff\xfe\x00,1,1,x\n', ['line 2: ', 'UTF-8 text']),
    ('5,0,1,x\n6\x1f,1,1,x\n', ['delimited text of 4 fields']),
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


def test_absent_file_is_refused(tmp_path):
  with pytest.raises(DataError, match='must be delimited text of 4 fields: user,kind,cost,note'):
    records.read([tmp_path / 'absent.csv'], Delimited(), FIELDS)


HEADER = 'user,kind,cost,note\n'


def write(folder, **files):
  folder.mkdir(exist_ok=True)
  for name, content in files.items():
    path = folder / name.replace('_', '.')
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return folder


def test_a_folder_is_read_file_by_file_in_order_of_names(tmp_path):
  folder = write(
    tmp_path / 'log',
    b_csv=HEADER + '3,0,,\n5,1,,\n9,1,,\n',
    a_CSV=HEADER + '5,0,1,x\n7,1,2,y\n',
    c_csv_gz=gzip.compress((HEADER + '8,0,,\n').encode()) + gzip.compress(b'7,0,,\n'),
    d_csv=HEADER,
  )
  (folder / 'README.md').write_text('not data')
  (folder / 'later').mkdir()
  write(folder / 'later', e_csv=HEADER + '4,0,,')
  table, left_out = read_folder(folder)
  assert table['user_id'].to_list() == [5, 7, 3, 5, 9, 8, 7, 4]
  assert left_out == {'cut_last_line': 0}
  table, left_out = read_folder(folder, max_users=3)
  assert table['user_id'].to_list() == [5, 7, 3, 5, 7]
  assert left_out == {'cut_last_line': 0, 'other_users': 3}


@pytest.mark.parametrize(
  'content, message',
  [
    (HEADER + '1,0,,\n1,2,,\n', r"b.csv: line 3, field 'kind': '2'; must be 0 or 1"),
    (HEADER.upper(), 'b.csv: line 1 is .*; must be the header user,kind,cost,note'),
    ('', 'b.csv: .*; must be'),
    (
      HEADER.encode() + b'1,0,,\xff\n',
      'b.csv: line 2: .*; must be UTF-8 text',
    ),
  ],
)
def test_errors_name_the_file_of_a_folder(tmp_path, content, message):
  folder = write(tmp_path / 'log', a_csv=HEADER + '5,0,1,x\n', b_csv=content)
  with pytest.raises(DataError, match=message):
    read_folder(folder)


@pytest.mark.parametrize('header', [True, False])
@pytest.mark.parametrize('packed', [gzip.compress, bytes])
def test_a_byte_order_mark_and_gzip_change_nothing(tmp_path, header, packed):
  text = '\ufeff' + HEADER * header + '5,0,1,\ufeffx\r\n-6,1,,\r\n'
  table, _ = read(tmp_path, packed(text.encode()), header=header)
  assert table.rows() == [(5, 'a', 1.0, '\ufeffx'), (-6, 'b', None, None)]


def test_a_damaged_archive_is_refused(tmp_path):
  lines = ''.join(f'{i},0,,\n' for i in range(5000)).encode()
  with pytest.raises(DataError, match='log.csv: cannot be read'):
    read(tmp_path, gzip.compress(lines)[:-30])


def test_ids_keep_their_spelling_or_are_refused(tmp_path):
  good = ['0', '7', '-7', str(2**63 - 1), str(-(2**63))]
  table, _ = read(tmp_path, ''.join(f'{user},0,,\n' for user in good))
  assert table['user_id'].to_list() == [int(user) for user in good]
  for bad in ('007', '+7', '-0', ' 7', '7 ', '7.0', '1e3', '٣', '7\0', str(2**63), '1_0'):
    with pytest.raises(DataError, match="line 2, field 'user'.*must be an integer"):
      read(tmp_path, f'7,0,,\n{bad},0,,\n')


def test_text_is_kept_as_it_is(tmp_path):
  notes = ['x', ' x', 'x ', 'x\0', '\ufffd', '"x"', 'é']
  table, _ = read(tmp_path, ''.join(f'1,0,,{note}\n' for note in notes))
  assert table['note'].to_list() == notes


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_one_blank_last_line_is_no_row(tmp_path, end):
  assert read(tmp_path, f'5,0,1,x{end}{end}')[0].height == 1
  with pytest.raises(DataError, match='line 2 has 1 field: '):
    read(tmp_path, f'5,0,1,x{end}{end}6,0,1,x{end}')
