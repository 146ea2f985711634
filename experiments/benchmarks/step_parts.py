"""THE step before and after its worlds shared their prompt: two source trees, compiled for a pod and run here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator

from experiments.benchmarks import measure
from rolegen_jax import distributed
from rolegen_jax.config import ConfigError, digest
from rolegen_jax.provenance import machine

ROOT = pathlib.Path(__file__).parents[2]
BEFORE = '246d483'  # the last commit whose worlds each read a prompt of their own, and whose losses kept their logits
SIDES = {  # name -> (source tree, assignments)
    'before': ('before', ()),
    'after': ('after', ()),
    'after, XLA attention': ('after', ('reasoner.transformer.attention=xla', 'backbone.temporal.attention=xla')),
    'after, remat=dots': ('after', ('reasoner.transformer.remat=dots',)),
}


@contextlib.contextmanager
def trees() -> Iterator[dict[str, pathlib.Path]]:
  """The folders of both source trees: the commit BEFORE, taken from the checkout's history, and this one."""
  packed = subprocess.run(['git', 'archive', BEFORE], cwd=ROOT, capture_output=True, check=False)
  if packed.returncode:
    raise ConfigError(f'commit {BEFORE} is not in this checkout: {packed.stderr.decode().strip()}; a full clone is needed')
  with tempfile.TemporaryDirectory() as folder:
    tarfile.open(fileobj=io.BytesIO(packed.stdout)).extractall(folder, filter='data')
    yield dict(before=pathlib.Path(folder), after=ROOT)


def compiled(flags: list[str], kept: dict, save: Callable[[dict], None], sides: dict = SIDES) -> dict:
  """What compile_check finds of every side; `save` gets the whole after each. What `kept` has of the same code and flags is not done again."""
  known, result = machine('libtpu'), dict(flags=flags, before=BEFORE, sides={})
  code = dict(before=BEFORE, after=distributed.code_digest())
  with trees() as where:
    for name, (tree, assignments) in sides.items():
      key = digest(code[tree], known['versions'], flags, assignments)
      found = kept.get('sides', {}).get(name, {})
      if found.get('key') != key:
        path = where['before'] / 'found.json'
        command = [sys.executable, '-m', 'rolegen_jax.compile_check', '--programs=step', f'--json={path}', *flags, *(f'--set={a}' for a in assignments)]
        done = subprocess.run(command, cwd=where[tree], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
          raise ConfigError(f'compile_check of {name!r} ended with {done.returncode}:\n' + '\n'.join(done.stderr.splitlines()[-12:]))
        found = essential(json.loads(path.read_text())) | dict(key=key, assignments=assignments)
      result['sides'][name] = found
      save(result)
  return result


def essential(made: dict) -> dict:
  """What is compared, of a JSON file of compile_check. Bytes are a chip's."""
  step = made['programs'][0]
  if why := step['collectives']['unknown']:
    raise ConfigError(f'collectives are unknown, {why}; install the libtpu of requirements-test.txt')
  phases, roof = step['collectives']['phases'], step['roofline']
  return dict(
      topology=made['topology'], mesh=step['mesh'], users=made['config']['loop_stage']['batch'], when=made['when'], versions=made['versions'],
      compile_seconds=step['compile_seconds'], memory={kind: step['memory'][kind] for kind in ('arguments', 'temporaries', 'code', 'total', 'hbm')},
      sent={phase: of['link'] + of['network'] for phase, of in phases.items()},
      collectives={phase: sum(of['kinds'].values()) for phase, of in phases.items()}, flops={phase: of['flops'] for phase, of in roof['phases'].items()},
      roof={phase: of['roof'] for phase, of in roof['phases'].items()}, bound={phase: of['bound'] for phase, of in roof['phases'].items()},
      seconds=roof['seconds'], mfu_at_roof=roof['mfu_at_roof'],
  )


class Side:
  """`step_side.py` on one source tree, as a process that runs a step when told to."""

  def __init__(self, tree: pathlib.Path, experiment: str, items: int, assignments: tuple[str, ...] = ()):
    command = [sys.executable, str(ROOT / 'experiments/benchmarks/step_side.py'), experiment, str(items), *assignments]
    self.process = subprocess.Popen(
        command, cwd=tree, env=os.environ | dict(PYTHONPATH=str(tree)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.found, self.losses = self._answer(), []

  def _answer(self) -> dict:
    line = self.process.stdout.readline()
    if not line:
      raise ConfigError(f'step_side.py ended with {self.process.wait()}')
    return json.loads(line)

  def __call__(self) -> None:
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    self.losses.append(self._answer()['loss'])

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def measured(experiment: str, items: int, repeats: int, assignments: tuple[str, ...] = ()) -> dict:
  """Steps of both trees on this machine, one after the other in every round; the losses of the first steps, from the same state."""
  with trees() as where:
    sides = {}
    try:
      for name, tree in where.items():
        sides[name] = Side(tree, experiment, items, assignments)
      times = measure.alternate(sides, repeats)
      return dict(
          experiment=experiment, assignments=assignments, items=items, before=BEFORE,
          sides={name: side.found | times[name] | dict(losses=side.losses[:3]) for name, side in sides.items()},
          ratio=times['before']['median_s'] / times['after']['median_s'])
    finally:
      for side in sides.values():
        side.close()


def table(found: dict) -> str:
  gib, lines = 2**30, []
  if made := found.get('compiled'):
    lines.append(f'{"":<22} {"temporaries":>11} {"GB sent":>8} {"PFLOPs":>7} {"roof":>8}  a chip, {next(iter(made["sides"].values()))["topology"]}')
    for name, s in made['sides'].items():
      lines.append(f'{name:<22} {s["memory"]["temporaries"] / gib:7.2f} GiB {sum(s["sent"].values()) / 1e9:8.1f} {sum(s["flops"].values()) / 1e15:7.2f} {1e3 * s["seconds"]:5.0f} ms')
  for name, m in found.get('measured', {}).items():
    for side, s in m['sides'].items():
      lines.append(f'{name:<14} {side:<7} {1e3 * s["median_s"]:8.1f} ms a step, temporaries {s["temporaries"] / 2**20:7.1f} MiB, first losses {s["losses"]}')
    lines.append(f'{name:<14} before / after {m["ratio"]:.2f}')
  return '\n'.join(lines)
