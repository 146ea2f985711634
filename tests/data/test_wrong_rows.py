"""Wrong rows of a log of the contract: the first stops, or all are left out, counted and shown."""

import json

import polars as pl
import pytest
from contract_files import EVENTS, ITEMS, ROWS, TEXT_ROWS, TIME, put, read, rows

from rolegen_jax.data.adapters import ROOT_VARIABLE
from rolegen_jax.data.files import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
  return tmp_path


WRONG = {
  'wrong_user_id': {'user_id': None},
  'unknown_item': {'item_id': 9},
  'wrong_event': {'event': 'click'},
  'wrong_timestamp': {'timestamp': TIME * 1000},
  'wrong_price': {'price': -1.0},
}


def with_wrong_rows():
  """EVENTS, before and after each of them a row of WRONG; the first kind twice."""
  good = iter(EVENTS.to_dicts())
  first = EVENTS.to_dicts()[0]
  mixed = [first | change for change in WRONG.values()]
  mixed.insert(3, first | WRONG['wrong_user_id'])
  table = [*mixed[:2], next(good), *mixed[2:4], next(good), *mixed[4:], *good]
  return pl.DataFrame(table, schema=EVENTS.schema)


@pytest.mark.parametrize('suffix', ['parquet', 'csv', 'jsonl'])
def test_wrong_rows_are_left_out_counted_by_kind_and_shown(root, capsys, suffix):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / f'shop/events.{suffix}', with_wrong_rows())
  with pytest.raises(DataError, match="1.*user_id': ''|'user_id', row 1: None"):
    read()
  tables = read(on_error='skip')
  assert rows(tables) == (ROWS if suffix == 'parquet' else TEXT_ROWS)
  counts = {kind: 1 + (kind == 'wrong_user_id') for kind in WRONG}
  assert {kind: n for kind, n in tables.left_out.items() if n} == counts
  err = capsys.readouterr().err
  assert '(and 1 more such row here): left out as wrong_user_id' in err
  assert all(f'left out as {kind}' in err for kind in WRONG if kind != 'wrong_user_id')
  assert 'looks like ms' in err


def test_a_named_column_that_no_line_of_json_has(root):
  put(root / 'shop/items.jsonl', ITEMS)
  put(root / 'shop/events.parquet')
  with pytest.raises(
    DataError, match="items.jsonl: no row has 'maker', the 'brand' of data.columns"
  ):
    read(columns=('brand=maker',))


def test_the_error_says_how_many_rows_are_wrong(root):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events.parquet', EVENTS.with_columns(price=-1.0))
  with pytest.raises(DataError, match="'price', row 1: -1.0; .* .and 3 more such rows here.$"):
    read()


def test_the_first_of_a_kind_is_shown_once_for_all_files(root, capsys):
  put(root / 'shop/items.parquet', ITEMS)
  for name in ('a', 'b', 'c'):
    put(root / f'shop/events/{name}.parquet', with_wrong_rows())
  assert read(on_error='skip').left_out['wrong_user_id'] == 6
  err = capsys.readouterr().err
  assert err.count('left out as wrong_user_id') == 1 and 'a.parquet' in err


def test_wrong_items_are_left_out_with_their_events(root):
  items = pl.DataFrame({'item_id': [1, 2, 1, 3], 'price': [1.0, -5.0, 2.0, None]})
  put(root / 'shop/items.parquet', items)
  put(root / 'shop/events.parquet')
  tables = read(on_error='skip')
  assert tables.items.rows() == [(1, 1.0), (3, None)]
  assert rows(tables) == [row for row in ROWS if row[1] == 1]
  assert tables.left_out == {
    'items_wrong_price': 1,
    'items_repeated_item_id': 1,
    'unknown_item': 2,
  }


@pytest.mark.parametrize('suffix', ['csv', 'jsonl'])
def test_lines_that_are_none(root, suffix):
  put(root / f'shop/items.{suffix}', ITEMS)
  path = root / f'shop/events.{suffix}'
  put(path)
  lines = path.read_bytes().splitlines()
  broken = (
    [b'7,1', b'\xff,1,view,1700000000,', b'"7,1,view,1700000000,']
    if suffix == 'csv'
    else [
      b'[1]',
      b'{"user_id": "\\ud800", "item_id": 1}',
      b'{"user_id": "\xff", "item_id": 1}',
      b'[' * 100_000,
      b'{"user_id": ' + b'9' * 5000 + b'}',
    ]
  )
  path.write_bytes(b'\n'.join([*lines[:3], *broken, *lines[3:], b'']))
  with pytest.raises(
    DataError, match=f'events.{suffix}: line .*must be|events.csv: line .*must have'
  ):
    read()
  tables = read(on_error='skip')
  assert rows(tables) == TEXT_ROWS
  assert tables.left_out['broken_line'] == len(broken)


