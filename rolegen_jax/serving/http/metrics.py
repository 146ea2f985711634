"""What the server measures, as Prometheus reads it."""

from __future__ import annotations

from typing import Any

import jax
from prometheus_client import (
  CollectorRegistry,
  Counter,
  Gauge,
  Histogram,
  ProcessCollector,
  generate_latest,
)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32)

# Compilations of this process. jax keeps its listeners for good, so one serves all servers.
_compiled = [0]


def _listen(event: str, *args: Any, **kwargs: Any) -> None:
  if 'backend_compile' in event:
    _compiled[0] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


class Metrics:
  """Counters and histograms of one server."""

  def __init__(self) -> None:
    self._registry = registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # memory and CPU of the process, by their usual names
    self._at_ready: int | None = None
    self.requests = Counter(
      'rolegen_requests', 'Requests by path and status.', ['path', 'status'], registry=registry
    )
    self.answers = Counter(
      'rolegen_answers', 'Lists by what stood behind them.', ['reasoning'], registry=registry
    )
    self._phases = Histogram(
      'rolegen_phase_seconds',
      'Time by phase: queue and total of a request; trends, assemble, encode, reason, rank, opens, '
      'explain of a batch; change of the catalogue.',
      ['phase'],
      buckets=SECONDS,
      registry=registry,
    )
    self.batch_rows = Histogram(
      'rolegen_batch_rows', 'Requests of a batch.', ['kind'], buckets=ROWS, registry=registry
    )
    self._gauges = {
      name: Gauge(f'rolegen_{name}', text, registry=registry)
      for name, text in (
        ('queue_requests', 'Requests that wait.'),
        ('catalogue_items', 'Items that can be recommended.'),
        ('catalogue_version', 'Version of the catalogue.'),
        ('worlds_kept', 'Histories whose worlds are kept.'),
        ('worlds_bytes', 'Bytes of the worlds that are kept.'),
        ('worlds_hits', 'Requests for cached worlds that found some, since the start.'),
        ('worlds_misses', 'Requests for cached worlds that found none, since the start.'),
        ('histories_kept', 'Histories that are encoded on the device.'),
        ('events_kept', 'Events of requests that were encoded already, since the start.'),
        ('events_encoded', 'Events of requests that had to be encoded, since the start.'),
        ('compilations_since_ready', 'Programs compiled since the server was ready; 0 is right.'),
      )
    }

  def observe(self, phase: str, seconds: float) -> None:
    """Take note of how long a phase took."""
    self._phases.labels(phase).observe(seconds)

  def ready(self) -> None:
    """Count compilations from now on."""
    self._at_ready = _compiled[0]

  @property
  def compilations(self) -> int:
    """Programs compiled since the server was ready; 0 before that."""
    return 0 if self._at_ready is None else _compiled[0] - self._at_ready

  def text(self, **gauges: float) -> bytes:
    """Return all of it as Prometheus text. gauges: what is measured now, by name."""
    for name, value in (gauges | {'compilations_since_ready': self.compilations}).items():
      self._gauges[name].set(value)
    return generate_latest(self._registry)
