"""What `reasoner.train` costs in memory: THE step of one config compiled for a pod, once a mode, and what a checkpoint then holds."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax
import numpy as np

from rolegen_jax import config as c
from rolegen_jax import distributed
from rolegen_jax.models import functional
from rolegen_jax.provenance import machine
from rolegen_jax.reasoning.rolegen import RoleGen

ROOT = pathlib.Path(__file__).parents[2]
MODES = ('all', 'lora', 'frozen')
KINDS = ('arguments', 'temporaries', 'code', 'total', 'hbm')


def counts(config: c.Config) -> dict[str, int]:
  """Numbers of the reasoner that train and that do not, and bytes of a checkpoint of the loop: what trains, its moments, the reference."""
  rolegen = RoleGen(config)
  of = lambda make: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(functional.abstract(make)[1]))
  trained = {name: of(make) for name, make in rolegen.trained.items()}
  frozen = sum(of(make) for make in rolegen.frozen.values())
  return dict(trained=trained['reasoner'], frozen=frozen, checkpoint_bytes=4 * (3 * trained['backbone'] + 4 * trained['reasoner']))


def compiled(config: Callable[[str], c.Config], flags: list[str], kept: dict, save: Callable[[dict], None], modes=MODES) -> dict:
  """What compile_check finds of every mode; `config(assignment)`: what the flags say, with it. `save` gets the whole after each.

  What `kept` has of the same code and flags is not done again. A mode that does not fit has the compiler's sizes as `error`.
  """
  known, result = machine('libtpu'), dict(flags=flags, modes={})
  for mode in modes:
    set_mode = f'reasoner.train={mode}'
    key = c.digest(distributed.code_digest(), known['versions'], flags, mode)
    found = kept.get('modes', {}).get(mode, {})
    if found.get('key') != key:
      found = check([*flags, f'--set={set_mode}']) | counts(config(set_mode)) | dict(key=key)
    result['modes'][mode] = found
    save(result)
  return result


def check(flags: list[str]) -> dict:
  """One run of compile_check in a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'found.json'
    command = [sys.executable, '-m', 'rolegen_jax.compile_check', '--programs=step', f'--json={path}', *flags]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if not path.exists():
      raise c.ConfigError(f'compile_check {" ".join(flags)} ended with {done.returncode}:\n' + '\n'.join(done.stderr.splitlines()[-12:]))
    return essential(json.loads(path.read_text()))


def essential(made: dict) -> dict:
  """Bytes are a chip's."""
  step, rest = made['programs'][0], {name: made[name] for name in ('topology', 'when', 'versions')}
  if 'error' in step:
    return rest | dict(error=step['error'])
  return rest | dict(
      mesh=step['mesh'], users=made['config']['loop_stage']['batch'], compile_seconds=step['compile_seconds'],
      memory={kind: step['memory'][kind] for kind in KINDS}, roof_seconds=step['roofline']['seconds'],
  )


def table(found: dict) -> str:
  gib = 2**30
  lines = [f'{"train":<7} {"trained":>9} {"arguments":>10} {"temporaries":>12} {"total":>7}  GiB a chip   checkpoint   roof']
  for mode, m in found['modes'].items():
    size = f'{m["trained"] / 1e6:>7.1f} M'
    if 'error' in m:
      lines.append(f'{mode:<7} {size} does not fit: {m["error"].splitlines()[0]}')
      continue
    of = m['memory']
    sizes = f'{of["arguments"] / gib:>10.2f} {of["temporaries"] / gib:>12.2f} {of["total"] / gib:>7.2f}  of {of["hbm"] / gib:.0f}'
    lines.append(f'{mode:<7} {size} {sizes}       {m["checkpoint_bytes"] / gib:>6.2f} GiB   {1e3 * m["roof_seconds"]:.0f} ms')
  return '\n'.join(lines)
