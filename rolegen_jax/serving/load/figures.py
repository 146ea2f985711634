"""What a load test says: percentiles, errors by kind, and a picture."""

from __future__ import annotations

import collections
import os
from typing import Any

import numpy as np

from rolegen_jax.data.files import renamed
from rolegen_jax.serving.load.drive import OK, Outcome, Sent
from rolegen_jax.serving.load.plan import MALFORMED

PERCENTILES = (50, 90, 99, 99.9)
BIN_S = 1.0


def summary(outcome: Outcome) -> dict[str, Any]:
  """Return the figures as JSON: all requests, those of each kind, and the server's gauges.

  Latencies are in milliseconds, of answers that are right, from when the request was due. `failed`
  counts good requests without a right answer, `wrong` answers that break a promise, and
  `client_lag_ms` how late requests went out: it is in the latencies, and where it is large, the
  client is what limits them.
  """
  requests = outcome.requests
  kinds = sorted({sent.kind for sent in requests})
  figures = {kind: _of([sent for sent in requests if sent.kind == kind]) for kind in kinds}
  lag = 1e3 * np.array([sent.sent - sent.due for sent in requests] or [0.0])
  span = max([sent.answered for sent in requests], default=0.0)
  return dict(
    requests=len(requests),
    seconds=round(span, 3),
    answered_per_second=sum(sent.outcome == OK for sent in requests) / max(span, 1e-9),
    failed=sum(sent.outcome != OK for sent in requests if sent.kind != MALFORMED),
    wrong=sum(sent.outcome.startswith('wrong') for sent in requests),
    client_lag_ms={f'p{p:g}': _rounded(np.percentile(lag, p)) for p in (50, 99)},
    kinds=figures,
    server=_gauges(outcome.samples),
  )


def is_wrong(figures: dict[str, Any]) -> bool:
  """Return whether an answer was wrong, or good requests were sent and none was answered right."""
  good = [of['ok'] for kind, of in figures['kinds'].items() if kind != MALFORMED]
  return bool(figures['wrong'] or (good and not any(good)))


def _of(requests: list[Sent]) -> dict[str, Any]:
  ms = 1e3 * np.array([sent.answered - sent.due for sent in requests if sent.outcome == OK])
  errors = collections.Counter(sent.outcome for sent in requests if sent.outcome != OK)
  latency = {f'p{p:g}': _rounded(np.percentile(ms, p)) for p in PERCENTILES} if len(ms) else {}
  if len(ms):
    latency['max'] = _rounded(ms.max())
  return dict(requests=len(requests), ok=len(ms), errors=dict(errors), latency_ms=latency)


def _rounded(value: float) -> float:
  return round(float(value), 3)


def _gauges(samples: list[dict[str, float]]) -> dict[str, Any]:
  """Return first, last and largest value of each gauge."""
  names = {name for sample in samples for name in sample} - {'at'}
  values = {name: [s[name] for s in samples if name in s] for name in sorted(names)}
  return {name: dict(first=v[0], last=v[-1], most=max(v)) for name, v in values.items()}


def table(figures: dict[str, Any]) -> str:
  """Return a summary as text."""
  head = ''.join(f'{f"p{p:g}":>9}' for p in PERCENTILES)
  lines = [f'{"latency, ms":<12}{"sent":>8}{"ok":>8}{head}{"max":>9}']
  for kind, of in figures['kinds'].items():
    latency = ''.join(f'{value:>9.1f}' for value in of['latency_ms'].values())
    lines.append(f'{kind:<12}{of["requests"]:>8}{of["ok"]:>8}{latency}')
  for kind, of in figures['kinds'].items():
    lines += [f'{kind}: {n} x {what}' for what, n in of['errors'].items()]
  lines.append(
    f'{figures["answered_per_second"]:.1f} right answers/s; {figures["failed"]} good requests '
    f'failed, {figures["wrong"]} wrong answers; sent late by {figures["client_lag_ms"]["p99"]} ms '
    '(p99)'
  )
  return '\n'.join(lines)


def plot(outcome: Outcome, path: str | os.PathLike) -> None:
  """Draw latency over time and by percentile, and the server's memory, as a PNG."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9.6, 5.4), layout='constrained')
  over_time, by_percentile, rate, memory = figure.subplots(2, 2).flat
  good = [sent for sent in outcome.requests if sent.outcome == OK]
  due = np.array([sent.due for sent in good])
  ms = 1e3 * np.array([sent.answered - sent.due for sent in good])
  bins = (due / BIN_S).astype(int)
  seconds = np.unique(bins)
  for p, color in ((50, '#0072B2'), (99, '#D55E00')):
    line = [np.percentile(ms[bins == second], p) for second in seconds]
    over_time.plot(seconds * BIN_S, line, color=color, linewidth=1, label=f'p{p} of a second')
  over_time.set(ylabel='latency, ms', yscale='log')
  over_time.legend(frameon=False, fontsize=8)
  for kind in sorted({sent.kind for sent in good}):
    of_kind = np.sort([1e3 * (sent.answered - sent.due) for sent in good if sent.kind == kind])
    above = 1 - np.arange(len(of_kind)) / len(of_kind)
    by_percentile.plot(of_kind, 100 * above, linewidth=1.2, label=kind)
  by_percentile.set(xlabel='latency, ms', ylabel='% that took longer', xscale='log', yscale='log')
  by_percentile.legend(frameon=False, fontsize=8)
  failed = [sent.due for sent in outcome.requests if sent.outcome != OK]
  edges = BIN_S * np.arange(int(max([*due, *failed], default=0) / BIN_S) + 2)
  for values, color, label in ((due, '#009E73', 'answered'), (failed, '#D55E00', 'not answered')):
    rate.plot(edges[:-1], np.histogram(values, edges)[0] / BIN_S, color=color, label=label)
  rate.set(xlabel='seconds', ylabel='requests due per second', ylim=(0, None))
  rate.legend(frameon=False, fontsize=8)
  samples = [sample for sample in outcome.samples if 'memory_bytes' in sample]
  mib = [sample['memory_bytes'] / 2**20 for sample in samples]
  memory.plot([sample['at'] for sample in samples], mib, color='#0072B2')
  memory.set(xlabel='seconds', ylabel="server's memory, MiB", ylim=(0, 1.2 * max(mib, default=1)))
  for panel in (over_time, by_percentile, rate, memory):
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(color='#e9ecef')
    panel.tick_params(labelsize=8)
  with renamed(path) as temporary:
    figure.savefig(temporary, dpi=110, format='png')
