"""Odd settings: a config is what was asked for, or one line names the field."""

import ast
import dataclasses
import json
import math
import random

import mutate
import pytest

from rolegen_jax import fields, overrides
from rolegen_jax.config import Config, digest, from_dict, to_dict
from rolegen_jax.fields import LARGEST_FLOAT, LARGEST_INT, SMALLEST_FLOAT
from rolegen_jax.pipeline import keys
from rolegen_jax.pipeline.artifacts import RunFolder, saved_config

PATHS = overrides.field_paths(Config())
NUMBERS = (
  '0',
  '1',
  '-1',
  '2',
  '3',
  '7',
  '64',
  '100',
  '0.5',
  '-0.5',
  '1e-3',
  '1e12',
  '1e-12',
  '4.0',
)
BEYOND = ('inf', 'nan', '-inf', '1e999', '1e13', '1e-300', str(2**31), '-' + '9' * 40, '9' * 5000)
TEXTS = ('', ' ', 'x', 'none', 'None', 'auto', 'all', 'full', 'time', 'demo', 'LG', "'x'", 'true')
TEXTS += ('True', 'False', '[1]', '{}', '()', '(1,)', '(1,10)', "('a',)", "('no_reasoner',)", '1,2')
TEXTS += (
  'contract',
  'simulated',
  '__import__("os")',
  '(' * 300,
  '1_000',
  '0x10',
  '1j',
  '01',
  '1+1',
)
PATH_LIKE = ('gs://b/x', 's3://b', 'file:///x', '~nobody_here/x', '$NOT_SET_HERE/x', 'C:\\x')
CONTROL = ('a\nb', 'a\0b', 'a\u2028b', '\ud83d', '\x1b[0m')
VALUES = (*NUMBERS, *BEYOND, *TEXTS, *PATH_LIKE, *CONTROL)


def held(config: Config, path: str):
  for name in path.split('.'):
    config = getattr(config, name)
  return config


def kind_of(path: str):
  *sections, name = path.split('.')
  return fields.types(type(held(Config(), '.'.join(sections)) if sections else Config()))[name]


