"""Conventions, checked on the tracked files: sizes, docstrings, the order of the packages, and that
what the texts promise exists."""

import ast
import importlib.util
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TREES = ('rolegen_jax', 'experiments', 'launch')

MAX_LINES = 400
LONGER = {}  # file -> why it is one idea all the same

# A package imports from those before it, never from one after it.
PACKAGES = (
  'config',
  'overrides',
  'vocab',
  'sharding',
  'runtime',
  'simulator',
  'data',
  'features',
  'semantic_ids',
  'text',
  'models',
  'pretrained',
  'reasoning',
  'training',
  'perf',
  'serving',
  'evaluation',
  'pipeline',
  'ab_test',
  'cli',
  '__main__',
)
WITHOUT_JAX = (
  'rolegen_jax/config.py',
  'rolegen_jax/overrides.py',
  'rolegen_jax/vocab.py',
  'rolegen_jax/perf/hardware.py',
  'rolegen_jax/runtime/progress.py',
  'launch/',
)

# An absolute path of one machine, and a link to where packages come from: the project names neither.
MACHINE_PATH = re.compile(
  r'(?<![\w.$}>/-])/(?:work|root|tmp|home)(?=[/\s\'"`),:;]|$)', re.MULTILINE
)
REGISTRY = re.compile(
  r'pypi\.org|pythonhosted\.org|anaconda\.org|npmjs\.(?:com|org)|index-url|find-links',
  re.IGNORECASE,
)


def tracked(suffix: str = '') -> list[str]:
  listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
  if listed.returncode:
    pytest.skip("no git checkout: there is no list of the project's files")
  return [
    name for name in listed.stdout.splitlines() if name.endswith(suffix) and (ROOT / name).is_file()
  ]


def sources() -> list[str]:
  return [name for name in tracked('.py') if name.startswith(TREES)]


def texts() -> dict[str, str]:
  found = {}
  for name in tracked():
    try:
      found[name] = (ROOT / name).read_text(encoding='utf-8')
    except UnicodeDecodeError:
      pass  # a picture
  return found


def imports(name: str) -> set[str]:
  """Dotted names that a source imports, at its top or inside functions."""
  found = set()
  for node in ast.walk(ast.parse((ROOT / name).read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def package(dotted: str) -> str:
  return dotted.split('.')[1]


def test_long_files_have_a_reason():
  read = ('.py', '.md', '.j2', '.sh', 'Makefile')
  lines = {name: text.count('\n') for name, text in texts().items() if name.endswith(read)}
  assert {name for name, count in lines.items() if count > MAX_LINES} == set(LONGER)


def test_every_package_says_what_lives_there():
  for folder in {pathlib.PurePath(name).parent for name in sources()}:
    init = ROOT / folder / '__init__.py'
    doc = ast.get_docstring(ast.parse(init.read_text(encoding='utf-8'))) if init.exists() else None
    assert doc, f'{folder}/__init__.py: missing, or without a docstring'
    assert len(doc.splitlines()) <= 3, f'{folder}/__init__.py: says it in more than three lines'


def test_the_map_names_every_source():
  text = (ROOT / 'WORKSPACE.md').read_text(encoding='utf-8')
  missing = [
    name
    for name in sources()
    if not name.endswith('__init__.py') and f'`{pathlib.PurePath(name).name}`' not in text
  ]
  assert not missing, f'WORKSPACE.md does not name {missing}'


def test_packages_import_in_one_direction():
  for name in sources():
    parts = pathlib.PurePath(name).with_suffix('').parts
    if parts[0] != 'rolegen_jax' or parts[1] not in PACKAGES:
      continue
    allowed = PACKAGES[: PACKAGES.index(parts[1]) + 1]
    ours = {dotted for dotted in imports(name) if dotted.startswith('rolegen_jax.')}
    assert all(package(dotted) in allowed for dotted in ours), (
      f'{name}: imports from a package after its own'
    )


def test_experiments_are_configs_only():
  for name in sources():
    if name.startswith('experiments/') and 'def get_config' in (ROOT / name).read_text(
      encoding='utf-8'
    ):
      ours = {dotted for dotted in imports(name) if dotted.startswith('rolegen_jax')}
      assert all(dotted.startswith('rolegen_jax.config') for dotted in ours), (
        f'{name}: imports more than rolegen_jax.config'
      )


def test_these_never_import_jax():
  for name in sources():
    if name.startswith(WITHOUT_JAX):
      heavy = {
        dotted
        for dotted in imports(name)
        if dotted.split('.')[0] in ('jax', 'flax', 'optax', 'orbax')
      }
      assert not heavy, f'{name}: imports {heavy}'


def test_commands_of_the_texts_exist():
  for name in ('README.md', 'WORKSPACE.md', 'Makefile'):
    text = (ROOT / name).read_text(encoding='utf-8')
    for module in set(re.findall(r'-m (rolegen_jax[\w.]*|experiments[\w.]*|launch[\w.]*)', text)):
      assert importlib.util.find_spec(module), f'{name}: there is no module {module}'
    for experiment in set(re.findall(r'--experiment=(\w+)', text)) - {'NAME'}:
      assert (ROOT / 'experiments' / f'{experiment}.py').exists(), (
        f'{name}: there is no experiment {experiment}'
      )


@pytest.mark.parametrize(
  'name',
  [
    'README.md',
    'WORKSPACE.md',
    'docs/simulated_world.md',
    'docs/performance.md',
    'docs/quality.md',
  ],
)
def test_links_lead_somewhere(name):
  path = ROOT / name
  links = re.findall(r'\]\((?!https?:)([^)#]+)', path.read_text(encoding='utf-8'))
  assert [link for link in links if not (path.parent / link).exists()] == []


def test_no_machine_paths_and_no_registries():
  for name, text in texts().items():
    if name == 'tests/test_conventions.py':
      continue
    for pattern in (MACHINE_PATH, REGISTRY):
      found = pattern.search(text)
      assert not found, (
        f'{name}, line {text.count(chr(10), 0, found.start()) + 1}: {found.group()!r}'
      )


@pytest.mark.parametrize(
  'name',
  [
    'requirements.txt',
    'requirements-test.txt',
    'requirements-gpu.txt',
    'requirements-peers.txt',
    'requirements-cluster.txt',
  ],
)
def test_requirements_are_bounded_on_both_sides(name):
  lines = [
    line
    for line in (ROOT / name).read_text(encoding='utf-8').splitlines()
    if line and not line.startswith('#')
  ]
  loose = [
    line for line in lines if not re.fullmatch(r'[\w.-]+(\[[\w-]+\])?>=[\d.]+,<[\d.]+(; .+)?', line)
  ]
  assert lines and not loose


def test_no_test_imports_a_command():
  """Two commands define flags of one name: a test of the one would break the tests of the other."""
  commands = {
    name.removesuffix('.py').replace('/', '.')
    for name in sources()
    if 'flags.DEFINE_' in (ROOT / name).read_text(encoding='utf-8')
  }
  assert 'launch.run' in commands
  for name in tracked('.py'):
    if name.startswith('tests/'):
      assert not commands & imports(name), name
