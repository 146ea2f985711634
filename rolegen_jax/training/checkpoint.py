"""Checkpoints: the state, the data position, and the hashes of everything that the state depends on.

Restoring is onto any mesh and process count. A checkpoint of other artefacts is refused, both hashes named.
"""

from __future__ import annotations

import os
import pathlib

import orbax.checkpoint as ocp

from rolegen_jax.training.state import State


class ArtefactMismatch(ValueError):
  """A checkpoint was made from other data, vocabulary, semantic IDs or settings than the run that wants it."""


class Checkpoints:
  """Asynchronous checkpoints of one training stage under `folder`, the newest two kept."""

  def __init__(self, folder: str | os.PathLike, hashes: dict[str, str]):
    self.hashes = hashes
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    self._manager = ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options)

  def save(self, state: State, position: dict) -> None:
    """Starts to save `state`, whose step names it. The arrays are copied before this returns, so they may be donated."""
    meta = dict(position=position, hashes=self.hashes)
    args = ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta))
    self._manager.save(int(state.step), args=args)

  def restore(self, abstract: State) -> tuple[State, dict] | None:
    """(state, data position) of the newest checkpoint in the shardings of `abstract`; None when there is none."""
    step = self._manager.latest_step()
    if step is None:
      return None
    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
    for name, ours in self.hashes.items():
      theirs = meta['hashes'].get(name)
      if theirs != ours:
        raise ArtefactMismatch(f'checkpoint {step}: its {name} is {theirs}, this run has {ours}; use another --workdir, or the same settings')
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()))
    return State(**self._manager.restore(step, args=args)['state']), meta['position']

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()
