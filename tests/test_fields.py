"""What a field may hold: a value is refused with its name, or makes a config that runs."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolegen_jax import fields, overrides
from rolegen_jax.config import PATHS, Config, ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.fields import expanded, local_path
from rolegen_jax.semantic_ids.catalogue import ArtifactError
from rolegen_jax.training.checkpoint import ArtifactMismatch

FIELDS = overrides.field_paths(Config())
VALUES = {path: functools.reduce(getattr, path.split('.'), Config()) for path in FIELDS}
INTEGERS = {path for path, value in VALUES.items() if type(value) is int}
FLOATS = {path for path, value in VALUES.items() if type(value) is float}
# Numbers that may be negative.
MODELS = ('backbone.temporal', 'reasoner.transformer')
SIGNED = {'roles.trigger_z', 'roles.distract_z'} | {f'{model}.norm_offset' for model in MODELS}
NUMBERS = ['-1', '0', '1', '7', '-0.5', '0.5', '1.0', '3e9']
NO_NUMBERS = ['1e-300', '1e400', '-1e400', 'nan', 'inf']
HUGE = [str(2**31), str(2**63), '1' + '0' * 400]
OTHERS = ['', ' ', 'x', 'true', 'None', '()', '[]', '(1,)', '(0, 10)', "('x',)", "('intent',) * 9"]
MALFORMED = ['{[]: 1}', '(' * 3000, 'a\nb', '\x00', '\ud800', 'b"x"', '1+2j', '1 2']
PATH_LIKE = ['gs://b/x', 'file:///x', r'C:\x', '~nobody_here/x', '$NOT_SET_HERE/x', '~/x', 'x/y']
TEXTS = [*NUMBERS, *NO_NUMBERS, *HUGE, *OTHERS, *MALFORMED, *PATH_LIKE]


@pytest.mark.parametrize('kind', [ConfigError, DataError, ArtifactError, ArtifactMismatch])
def test_a_refusal_is_one_line_whatever_it_quotes(kind):
  quoted = 'a\nb\u2028c\x1b[0m \ud800 \xe9'
  assert str(kind(f'{quoted}: must be x')) == r'a\nb\u2028c\x1b[0m \ud800 é: must be x'


def refused_by_name(*assignments: str) -> bool:
  """Whether the assignments are refused; an error that names none of their fields fails."""
  try:
    config = overrides.apply(Config(), list(assignments))
  except ConfigError as error:
    message = str(error)
    names = [assignment.partition('=')[0].rpartition('.')[2] for assignment in assignments]
    assert any(name in message for name in names), (assignments, message)
    return True
  assert config.validated() == config
  return False


@pytest.mark.parametrize('text', TEXTS, ids=[ascii(text)[:20] for text in TEXTS])
def test_every_field_takes_a_value_or_is_named(text):
  refused = {path for path in FIELDS if refused_by_name(f'{path}={text}')}
  if text in HUGE:
    assert INTEGERS <= refused
  if text in (*MALFORMED, *NO_NUMBERS):
    assert INTEGERS | FLOATS <= refused
  if text == '-1':
    assert FLOATS - refused == SIGNED


ANY_TEXT = st.one_of(
  st.sampled_from(TEXTS),
  st.integers(-3, 3000).map(str),
  st.floats().map(repr),
  st.text(max_size=8),
  st.lists(st.integers(-1, 100), max_size=4).map(str),
  st.lists(st.sampled_from(['intent', 'remove', 'roles', 'no_reasoner', 'wq', ''])).map(str),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), ANY_TEXT), min_size=1, max_size=3))
def test_values_of_several_fields_make_a_config_or_one_of_them_is_named(assigned):
  refused_by_name(*(f'{path}={text}' for path, text in assigned))


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('url', ['gs://b/x', 's3://b', 'file:///x', 'http://h/x', 'hdfs://n/x'])
def test_what_is_no_bucket_is_refused_as_a_path(path, url):
  with pytest.raises(ConfigError, match=f'{path}={url}: must be a file system path'):
    overrides.apply(Config(), [f'{path}={url}'])


@pytest.mark.parametrize('url', ['gs://bucket/x', 's3://bucket'])
def test_what_a_run_reads_may_be_in_a_bucket(url):
  config = overrides.apply(Config(), ['update.parent_key=0', *(f'{path}={url}' for path in PATHS)])
  for path in PATHS:
    assert functools.reduce(getattr, path.split('.'), config) == url


@pytest.mark.parametrize('path', PATHS)
def test_home_and_variables_are_expanded_in_the_paths_of_a_config(path, monkeypatch):
  monkeypatch.setenv('HOME', '/home_of/me')
  monkeypatch.setenv('SHOP', 'logs/shop')
  read = {
    text: local_path(text, path) for text in ('~/x', '$SHOP/x', '${SHOP}_2', '~/$SHOP', './~', 'a$')
  }
  assert list(read.values()) == [
    '/home_of/me/x', 'logs/shop/x', 'logs/shop_2', '/home_of/me/logs/shop', './~', 'a$'
  ]  # fmt: skip
  needed = ['update.parent_key=0'] if path == 'update.parent' else []
  config = overrides.apply(Config(), [f'{path}=~/x', *needed])
  section, name = path.split('.')
  assert getattr(getattr(config, section), name) == '/home_of/me/x'


@pytest.mark.parametrize(
  'text, right',
  [
    ('$NOT_SET_HERE/x', r'the variable \$NOT_SET_HERE is not set'),
    ('${NOT_SET_HERE}', r'the variable \${NOT_SET_HERE} is not set'),
    ('~nobody_here/x', 'there is no user ~nobody_here'),
    ('gs:/b', 'URLs'),
    ('runs/gs://b', 'URLs'),
    (r'C:\runs', 'URLs'),
    ('', 'printable'),
    (' ', 'printable'),
    ('a\nb', 'printable'),
  ],
)
def test_what_is_no_path_is_refused(text, right):
  with pytest.raises(ValueError, match=f'must be a file system path.*{right}'):
    expanded(text)


def test_a_variable_that_holds_a_url_is_one(monkeypatch):
  monkeypatch.setenv('BUCKET', 'gs://b')
  with pytest.raises(ConfigError, match=r'--workdir=\$BUCKET/x: must be a file system path'):
    local_path('$BUCKET/x', '--workdir')


def test_types_of_fields_are_named():
  kinds = fields.types(type(Config().evaluation))
  assert [fields.named(kinds[name]) for name in ('ks', 'ablations', 'batch')] == [
    'tuple of int', 'tuple of str', 'int'
  ]  # fmt: skip
