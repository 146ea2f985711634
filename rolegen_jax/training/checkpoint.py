"""Checkpoints: the state, the data position, and the hashes of everything that the state depends on.

Restoring is onto any mesh and process count. A checkpoint of other artifacts is refused, both hashes named. A damaged one is set
aside, saying what is wrong, and the one before it is taken. Storage that flips a bit inside an array gives no error on reading
(the array comes back with another value), so every checkpoint carries a fingerprint of each array.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rolegen_jax.config import digest
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.compile import jit
from rolegen_jax.training.state import State


class ArtifactMismatch(ValueError):
  """A checkpoint was made from other data, vocabulary, semantic IDs, settings or model code than the run that wants it."""


class Damaged(ValueError):
  """A checkpoint cannot be read, or is not what was saved."""


class Checkpoints:
  """Asynchronous checkpoints of one training stage under `folder`, the newest two kept. Damaged ones go to `FOLDER_damaged`."""

  def __init__(self, folder: str | os.PathLike, hashes: dict[str, str]):
    self.hashes, self._folder = hashes, pathlib.Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(self, state: State, position: dict) -> None:
    """Starts to save `state`, whose step names it. The arrays are copied before this returns, so they may be donated."""
    meta = dict(
      position=position, hashes=self._hashes_for(state), arrays=_named(jit(_fingerprints)(state))
    )
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state._asdict()),
      meta=ocp.args.JsonSave(meta | dict(digest=digest(meta))),
    )
    self._manager.save(int(state.step), args=args)

  def restore(self, abstract: State) -> tuple[State, dict] | None:
    """(state, data position) of the newest good checkpoint in the shardings of `abstract`; None when there is none."""
    for step in distributed.once(lambda: sorted(self._manager.all_steps(), reverse=True)):
      try:
        return self._read(step, abstract)
      except Damaged as error:
        self._set_aside_everywhere(step, error)
        self._manager.reload()
    return None

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _read(self, step: int, abstract: State) -> tuple[State, dict]:
    meta = distributed.once(lambda: _meta(self._folder / str(step) / 'meta'))
    for name, ours in self._hashes_for(abstract).items():
      theirs = meta['hashes'].get(name)
      if theirs != ours:
        raise ArtifactMismatch(
          f'checkpoint {step}: its {name} is {theirs}, this run has {ours}; use another --workdir, or the same settings and code'
        )
    state, why = None, ''
    try:  # not through the manager, which would wait for the others here: one of them may have failed
      args = ocp.args.StandardRestore(abstract._asdict())
      state = State(
        **ocp.StandardCheckpointHandler().restore(self._folder / str(step) / 'state', args=args)
      )
    except (
      Exception
    ) as error:  # the layout is known to fit, so whatever it is, this checkpoint cannot be read
      why = f'{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}'
    for host, said in distributed.gather(why):
      if said:
        raise Damaged(f'{host} cannot read it: {said}')
    changed = [
      name
      for name, value in _named(jit(_fingerprints)(state)).items()
      if value != meta['arrays'][name]
    ]
    if changed:
      raise Damaged(
        f'the values of {len(changed)} of {len(meta["arrays"])} arrays are not those that were saved, first {changed[0]}'
      )
    return state, meta['position']

  def _hashes_for(self, state: State) -> dict[str, str]:
    return self.hashes | dict(
      layout=digest(_named(jax.tree.map(lambda x: f'{x.dtype}{x.shape}', state)))
    )

  def _set_aside_everywhere(self, step: int, damage: Damaged) -> None:
    distributed.once(lambda: self._set_aside(step, damage))

  def _set_aside(self, step: int, damage: Damaged) -> None:
    aside = self._folder.with_name(f'{self._folder.name}_damaged')
    aside.mkdir(exist_ok=True)
    to = next(path for n in range(10**6) if not (path := aside / f'{step}.{n}').exists())
    os.replace(self._folder / str(step), to)
    print(
      f'checkpoint {step} is damaged: {damage}; set aside -> {to}; taking the one before, or the start of the stage',
      file=sys.stderr,
      flush=True,
    )


def fingerprint(params) -> str:
  """16 hex digits over the names, shapes and values of a tree of arrays, the same on every mesh."""
  return digest(
    _named(jax.tree.map(lambda x: f'{x.dtype}{x.shape}', params)),
    _named(jit(_fingerprints)(params)),
  )


def _meta(folder: pathlib.Path) -> dict:
  """What stands beside the arrays. Raises Damaged."""
  try:
    meta = ocp.JsonCheckpointHandler().restore(folder)
    said = meta.pop('digest')
  except Exception as error:
    raise Damaged(f'{folder.name}: {type(error).__name__}: {str(error)[:300]}') from error
  if said != digest(meta):
    raise Damaged(f'{folder.name}: not what was saved')
  return meta


def _fingerprints(state):
  """uint32 [] of each array: sum over its bit patterns, each times an odd number of its place, modulo 2**32.

  Integer sums do not depend on their order, so the value is the same on every mesh.
  """

  def of(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')).astype(
      jnp.uint32
    )
    strides = [math.prod(x.shape[axis + 1 :]) % 2**32 for axis in range(x.ndim)]
    place = sum(
      (
        jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(s)
        for axis, s in enumerate(strides)
      ),
      jnp.uint32(0),
    )
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

  return jax.tree.map(of, state)


def _named(tree) -> dict:
  """{path of a leaf: leaf}, arrays as integers."""
  found = jax.tree_util.tree_flatten_with_path(tree)[0]
  values = jax.device_get([leaf for _, leaf in found])
  return {
    jax.tree_util.keystr(path): value if isinstance(value, str) else int(value)
    for (path, _), value in zip(found, values)
  }
