"""Checkpoints: the state, the data position, and the hashes of all that the state depends on.

A checkpoint restores onto any mesh and process count. One of other artifacts is refused with both
hashes named. A damaged one is set aside, saying what is wrong, and the one before it is taken.
Storage that flips a bit inside an array raises no error on reading (the array comes back with
another value), so every checkpoint carries a fingerprint of each array.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rolegen_jax.config import digest
from rolegen_jax.data.files import DataError
from rolegen_jax.fields import Refusal
from rolegen_jax.runtime import distributed, storage
from rolegen_jax.runtime.compile import jit_once
from rolegen_jax.training import object_stores
from rolegen_jax.training.state import State


class ArtifactMismatch(Refusal):
  """A checkpoint comes from other data, vocabulary, semantic IDs, settings or model code."""


class Damaged(ValueError):
  """A checkpoint cannot be read, or is not what was saved."""


class Checkpoints:
  """Asynchronous checkpoints of one stage under `folder`, of which the newest two are kept.

  Damaged ones move to `FOLDER_damaged`; with `may_train` False they stay, and are an error.
  """

  def __init__(self, folder: str | os.PathLike, hashes: dict[str, str], may_train: bool = True):
    self.hashes, self._folder = hashes, storage.absolute(folder)
    self._may_train = may_train
    if storage.is_remote(self._folder):
      object_stores.teach_orbax()
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(self, state: State, position: dict) -> None:
    """Start to save `state`, whose step names it.

    The arrays are copied before this returns, so they may be donated.
    """
    meta = dict(
      position=position,
      hashes=self._hashes_for(state),
      arrays=_named(jit_once(_fingerprints)(state)),
    )
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state._asdict()),
      meta=ocp.args.JsonSave(meta | dict(digest=digest(meta))),
    )
    self._manager.save(int(state.step), args=args)

  def restore(self, abstract: State) -> tuple[State, dict] | None:
    """Return (state, data position) of the newest good checkpoint; None when there is none.

    The state comes in the shardings of `abstract`.
    """
    for step in distributed.once(lambda: sorted(self._manager.all_steps(), reverse=True)):
      try:
        return self._read(step, abstract)
      except Damaged as error:
        if not self._may_train:
          raise DataError(
            f'{self._folder / str(step)}: is damaged ({error}); '
            '--retrain trains again what was lost'
          ) from error
        self._set_aside_once(step, error)
        self._manager.reload()
    return None

  def close(self) -> None:
    """Wait for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _read(self, step: int, abstract: State) -> tuple[State, dict]:
    meta = distributed.once(lambda: _read_meta(self._folder / str(step) / 'meta'))
    self._check_hashes(step, meta, abstract)
    state: Any = None
    failure = ''
    # Not through the manager, which would wait for the others here: one of them may have failed.
    handler, args = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(abstract._asdict())
    try:
      state = State(**handler.restore(self._folder / str(step) / 'state', args=args))
    except Exception as error:  # the layout fits, so whatever it is, this one cannot be read
      failure = f'{type(error).__name__}: {_first_line(error)}'
    for host, host_failure in distributed.gather(failure):
      if host_failure:
        raise Damaged(f'{host} cannot read it: {host_failure}')
    saved = meta['arrays']
    restored = _named(jit_once(_fingerprints)(state))
    changed = [name for name, value in restored.items() if value != saved[name]]
    if changed:
      raise Damaged(
        f'the values of {len(changed)} of {len(saved)} arrays are not those that were saved, '
        f'first {changed[0]}'
      )
    return state, meta['position']

  def _check_hashes(self, step: int, meta: dict, abstract: State) -> None:
    for name, expected in self._hashes_for(abstract).items():
      actual = meta['hashes'].get(name)
      if actual != expected:
        raise ArtifactMismatch(
          f'checkpoint {step}: its {name} is {actual}, this run has {expected}; '
          'use another --workdir, or the same settings and code'
        )

  def _hashes_for(self, state: State) -> dict[str, str]:
    layout = jax.tree.map(lambda x: f'{x.dtype}{x.shape}', state)
    return self.hashes | dict(layout=digest(_named(layout)))

  def _set_aside_once(self, step: int, damage: Damaged) -> None:
    distributed.once(lambda: self._set_aside(step, damage))

  def _set_aside(self, step: int, damage: Damaged) -> None:
    aside = self._folder.with_name(f'{self._folder.name}_damaged')
    aside.mkdir(exist_ok=True)
    target = next(path for n in range(10**6) if not (path := aside / f'{step}.{n}').exists())
    storage.move(self._folder / str(step), target)
    message = (
      f'checkpoint {step} is damaged: {damage}; set aside -> {target}; '
      'taking the one before, or the start of the stage'
    )
    print(message, file=sys.stderr, flush=True)


def fingerprint(params: Any) -> str:
  """Return 16 hex digits over the names, shapes and values of a tree, the same on every mesh."""
  layout = jax.tree.map(lambda x: f'{x.dtype}{x.shape}', params)
  return digest(_named(layout), _named(jit_once(_fingerprints)(params)))


def _first_line(error: Exception) -> str:
  return str(error).partition('\n')[0][:300]


def _read_meta(folder: pathlib.Path) -> dict:
  """Return what was saved beside the arrays. Raises Damaged."""
  try:
    meta = ocp.JsonCheckpointHandler().restore(folder)
    saved_digest = meta.pop('digest')
  except Exception as error:
    raise Damaged(f'{folder.name}: {type(error).__name__}: {str(error)[:300]}') from error
  if saved_digest != digest(meta):
    raise Damaged(f'{folder.name}: not what was saved')
  return meta


def _fingerprints(state: Any) -> Any:
  """Return uint32 [] of each array: the sum of bit patterns, each times an odd number of its place.

  Integer sums modulo 2**32 do not depend on their order, so the value is the same on every mesh.
  """

  def fingerprint_array(x: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f'uint{8 * x.dtype.itemsize}')
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis in range(x.ndim):
      stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
      place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

  return jax.tree.map(fingerprint_array, state)


def _named(tree: Any) -> dict[str, str | int]:
  """Return {path of a leaf: leaf}, arrays as integers."""
  paths_and_leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  values = jax.device_get([leaf for _, leaf in paths_and_leaves])
  return {
    jax.tree_util.keystr(path): value if isinstance(value, str) else int(value)
    for (path, _), value in zip(paths_and_leaves, values)
  }