def test_a_quoted_field_that_spans_lines_is_no_event(root):
  put(root / 'shop/items.csv', ITEMS)
  header = 'user_id,item_id,event,timestamp,session_id'
  spanning = f'7,1,view,{TIME},"s\n9,2,purchase,{TIME},t"'
  (root / 'shop/events.csv').write_text(f'{header}\n8,1,cart,{TIME},"a ""b"""\n{spanning}\n')
  with pytest.raises(DataError, match='events.csv: line 3 .*closed on the same line'):
    read()
  tables = read(on_error='skip')
  assert tables.events['session_id'].to_list() == ['a "b"']
  assert tables.left_out['broken_line'] == 2


@pytest.mark.parametrize('odd', [[1.0], [], None, [1.0, float('nan')]], ids=str)
@pytest.mark.parametrize('at', [0, 2])
def test_one_odd_embedding_is_left_out_alone(root, odd, at):
  embeddings = [[0.5, 1.0], [1.5, -2.0]]
  embeddings.insert(at, odd)
  items = pl.DataFrame({'item_id': [3, 1, 2] if at == 0 else [1, 2, 3], 'embedding': embeddings})
  put(root / 'shop/items.parquet', items)
  put(root / 'shop/events.parquet')
  with pytest.raises(DataError, match=rf"'embedding', row {at + 1}: .*of which most have 2$"):
    read()
  tables = read(on_error='skip')
  assert tables.items['item_id'].to_list() == [1, 2] and rows(tables) == ROWS
  assert tables.left_out == {'items_wrong_embedding': 1}


EVENT = {'user_id': 7, 'item_id': 1, 'event': 'view', 'timestamp': TIME}
MISTYPED = [
  *[('user_id', value) for value in (1.0, True, ['7'], {'id': 7}, [])],
  *[('item_id', value) for value in (1.0, [1])],
  *[('session_id', value) for value in (False, 2.5, ['s'], {})],
  *[('event', value) for value in (['view'], {'view': 1})],
  ('timestamp', [TIME]),
  *[('price', value) for value in (True, [2.5])],
]


@pytest.mark.parametrize('column, value', MISTYPED, ids=str)
def test_json_values_of_other_types(root, column, value):
  put(root / 'shop/items.jsonl', ITEMS)
  records = [EVENT, EVENT | {column: value}, EVENT | {'session_id': 's', 'price': 1}]
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (root / 'shop/events.jsonl').write_text(text)
  with pytest.raises(DataError, match=f"events.jsonl: line 2, field '{column}': .*must be"):
    read()
  tables = read(on_error='skip')
  assert [row[:3] for row in rows(tables)] == 2 * [('7', '1', 'view')]
  assert {kind: n for kind, n in tables.left_out.items() if n} == {f'wrong_{column}': 1}


def test_lists_in_json_are_texts_and_embeddings_only(root):
  put(root / 'shop/events.jsonl')
  good = [
    {'item_id': 1, 'title': ['Tea', None, 'Green', 2], 'embedding': [1, 2.5]},
    {'item_id': '2', 'title': 7, 'embedding': '1 2'},
  ]
  odd = [{'title': {}}, {'title': [{}]}, {'title': True}, {'embedding': [[1], 2]}]
  odd += [{'category_id': [3]}, {'category_id': 3.0}]
  for other in odd:
    text = ''.join(json.dumps(item) + '\n' for item in (*good, {'item_id': 3} | other))
    (root / 'shop/items.jsonl').write_text(text)
    with pytest.raises(DataError, match=f"items.jsonl: line 3, field '{next(iter(other))}'"):
      read()
    items = read(on_error='skip').items
    assert items['title'].to_list() == ['Tea\nGreen\n2', '7']
    assert items['embedding'].to_list() == [[1.0, 2.5], [1.0, 2.0]]


@pytest.mark.parametrize('suffix, last', [('csv', '9,1,view'), ('jsonl', '[1]')])
def test_a_broken_last_line_without_an_end_is_an_error(root, suffix, last):
  put(root / f'shop/items.{suffix}', ITEMS)
  put(root / f'shop/events.{suffix}')
  with open(root / f'shop/events.{suffix}', 'a', encoding='utf-8') as file:
    file.write(last)
  with pytest.raises(DataError, match=rf'events.{suffix}: line [56] .*must'):
    read()
  tables = read(on_error='skip')
  assert rows(tables) == TEXT_ROWS and tables.left_out['broken_line'] == 1


def test_no_row_is_right(root):
  put(root / 'shop/items.parquet', ITEMS)
  put(root / 'shop/events.parquet', EVENTS.with_columns(price=-1.0))
  with pytest.raises(DataError, match='has no valid event rows; must have at'):
    read(on_error='skip')
