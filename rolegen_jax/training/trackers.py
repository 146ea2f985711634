"""Metrics to Weights & Biases or MLflow, under the names that TensorBoard has them by.

What is a run in TensorBoard, a stage of a run folder, is a run there. Which one stands in the
stage's tracker.json, so a resumed stage continues its run. The trackers' own variables, WANDB_* and
MLFLOW_*, say where runs are kept; without MLFLOW_TRACKING_URI that is a database in the run folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rolegen_jax.config import Config, ConfigError, to_dict
from rolegen_jax.data.files import write_json
from rolegen_jax.runtime import storage
from rolegen_jax.runtime.progress import say

PACKAGES = {'wandb': ('wandb',), 'mlflow': ('mlflow', 'sqlalchemy', 'alembic')}
PROJECT = 'rolegen'  # where neither WANDB_PROJECT nor MLFLOW_EXPERIMENT_NAME names one
PARAMETERS_AT_ONCE = 100  # MLflow's limit of a request


class Tracker(Protocol):
  """One run at a tracker."""

  id: str

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Send the metrics of a step; returns at once."""

  def close(self) -> None:
    """Wait until all is sent."""


class Tracking:
  """Which tracker the stages of a run folder report to."""

  def __init__(self, kind: str, config: Config, workdir: str | os.PathLike):
    """Check the tracker; nothing is written. Raises ConfigError saying what is missing."""
    self._kind, self._config = kind, to_dict(config)
    self._workdir = storage.absolute(workdir)
    missing = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
      raise ConfigError(
        f'--tracker={kind}: needs {", ".join(missing)}: pip install -r requirements-trackers.txt'
      )
    if kind == 'mlflow' and storage.is_remote(workdir) and 'MLFLOW_TRACKING_URI' not in os.environ:
      raise ConfigError(
        f'--tracker=mlflow: a bucket ({workdir}) holds no database; MLFLOW_TRACKING_URI must name '
        'a tracking server'
      )
    try:
      _check_wandb() if kind == 'wandb' else _check_mlflow()
    except Exception as error:  # whatever their clients raise
      reason = ' '.join(str(error).split())
      raise ConfigError(f'--tracker={kind}: {reason}; {_RIGHT[kind]}') from error

  def open(self, stage: str, folder: pathlib.Path) -> tuple[Tracker, bool]:
    """Return the run of a stage, and whether it existed before."""
    path = folder / 'tracker.json'
    try:
      known = json.loads(path.read_text(encoding='utf-8')).get(self._kind, '')
    except (FileNotFoundError, ValueError):  # none, or cut off by a crash
      known = ''
    start = _Wandb if self._kind == 'wandb' else _Mlflow
    tracker = start(known, stage, self._workdir, self._config)
    write_json({self._kind: tracker.id}, path)
    return tracker, tracker.id == known


class _Wandb:
  def __init__(self, known: str, stage: str, workdir: pathlib.Path, config: dict[str, Any]):
    import wandb

    self.id = known or secrets.token_hex(4)
    self._run = wandb.init(
      id=self.id,
      resume='allow',
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      group=workdir.name,
      name=stage,
      dir=None if storage.is_remote(workdir) else str(workdir),
      config=config,
      settings=wandb.Settings(console='off', silent=True),
    )

  def log(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


class _Mlflow:
  def __init__(self, known: str, stage: str, workdir: pathlib.Path, config: dict[str, Any]):
    from mlflow import MlflowClient
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    self._client = MlflowClient(
      tracking_uri=os.environ.get('MLFLOW_TRACKING_URI') or f'sqlite:///{workdir}/mlflow.db'
    )
    self._sent: list[Any] = []  # requests under way
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self._client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else self._client.create_experiment(name)
    if known:
      with contextlib.suppress(MlflowException):  # it was deleted, or is at another server
        self._client.update_run(known, status='RUNNING')
        self.id = known
        return
    run = self._client.create_run(number, run_name=stage, tags={'group': workdir.name})
    self.id = run.info.run_id
    parameters = [Param(key, str(value)[:6000]) for key, value in _flat(config)]
    for first in range(0, len(parameters), PARAMETERS_AT_ONCE):
      self._client.log_batch(self.id, params=parameters[first : first + PARAMETERS_AT_ONCE])

  def log(self, step: int, values: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value in values.items()]
    self._sent.append(self._client.log_batch(self.id, metrics=metrics, synchronous=False))

  def close(self) -> None:
    for sent in self._sent:
      sent.wait()
    self._client.set_terminated(self.id)


_RIGHT = {
  'wandb': 'must be logged in (`wandb login`, or WANDB_API_KEY), or have WANDB_MODE=offline',
  'mlflow': 'MLFLOW_TRACKING_URI must name a tracking server or database that answers',
}


def _check_wandb() -> None:
  import wandb

  wandb.login()


def _check_mlflow() -> None:
  """Ask the server or database that the environment names, if it names one."""
  uri = os.environ.get('MLFLOW_TRACKING_URI')
  if uri:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


def _flat(values: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  flat: list[tuple[str, Any]] = []
  for name, value in values.items():
    if isinstance(value, Mapping):
      flat += _flat(value, f'{prefix}{name}.')
    else:
      flat.append((f'{prefix}{name}', value))
  return flat


class Reporting:
  """Sends the metrics of a stage to its run. A tracker that fails does not stop the training."""

  def __init__(self, tracking: Tracking, stage: str, folder: pathlib.Path, rows: list[dict]):
    """Open the run; `rows` are those of metrics.jsonl so far, which a new run gets too."""
    self._stage, self._reported = stage, -1
    self._tracker: Tracker | None = None
    with self._or_go_on():
      self._tracker, existed = tracking.open(stage, folder)
      if existed:
        self._reported = max((row['step'] for row in rows), default=-1)
      for row in rows:
        metrics = {name: row[name] for name in row if name not in ('step', 'time_s')}
        self.log(row['step'], metrics)

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Send the metrics of a step, unless they were sent before the stage was cut off."""
    if self._tracker and step > self._reported:
      self._reported = step
      with self._or_go_on():
        self._tracker.log(step, values)

  def close(self) -> None:
    """Wait until all is sent."""
    if self._tracker:
      with self._or_go_on():
        self._tracker.close()

  @contextlib.contextmanager
  def _or_go_on(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # whatever their clients raise
      self._tracker = None
      reason = ' '.join(str(error).split())
      say(f'{self._stage}: no longer tracked, {reason}; metrics.jsonl has all metrics')
