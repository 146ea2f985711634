"""One model on more and more TPU v5p chips, users a chip constant (weak scaling): what the compiler gives and sends, and the roof.

The models of `experiments/pod.py` (8 B + 1 B) under one rule for the mesh: tensor = 8, the rest over fsdp up to 16, beyond that
over data. JAX splits no dimension of a v5p torus between mesh axes, so each axis is a product of whole dimensions. Every point is
one `python -m rolegen_jax.compile_check`; no chip is needed, libtpu is.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from experiments import pod
from rolegen_jax import config as c
from rolegen_jax import distributed, overrides
from rolegen_jax.provenance import machine

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT, ITEMS, LEVEL = 'v5p_128', 1_000_000, 'O0'
USERS = 4  # a chip
MESHES = {  # chips -> (torus, data, fsdp, tensor)
    16: ('2x2x4', 1, 2, 8),
    64: ('2x4x8', 1, 8, 8),
    128: ('4x4x8', 1, 16, 8),
    512: ('8x8x8', 8, 8, 8),
    2048: ('8x16x16', 16, 16, 8),
}


def assignments(chips: int) -> list[str]:
  _, data, fsdp, tensor = MESHES[chips]
  return [f'mesh.data={data}', f'mesh.fsdp={fsdp}', f'mesh.tensor={tensor}', f'loop_stage.batch={USERS * chips}']


def command(chips: int, path: pathlib.Path, extra: tuple[str, ...] = ()) -> list[str]:
  """What compiles a point and writes its JSON to `path`; `extra` assignments make a smaller model of it."""
  return [
      sys.executable, '-m', 'rolegen_jax.compile_check', f'--experiment=pod:{EXPERIMENT}', f'--topology=tpu:v5p:{MESHES[chips][0]}', '--programs=step',
      f'--items={ITEMS}', f'--optimization_level={LEVEL}', f'--json={path}', *(f'--set={a}' for a in (*assignments(chips), *extra))]


def compiled(wanted: list[int], kept: dict, save: Callable[[dict], None], extra: tuple[str, ...] = ()) -> dict:
  """`kept`, an earlier result, with all `wanted` chip counts; `save` gets the whole after each new one.

  What was compiled from other code or settings, or by other versions, is dropped. Raises ConfigError on an unknown count, and
  with the command's last lines when it fails, or where jaxlib cannot read what this libtpu makes.
  """
  if unknown := sorted(set(wanted) - set(MESHES)):
    raise c.ConfigError(f'--chips={unknown[0]}: must be some of {", ".join(map(str, MESHES))}')
  known = machine('libtpu')
  config = lambda chips: overrides.apply(pod.get_config(EXPERIMENT), [*assignments(chips), *extra])
  key = lambda chips: c.digest(distributed.code_digest(), known['versions'], ITEMS, LEVEL, config(chips))
  old = kept.get('points', {})
  result = dict(users_per_chip=USERS, experiment=f'pod:{EXPERIMENT}', points={n: p for n, p in old.items() if int(n) in MESHES and p['key'] == key(int(n))})
  for chips in wanted:
    if str(chips) not in result['points']:
      with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'found.json'
        # What it prints is shown as it comes: a point takes minutes.
        done = subprocess.run(command(chips, path, extra), cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
          raise c.ConfigError(f'compile_check of {chips} chips ended with {done.returncode}:\n' + '\n'.join(done.stderr.splitlines()[-12:]))
        made = json.loads(path.read_text())
      if why := made['programs'][0]['collectives']['unknown']:
        raise c.ConfigError(f'collectives are unknown, {why}; install the libtpu of requirements-test.txt')
      result['points'][str(chips)] = point(made) | dict(key=key(chips), commit=known['commit'])
      save(result)
  return result


def point(made: dict) -> dict:
  """What the curves need of a JSON file of compile_check. Bytes are a chip's."""
  step, users = made['programs'][0], made['config']['loop_stage']['batch']
  roof = step['roofline']
  return dict(
      topology=made['topology'], mesh=step['mesh'], users=users, compile_seconds=step['compile_seconds'], when=made['when'], versions=made['versions'],
      memory={kind: step['memory'][kind] for kind in ('arguments', 'temporaries', 'code', 'total', 'hbm')},
      sent={phase: of['link'] + of['network'] for phase, of in step['collectives']['phases'].items()},
      roof={phase: of['roof'] for phase, of in roof['phases'].items()},
      bound={phase: of['bound'] for phase, of in roof['phases'].items()}, seconds=roof['seconds'], mfu_at_roof=roof['mfu_at_roof'],
  )


def table(result: dict) -> str:
  gib, lines = 2**30, [f'{"chips":>5} {"mesh":>12} {"GiB a chip":>10} {"arguments":>9} {"temporaries":>11} {"GB sent":>8} {"roof":>9} {"MFU":>5}']
  for chips, p in sorted(result['points'].items(), key=lambda item: int(item[0])):
    m = p['memory']
    lines.append(f'{chips:>5} {" x ".join(str(n) for n in p["mesh"].values()):>12} {m["total"] / gib:10.2f} {m["arguments"] / gib:9.2f} {m["temporaries"] / gib:11.2f}'
                 f' {sum(p["sent"].values()) / 1e9:8.1f} {1e3 * p["seconds"]:6.0f} ms {100 * p["mfu_at_roof"]:3.0f} %')
  return '\n'.join(lines)
