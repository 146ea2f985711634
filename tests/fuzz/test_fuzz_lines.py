"""Mutated files of the public logs: every line becomes its row, is counted, or is refused."""

import random

import logs
import mutate
import pytest

from rolegen_jax.config import DataConfig
from rolegen_jax.data.adapters import ROOT_VARIABLE
from rolegen_jax.data.prepare import read_tables

BOM = b'\xef\xbb\xbf'


def numbers(kind, rng, lines, *texts):
  """Put a text where an integer must stand."""
  at, place = rng.randrange(len(lines)), rng.choice(logs.NUMBERS[kind])
  parts = lines[at].split(',')
  parts[place] = rng.choice(texts).replace('N', parts[place])
  return [*lines[:at], ','.join(parts), *lines[at + 1 :]]


def wrong_number(kind, rng, lines):
  odd = ('', ' N', 'N ', '+N', '0N', 'N.0', '"N"', 'Ne1', '\x1fN', 'N\x1f', 'N\0', 'nan', 'x', '-')
  return numbers(kind, rng, lines, *odd, 'N\u0660', '\uff11', '9' * 19, '-' + '9' * 30, 'N\u2028')


def wrong_word(kind, rng, lines):
  at, word = rng.randrange(len(lines)), rng.choice(list(logs.KINDS[kind]))
  wrong = rng.choice((' ' + word, word + ' ', 'X', '', f'"{word}"', word.upper() + '.'))
  parts = lines[at].split(',')
  place = {'alibaba2014': 2, 'taobao_userbehavior': 3, 'rees46': 1}[kind]
  parts[place] = wrong
  return [*lines[:at], ','.join(parts), *lines[at + 1 :]]


def more_fields(kind, rng, lines):
  at = rng.randrange(len(lines))
  return [*lines[:at], lines[at] + rng.choice((',', ',x', ',,')), *lines[at + 1 :]]


def fewer_fields(kind, rng, lines):
  at = rng.randrange(len(lines))
  shorter = rng.choice((lines[at].rpartition(',')[0], '', ',', lines[at].replace(',', ';')))
  return [*lines[:at], shorter, *lines[at + 1 :]]


def header_again(kind, rng, lines):
  at = rng.randrange(len(lines))
  return [*lines[:at], logs.HEADERS[kind] or 'user,item,category,behavior,time', *lines[at:]]


def in_another_order(kind, rng, lines):
  return rng.sample(lines, len(lines)) + rng.choices(lines, k=3)


def as_they_are(kind, rng, lines):
  return lines


WRONG = (wrong_number, wrong_word, more_fields, fewer_fields, header_again)
RIGHT = (as_they_are, in_another_order)


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
  return tmp_path


def told(kind: str, content: bytes) -> tuple[list[tuple | None], int]:
  """What an independent reader finds in a file: a row per line, and how many lines were cut."""
  lines = content.removeprefix(BOM).decode('utf-8', 'replace').split('\n')
  is_cut = lines[-1].count(',') < logs.FIELDS[kind] - 1
  last = [] if is_cut else lines[-1:]
  n_cut = int(is_cut and lines[-1] != '')
  lines = [line.removesuffix('\r') for line in lines[:-1] + last]
  header = logs.HEADERS[kind]
  if header:
    if not lines or lines[0] != header:
      return [None], 0
    lines = lines[1:]
  return [logs.row_of(kind, line) for line in lines], n_cut


def check(kind, read, files: list[bytes], most: int, is_right: bool | None) -> None:
  """Compare what was read with what the files say. is_right: None = that is not known."""
  told_of = [told(kind, content) for content in files]
  rows, n_cut = [row for rows, _ in told_of for row in rows], sum(n for _, n in told_of)
  if None in rows or is_right is False:
    assert 'must' in read.refusal
    return
  inside = rows
  if kind == 'taobao_userbehavior':
    inside = [row for row in rows if logs.WINDOW[0] <= row[3] < logs.WINDOW[1]]
  if is_right:
    assert not read.refusal
  if read.refusal:
    return
  users = list(dict.fromkeys(row[0] for row in rows))[: most or None]
  assert logs.rows_of(read.value.events) == [row for row in inside if row[0] in users]
  left_out = read.value.left_out
  assert read.value.events.height + sum(left_out.values()) == len(rows) + n_cut
  assert left_out['cut_last_line'] == n_cut
  assert set(read.value.items['item_id']) == set(read.value.events['item_id'])


@mutate.seeds(130)
def test_every_line_is_read_counted_or_refused(root, attempt, seed):
  rng = random.Random(seed)
  kind = rng.choice(sorted(logs.KINDS))
  is_right = rng.random() < 0.5
  change = rng.choice(RIGHT if is_right else WRONG)
  lines = change(kind, rng, logs.lines(rng, kind))
  if kind == 'taobao_userbehavior' and rng.random() < 0.3:
    outside = rng.choice((1, logs.WINDOW[0] - 1, logs.WINDOW[1], 2**40))
    lines.insert(rng.randrange(len(lines)), f'1,100,1,pv,{outside}')
  end = rng.choice(('\n', '\r\n'))
  header = [logs.HEADERS[kind]] if logs.HEADERS[kind] else []
  text = end.join([*header, *lines]) + rng.choice((end, end, ''))
  if rng.random() < 0.2 and not text.endswith(end):  # cut where a whole field is missing
    text = text.rpartition(',')[0]
    is_right = is_right and None
  content = rng.choice((b'', b'', BOM)) + text.encode()
  name = rng.choice(('log.csv', 'log.csv.gz', 'LOG.CSV', 'odd [1]*.csv', 'log'))
  is_zipped = name.endswith('gz')
  data = mutate.zipped(content, rng.randint(1, 3)) if is_zipped else content
  (root / name).write_bytes(data)
  most = rng.choice((0, 0, 2))
  read = attempt(lambda: read_tables(DataConfig(kind, name, max_users=most)))
  if is_zipped and told(kind, content)[1]:
    assert 'must' in read.refusal  # nobody cuts text inside an archive
    return
  check(kind, read, [content], most, is_right)


@mutate.seeds(90)
def test_a_damaged_file_is_read_as_it_is_or_refused(root, attempt, seed):
  rng = random.Random(seed)
  kind = rng.choice(sorted(logs.KINDS))
  header = [logs.HEADERS[kind]] if logs.HEADERS[kind] else []
  content = '\n'.join([*header, *logs.lines(rng, kind), '']).encode()
  name, is_zipped = 'log.csv', rng.random() < 0.3
  data = mutate.zipped(content) if is_zipped else content
  data = rng.choice((data.decode('latin1').encode('utf-16'), *[mutate.mutated(rng, data)] * 8))
  (root / name).write_bytes(data)
  most = rng.choice((0, 0, 2))
  read = attempt(lambda: read_tables(DataConfig(kind, name, max_users=most)))
  if is_zipped:
    assert (
      read.refusal or data == mutate.zipped(content) or rows_are_those(kind, read, content, most)
    )
  else:
    check(kind, read, [data], most, None)


def rows_are_those(kind, read, content, most) -> bool:
  """Nothing that counts was damaged, such as the time in the header of an archive."""
  check(kind, read, [content], most, True)
  return True
