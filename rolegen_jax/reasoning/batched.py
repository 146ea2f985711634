"""A function over tables of examples: batches of one size on the device, results on the host.

Shapes: N rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import compile_in_step, jit
from rolegen_jax.runtime.progress import progress


class Table(Protocol):
  """Rows by number, such as an ExampleTable."""

  def __len__(self) -> int: ...

  def rows(self, index: np.ndarray, width: int) -> Any: ...


class Beside(NamedTuple):
  """A table, and what else is known of its rows."""

  table: Table
  more: Any  # tree of arrays [N, ...]

  def __len__(self) -> int:
    return len(self.table)

  def rows(self, index: np.ndarray, width: int) -> tuple[Any, Any]:
    """Return both, of these numbers."""
    return self.table.rows(index, width), jax.tree.map(lambda x: x[index], self.more)


class Batched:
  """A function of batches of `size` rows: one program, compiled at the first of them."""

  def __init__(self, rolegen: RoleGen, function: Callable[..., Any], fixed: tuple, mesh: Mesh):
    """function: (*fixed, rows, *extra) -> a tree of arrays by row. fixed: on the device."""
    self.size, self._width = rolegen.config.evaluation.batch, rolegen.config.backbone.context
    self._fixed, self._mesh = fixed, mesh
    self._jitted = jit(function, out_shardings=sharding.sharding(mesh))
    self._compiled: jax.stages.Compiled | None = None

  def __call__(self, rows: Any, *extra: Any) -> Any:
    """Return `function(*fixed, rows, *extra)` on the device; `size` rows, on the host."""
    with jax.set_mesh(self._mesh):
      args = (*self._fixed, _on_device(rows, self._mesh, self.size), *extra)
      if self._compiled is None:
        self._compiled = compile_in_step(self._jitted, *args)
      return self._compiled(*args)

  def over(self, table: Table, label: str, *extra: Any) -> Any:
    """Return what it is of all rows of a table, on the host.

    The last batch is filled up with copies of the last row, whose results are cut off.
    """
    results: list[Any] = []
    for start in progress(range(0, len(table), self.size), label):
      index = np.minimum(np.arange(start, start + self.size), len(table) - 1)
      results.append(self(table.rows(index, self._width), *extra))
      # The device has this batch while the next one is assembled: the bar is ahead by one.
      jax.block_until_ready(results[max(len(results) - 2, 0)])
    host = jax.device_get(results)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(table)], *host)


def over(
  rolegen: RoleGen,
  function: Callable[..., Any],
  fixed: tuple,
  table: Table,
  mesh: Mesh,
  label: str,
  *extra: Any,
) -> Any:
  """Return `function(*fixed, rows, *extra)` of all rows of one table, see `Batched`."""
  return Batched(rolegen, function, fixed, mesh).over(table, label, *extra)


def _on_device(rows: Any, mesh: Mesh, size: int) -> Any:
  """Spread `size` rows over the mesh; every process holds all of them."""
  places = np.arange(size)
  return jax.tree.map(lambda x: sharding.global_batch(mesh, np.asarray(x), places, size), rows)
