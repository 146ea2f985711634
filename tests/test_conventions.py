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
# file -> why it is one idea all the same
LONGER = {
  'rolegen_jax/config.py': 'every setting, beside the bounds that are checked',
}
MAX_COLUMNS, MAX_FUNCTION_LINES, MAX_PARAMETERS = 100, 60, 8
# Words that the field has others for; docs/glossary.md says which. History may hold them.
RETIRED = re.compile(r'\b(floors|aftermath|successors|neighbou?rhoods?)\b')
HISTORY = ('CHANGELOG.md', 'docs/decisions/', 'tests/test_conventions.py')

# A package imports from those before it, never from one after it.
PACKAGES = (
  'fields',
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
  'serving',
  'evaluation',
  'pipeline',
  'ab_test',
  'perf',
  'cli',
  '__main__',
)
WITHOUT_JAX = (
  'rolegen_jax/fields.py',
  'rolegen_jax/config.py',
  'rolegen_jax/overrides.py',
  'rolegen_jax/vocab.py',
  'rolegen_jax/perf/hardware.py',
  'rolegen_jax/runtime/progress.py',
  'launch/',
)

# An absolute path of one machine and a link to where packages come from: the project names
# neither. /home/kubernetes is a folder of every node of GKE.
MACHINE_PATH = re.compile(
  r'(?<![\w.$}>/-])/(?:work|root|tmp|home(?!/kubernetes/))(?=[/\s\'"`),:;]|$)', re.MULTILINE
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
  read = ('.py', '.md', '.j2', '.sh', '.js', '.css', '.html', 'Makefile')
  lines = {name: text.count('\n') for name, text in texts().items() if name.endswith(read)}
  assert {name for name, count in lines.items() if count > MAX_LINES} == set(LONGER)


def test_no_line_of_python_is_wider_than_a_page():
  for name in tracked('.py'):
    for number, line in enumerate((ROOT / name).read_text(encoding='utf-8').splitlines(), 1):
      assert len(line) <= MAX_COLUMNS, f'{name}, line {number}: {len(line)} columns'


def test_long_functions_have_a_reason():
  """A comment on the line above the function says why it is longer, or takes more parameters."""
  unexplained = []
  for name in sources():
    text = (ROOT / name).read_text(encoding='utf-8')
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
      if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        continue
      length = node.end_lineno - node.lineno + 1
      parameters = len(node.args.args) + len(node.args.kwonlyargs)
      first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
      explained = lines[first - 2].lstrip().startswith('#')
      if (length > MAX_FUNCTION_LINES or parameters > MAX_PARAMETERS) and not explained:
        unexplained.append(f'{name}:{node.lineno} {node.name}: {length} lines, {parameters}')
  assert not unexplained


def test_retired_words_are_history():
  for name, text in texts().items():
    if not name.startswith(HISTORY) and not name.endswith('.json'):
      match = RETIRED.search(text)
      assert not match, f'{name}: {match.group()!r}; see docs/glossary.md'


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


def test_text_files_are_utf_8_wherever_they_are_opened():
  """Without an encoding, Python takes that of the user's locale."""
  for name in sources():
    if name.startswith('experiments/'):
      continue
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding='utf-8'))):
      if not isinstance(node, ast.Call):
        continue
      called = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ''
      opens = called == 'open' and isinstance(first, str) and set(first) <= set('rwax+')
      if called in ('read_text', 'write_text') or (opens and first):
        given = {keyword.arg for keyword in node.keywords}
        takes_none = called == 'read_text' and len(node.args) > 1  # our own read_text(path, ...)
        assert 'encoding' in given or takes_none, f'{name}, line {node.lineno}: no encoding'


def test_commands_of_the_texts_exist():
  for name in (
    'README.md',
    'WORKSPACE.md',
    'CONTRIBUTING.md',
    'docs/guide.md',
    'docs/on_a_pod.md',
    'launch/README.md',
    'Makefile',
  ):
    text = (ROOT / name).read_text(encoding='utf-8')
    for module in set(re.findall(r'-m (rolegen_jax[\w.]*|experiments[\w.]*|launch[\w.]*)', text)):
      if module.endswith('.NAME'):
        continue
      assert importlib.util.find_spec(module), f'{name}: there is no module {module}'
    for experiment in set(re.findall(r'--experiment=(\w+)', text)) - {'NAME'}:
      assert (ROOT / 'experiments' / f'{experiment}.py').exists(), (
        f'{name}: there is no experiment {experiment}'
      )


def test_links_lead_somewhere():
  for name in tracked('.md'):
    path = ROOT / name
    links = re.findall(r'\]\((?!https?:)([^)#]+)', path.read_text(encoding='utf-8'))
    dead = [link for link in links if not (path.parent / link).exists()]
    assert not dead, f'{name}: {dead}'


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
    'requirements-third-party.txt',
    'requirements-cluster.txt',
    'requirements-text.txt',
    'requirements-annotate.txt',
    'requirements-trackers.txt',
    'requirements-cloud.txt',
    'requirements-serve.txt',
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


def test_names_of_test_files_are_unique():
  # Their folders are no packages: pytest imports them by their names alone.
  names = [path.name for path in (ROOT / 'tests').rglob('test_*.py')]
  assert sorted({name for name in names if names.count(name) > 1}) == []


def test_tests_import_no_two_modules_that_define_one_flag():
  """absl refuses the second: the test of one module would break those of the other."""
  imported = set().union(*(imports(name) for name in tracked('.py') if name.startswith('tests/')))
  defined = re.compile(r"^\w+ = (?:flags\.DEFINE_\w+|path_flag)\(\s*'(\w+)'", re.MULTILINE)
  owners = {}
  for name in sources():
    if name.removesuffix('.py').replace('/', '.') in imported:
      for flag in defined.findall((ROOT / name).read_text(encoding='utf-8')):
        assert owners.setdefault(flag, name) == name, f'--{flag}: {name} and {owners[flag]}'
