"""The Dockerfile has a target per accelerator, and launch/README.md uses it as it is."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = {'cpu': None, 'tpu': 'jax[tpu]', 'cuda': 'jax[cuda12]'}  # -> extra requirement
BASE_IMAGE = 'python:3.12-slim'


def read_stages() -> dict[str, tuple[str, list[str]]]:
  """Return stage -> (its parent, its instructions), in the order of the Dockerfile."""
  text = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
  text = re.sub(r'^#.*\n', '', text, flags=re.MULTILINE).replace('\\\n', ' ')
  stages: dict[str, tuple[str, list[str]]] = {}
  for line in filter(None, text.splitlines()):
    match = re.fullmatch(r'FROM (\S+) AS (\S+)', line)
    if match:
      parent, name = match.groups()
      stages[name] = (parent, [])
    else:
      stages[name][1].append(line)
  return stages


def test_every_target_installs_its_requirements_and_the_package():
  stages = read_stages()
  assert set(stages) == {'base', *TARGETS}
  assert stages['base'][0] == BASE_IMAGE
  for target, extra in TARGETS.items():
    parent, instructions = stages[target]
    assert parent == 'base'
    pip = [line for line in instructions if line.startswith('RUN pip install')]
    files = ('requirements.txt', 'requirements-serve.txt', 'requirements-cloud.txt')
    requirements = ' '.join(['RUN pip install', *(f'-r {file}' for file in files)])
    assert pip[0] == (f"{requirements} '{extra}'" if extra else requirements)
    assert pip[1].startswith('RUN pip install --no-deps .')
    # Requirements, code, package, user: an edit of the code keeps the layer of requirements.
    copy = instructions.index('COPY . .')
    assert instructions.index(pip[0]) < copy < instructions.index(pip[1])
    assert instructions[-1] == 'USER rolegen'


def test_the_default_target_is_cpu():
  assert list(read_stages())[-1] == 'cpu'


def test_the_entry_point_is_the_console_script():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
  assert 'rolegen' in project['scripts']
  assert 'ENTRYPOINT ["rolegen"]' in read_stages()['base'][1]


def test_the_build_context_has_the_requirements_and_no_history():
  ignored = (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines()
  assert {'.git', '.venv*', 'runs', 'data'} <= set(ignored)
  kept = {'requirements.txt', 'requirements-cloud.txt'} | {
    'pyproject.toml',
    'README.md',
    'rolegen_jax',
    'experiments',
    'launch',
  }
  assert not kept & set(ignored)
  assert all((ROOT / name).exists() for name in kept)


def test_the_commands_of_the_readme_build_push_and_run_an_image_per_accelerator():
  readme = (ROOT / 'launch' / 'README.md').read_text(encoding='utf-8')
  builds = re.findall(r'^docker build --target=(\S+) --tag=(\S+) \.$', readme, re.MULTILINE)
  assert builds and all(target in TARGETS for target, _ in builds)
  assert re.findall(r'^docker push (\S+)$', readme, re.MULTILINE) == [tag for _, tag in builds]
  assert re.findall(r'--image=(\S+)', readme) == [tag for _, tag in builds]
  usage = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
  assert set(re.findall(r'docker build --target=(\S+)', usage)) <= set(TARGETS)