def value_for(rng, path: str) -> str:
  """A text from VALUES, or half the time one near what the field holds now."""
  now = held(Config(), path)
  if rng.random() < 0.5:
    return rng.choice(VALUES)
  if type(now) in (int, float):
    return repr(rng.choice((now, now * 2, now + 1, now / 2 if type(now) is float else now // 2)))
  if isinstance(now, tuple):
    return repr(rng.choice((now, now[:1], now[::-1])))
  return rng.choice((str(now), str(not now) if type(now) is bool else str(now)))


def literal(text: str):
  """What the text stands for; the text itself where it is no Python literal."""
  try:
    return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def never_right(path: str, text: str) -> bool:
  """Whether no field of this type may hold what the text stands for."""
  kind, value = kind_of(path), literal(text)
  if kind is str:
    return not text.isprintable() or path in PATH_FIELDS and text in PATH_LIKE
  if kind is bool:
    return not isinstance(value, bool)
  if kind is int:
    return type(value) is not int or abs(value) > LARGEST_INT
  if kind is float:
    if type(value) not in (int, float) or not math.isfinite(value):
      return True
    return value != 0 and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT
  return not isinstance(value, (list, tuple))


PATH_FIELDS = ('data.path', 'data.shards', 'reasoner.pretrained', 'roles.annotations')


def same(value, text: str, kind) -> bool:
  """Whether a field holds what was asked for."""
  if kind is str:
    return value == text
  asked = literal(text)
  return value == (tuple(asked) if isinstance(asked, (list, tuple)) else asked)


def check_usable(config: Config, tmp_path) -> None:
  """A config that is taken comes back from JSON, and every stage knows what it reads of it."""
  again = from_dict(json.loads(json.dumps(to_dict(config))))
  assert again == config and again.validated() == config and digest(again) == digest(config)
  simulated = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, format='simulated', shards=''),
    roles=dataclasses.replace(config.roles, annotations=''),
  )
  records = [keys.record(stage, simulated, {}) for stage in keys.stages(simulated)]
  RunFolder(tmp_path).adopt(config, records)
  assert saved_config(tmp_path) == config
  read = {name for record in records for name in record.to_json()['settings']}
  assert {'seed', 'semantic_ids.codes'} <= read
  assert not any(record.difference(again) for record, again in zip(records, records))


@mutate.seeds(350)
def test_a_setting_is_taken_as_it_is_or_its_field_is_named(tmp_path, attempt, seed):
  rng = random.Random(seed)
  paths = [PATHS[seed % len(PATHS)]]
  paths += rng.sample([path for path in PATHS if path not in paths], rng.choice((0, 0, 1, 3)))
  asked = {path: value_for(rng, path) for path in paths}
  if rng.random() < 0.2:  # a name that no field has
    path = rng.choice(
      (f'{paths[0]}.x', paths[0].upper(), '', f' {paths[0]}', 'loop', '\n', 'x' * 999)
    )
    asked[path] = '1'
  made = attempt(lambda: overrides.apply(Config(), [f'{p}={v}' for p, v in asked.items()]))
  wrong = [p for p, v in asked.items() if p not in PATHS or never_right(p, v)]
  assert made.refusal or not wrong, f'taken although wrong: {wrong}'
  if made.refusal:
    assert 'must' in made.refusal or 'nearest' in made.refusal
    assert len(made.refusal) < 20_000
    return
  for path, text in asked.items():
    assert same(held(made.value, path), text, kind_of(path)), path
  unasked = [path for path in PATHS if path not in asked]
  assert all(held(made.value, path) == held(Config(), path) for path in unasked)
  check_usable(made.value, tmp_path)


JSON_VALUES = (None, True, 0, -1, 2**40, 1.5, 1e-300, '', 'x', 'a\nb', [], [1], [[]], {}, {'a': 1})


def change(rng, values) -> str:
  """Change one place of a nested dict; return what was done."""
  section = values
  while True:
    name = rng.choice(sorted(section))
    if not isinstance(section[name], dict) or not section[name] or rng.random() < 0.1:
      break
    section = section[name]
  what = rng.choice(('value', 'value', 'gone', 'renamed', 'more'))
  if what == 'value':
    section[name] = rng.choice(JSON_VALUES)
  elif what == 'gone':
    del section[name]
  elif what == 'renamed':
    section[rng.choice((name.upper(), f'{name} ', 'x'))] = section.pop(name)
  else:
    section['of_another_version'] = rng.choice(JSON_VALUES)
  return what


@mutate.seeds(150)
def test_a_changed_config_json_is_read_as_it_is_or_refused(tmp_path, attempt, seed):
  rng = random.Random(seed)
  values, path = to_dict(Config()), tmp_path / 'config.json'
  done = [change(rng, values) for _ in range(rng.choice((0, 1, 1, 2)))]
  content = json.dumps(values, indent=2).encode()
  is_damaged = rng.random() < 0.3
  if is_damaged:
    content = rng.choice(
      (mutate.mutated(rng, content), b'', b'[]', b'null', b'{"a":' * 9999, b'\xff')
    )
  path.write_bytes(content)
  read = attempt(lambda: saved_config(tmp_path).validated())
  assert path.read_bytes() == content
  if not is_damaged and {'renamed', 'more'} & set(done):
    assert 'unknown field' in read.refusal or 'must be' in read.refusal
  if read.refusal:
    return
  held_now = json.loads(content)
  assert contains(to_dict(read.value), held_now)
  check_usable(read.value, tmp_path / 'again')


def contains(config, values) -> bool:
  """Whether the config holds all that the JSON says."""
  if isinstance(values, dict):
    return all(contains(config[name], value) for name, value in values.items())
  return config == values


def test_values_reach_every_field():
  assert len(PATHS) < 350, 'one seed a field: raise the number of cases'


@pytest.mark.parametrize('text', ['1', '0', '0.5'])
def test_what_the_oracle_says(text):
  assert never_right('loop.kl', text) is False and never_right('reasoner.transformer.tied', text)
