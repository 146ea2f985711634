"""`rolegen serve` under load, and against FastAPI with Hugging Face's T5.

  pip install -r requirements-third-party.txt -r requirements-serve.txt
  python -m experiments.benchmarks.serving --workdir=runs/demo --also=runs/beauty

Sections, each a point of the results; `--sections=soak,kill` measures some of them. The first two
are measured of the runs of `--also`, too, whose sizes are others:

  throughput  the backbone alone: answers/s of a busy server, the highest rate with a p99 within the
              limit, and the latency of one caller; both sides, the callers in turn
  reasoning   the time of eight requests at once with reasons online, cached and off
  soak        70 % of the highest rate, with changes of the catalogue, appends, malformed requests
  swap        10,000 of 100,000 items replaced: end to end, and what its writes take
  kill        kill -9 of one of two supervised replicas under load, and its way back

Needs a run folder. The load averages around a section are beside its figures: other work on the
machine slows both sides of a ratio, and makes every latency worse.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
import time

import jax
import numpy as np

from experiments.benchmarks import catalogue, harness, serving_sides
from experiments.benchmarks.serving_figures import plot, table
from rolegen_jax.config import ConfigError
from rolegen_jax.models import functional
from rolegen_jax.pipeline.artifacts import saved_config
from rolegen_jax.pipeline.context import open_run
from rolegen_jax.pipeline.inputs import prepare_inputs
from rolegen_jax.serving.http.client import Client, Failure
from rolegen_jax.serving.load import drive, figures, plan

SECTIONS = ('throughput', 'reasoning', 'soak', 'swap', 'kill')
PACKAGES = ('torch', 'transformers', 'fastapi', 'uvicorn', 'starlette', 'aiohttp')
ALONE = '--reasoning=off'
LIMIT_MS = 100.0  # p99 of answers
BUSY_CALLERS = 16
ROUNDS = 3  # of callers, of the sides in turn
TRIAL_S, FIRST_RPS, BISECTIONS = 10.0, 1.0, 3  # of a search for the highest rate
AT_ONCE, REASON_ROUNDS = 8, 40
SHARE, CHANGES, MALFORMED, APPENDS = 0.7, 1000, 0.01, 0.05  # of the soak; changes a minute
SWAP_OF, SWAPPED, SWAPS = 100_000, 10_000, 10
KILL_S, KILL_RPS, KILL_CALLERS = 60.0, 5.0, 16
BEFORE = 0.2  # share of that time before the kill


def measure(
  store: harness.Store,
  *,
  workdir: str,
  also: tuple = (),
  sections: tuple = SECTIONS,
  soak_minutes: float = 5.0,
) -> dict:
  """Measure a point per section.

  workdir: Run folder that is served.
  also: Other run folders, of which throughput and reasoning are measured.
  sections: Some of throughput, reasoning, soak, swap and kill.
  soak_minutes: Minutes of the soak; 60 is a long one.
  """
  harness.require_known('sections', sections, SECTIONS)
  workdir = os.path.abspath(workdir)
  shop, config = plan.read_shop(workdir), saved_config(workdir)
  calls = dict(
    throughput=lambda: throughput(workdir, shop),
    reasoning=lambda: reasoning(workdir, shop),
    soak=lambda: soak(workdir, shop, 60 * soak_minutes, _highest(store)),
    swap=swap,
    kill=lambda: kill(workdir, shop),
  )
  for name in sections:
    settings = [config, *([soak_minutes] if name == 'soak' else [])]
    store.point(name, settings, functools.partial(_with_load, calls[name]))
  for other in map(os.path.abspath, also):
    shop_of, config_of = plan.read_shop(other), saved_config(other)
    of_size = dict(throughput=throughput, reasoning=reasoning)
    for name in (name for name in of_size if name in sections):
      section = functools.partial(of_size[name], other, shop_of)
      store.point(f'{name}, {config_of.name}', [config_of], functools.partial(_with_load, section))
  return dict(items=len(shop.items), users=len(shop.users), points=store.points)


def _with_load(section) -> dict:
  """Return what a section measures, and the load averages of a minute around it."""
  before = os.getloadavg()[0]
  measured = section()
  return measured | dict(load_average=[round(before, 1), round(os.getloadavg()[0], 1)])


def _highest(store: harness.Store) -> float:
  """Return the rate that a soak is a share of: within the limit, else of a busy server."""
  point = store.points.get('throughput')
  if point is None:
    raise ConfigError('--sections=soak: must come after throughput, which says the rate')
  ours = point['sides']['rolegen']
  return ours['rps_within_limit'] or float(np.median(ours['busy_per_second']))


# Throughput


def throughput(workdir: str, shop: plan.Shop) -> dict:
  """Measure both sides with one caller, with many, and at rising rates."""
  parameters = backbone_parameters(workdir)
  baseline = ['experiments.benchmarks.serving_t5'], f'--workdir={workdir}'
  with (
    serving_sides.ours(workdir, ALONE) as ours,
    serving_sides.served(*baseline, f'--parameters={parameters}') as t5,
  ):
    urls = dict(rolegen=ours.url, hf_t5=t5.url)

    def loop(url: str, callers: int) -> tuple[float, list[float]]:
      return serving_sides.closed_loop(url, shop.users, callers, TRIAL_S, k=10, reasoning='off')

    def rounds(callers: int) -> dict[str, list]:
      calls = {name: functools.partial(loop, url, callers) for name, url in urls.items()}
      return harness.in_turn(calls, ROUNDS, warm_up=0)

    one, busy = rounds(1), rounds(BUSY_CALLERS)
    sides = {}
    for name, url in urls.items():
      latencies = [second for _, seconds in one[name] for second in seconds]
      sides[name] = dict(
        one_caller=harness.summary(latencies),
        busy_per_second=[rate for rate, _ in busy[name]],
        **highest_rate(url, shop),
      )
  medians = {name: [np.median(seconds) for _, seconds in one[name]] for name in urls}
  rates = {name: side['busy_per_second'] for name, side in sides.items()}
  return dict(
    items=len(shop.items),
    parameters=parameters,
    t5_parameters=t5.ready['parameters'],
    beams=saved_config(workdir).backbone.beam,
    sides=sides,
    ratios=dict(
      busy=harness.ratio_summary(rates['rolegen'], rates['hf_t5']),
      one_caller=harness.ratio_summary(medians['hf_t5'], medians['rolegen']),
    ),
  )


def backbone_parameters(workdir: str) -> int:
  """Return how many weights the run's backbone has."""
  run, _ = prepare_inputs(open_run(saved_config(workdir), workdir, may_train=False))
  shapes = functional.abstract(run.rolegen.model_fns['backbone'])[1]
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def highest_rate(url: str, shop: plan.Shop) -> dict:
  """Return the highest rate whose p99 is within LIMIT_MS, 0 = none that was tried, and all trials.

  Rates double until one is too high, then the interval is halved.
  """
  trials: list[dict] = []

  def holds(rps: float) -> bool:
    mix = plan.Mix(rps=rps, duration=TRIAL_S, reasoning='off', seed=len(trials))
    found = load(url, shop, mix)[1]
    p99 = found['kinds']['recommend']['latency_ms'].get('p99', float('inf'))
    trials.append(dict(rps=rps, p99_ms=p99, failed=found['failed']))
    return p99 <= LIMIT_MS and not found['failed']

  low, high = 0.0, FIRST_RPS
  while holds(high):
    low, high = high, 2 * high
  for _ in range(BISECTIONS if low else 0):
    middle = (low + high) / 2
    low, high = (middle, high) if holds(middle) else (low, middle)
  return dict(rps_within_limit=low, limit_ms=LIMIT_MS, trials=trials)


def load(url: str, shop: plan.Shop, mix: plan.Mix) -> tuple[drive.Outcome, dict]:
  """Run a load test; return what it saw and its summary."""
  outcome = drive.drive(url, plan.planned(mix, shop), shop, mix)
  return outcome, figures.summary(outcome)


# Reasons


def reasoning(workdir: str, shop: plan.Shop) -> dict:
  """Time batches of eight with reasons rolled out, kept, and without, in turn."""
  rng = np.random.default_rng(0)
  users = [shop.users[i] for i in rng.choice(len(shop.users), AT_ONCE, replace=False)]
  # They wait for each other for as long as it takes: each round is one batch.
  with serving_sides.ours(workdir, f'--max_batch={AT_ONCE}', '--max_wait_ms=1000') as server:
    calls = {
      mode: functools.partial(serving_sides.together, server.url, users, reasoning=mode)
      for mode in ('off', 'cached', 'online')
    }
    seconds = harness.in_turn(calls, REASON_ROUNDS, warm_up=2)
  return dict(
    batch=AT_ONCE,
    modes={mode: harness.summary(times) for mode, times in seconds.items()},
    ratios={
      mode: harness.ratio_summary(seconds[mode], seconds['off']) for mode in ('online', 'cached')
    },
  )


# Soak


def soak(workdir: str, shop: plan.Shop, seconds: float, highest: float) -> dict:
  """Load a server for so long while its catalogue and its users change."""
  mix = plan.Mix(
    rps=SHARE * highest,
    duration=seconds,
    reasoning='off',
    appends=APPENDS,
    malformed=MALFORMED,
    changes=CHANGES,
  )
  with serving_sides.ours(workdir, ALONE) as server:
    outcome, found = load(server.url, shop, mix)
  samples = [sample for sample in outcome.samples if 'memory_bytes' in sample]
  every = max(1, len(samples) // 120)
  memory = [[round(s['at'], 1), s['memory_bytes']] for s in samples[::every]]
  return dict(rps=mix.rps, seconds=seconds, figures=found, memory=memory)


# Swap


def swap() -> dict:
  """Replace items: end to end, and in turns with a wait after each write, which times those."""
  pool = catalogue.simulated_ids(SWAP_OF + 2 * SWAPPED, catalogue.LEVELS, catalogue.CODES, seed=0)
  live = catalogue.LiveRun(pool, SWAP_OF, with_regions=False, seed=0)
  scatter, writes = live.catalogue._scatter, []

  def timed(*arguments) -> jax.Array:
    started = time.perf_counter()
    table = jax.block_until_ready(scatter(*arguments))
    writes[-1] += time.perf_counter() - started
    return table

  live.swap(SWAPPED)
  whole = []
  for _ in range(SWAPS):
    live.catalogue._scatter = scatter
    whole.append(live.swap(SWAPPED))
    live.catalogue._scatter = timed
    writes.append(0.0)
    live.swap(SWAPPED)
  if live.wrong_ids():
    raise RuntimeError('after the swaps IDs lead to wrong items')
  end_to_end, device = harness.summary(whole), harness.summary(writes)
  return dict(items=SWAP_OF, swapped=SWAPPED, end_to_end=end_to_end, writes=device)


# Kill


def kill(workdir: str, shop: plan.Shop) -> dict:
  """Ask two replicas through clients that try again, and kill one of them meanwhile."""
  flags = [ALONE, '--restarts=1']
  with (
    serving_sides.supervised(workdir, *flags) as first,
    serving_sides.supervised(workdir, *flags) as second,
  ):
    asked = Asked(shop, (first.url, second.url))
    asking = threading.Thread(target=asked.run)
    asking.start()
    time.sleep(BEFORE * KILL_S)
    killed, at = serving_sides.child_of(first.process.pid), time.monotonic()
    serving_sides.kill_9(killed)
    while serving_sides.readiness(first.url):
      time.sleep(0.01)
    while not serving_sides.readiness(first.url):
      if time.monotonic() - at > serving_sides.START_S:
        raise RuntimeError(f'{first.url} did not come back')
      time.sleep(0.05)
    ready_s = time.monotonic() - at
    cpu_s = serving_sides.cpu_seconds(serving_sides.child_of(first.process.pid))
    asking.join()
    returned = Client(first.url).recommend(shop.users[0], k=1, reasoning='off')
  ms = 1e3 * np.array(asked.latencies)
  return dict(
    requests=len(asked.latencies) + len(asked.lost),
    lost=asked.lost,
    seconds=KILL_S,
    latency_ms={f'p{p:g}': float(np.percentile(ms, p)) for p in (50, 99, 100)},
    ready_again_s=ready_s,
    ready_again_cpu_s=cpu_s,
    first_start_s=first.ready_s,
    answers_again=bool(returned['items']),
  )


class Asked:
  """Requests that are due at times drawn before, each asked by one of many clients."""

  def __init__(self, shop: plan.Shop, urls: tuple[str, ...]):
    rng = np.random.default_rng(0)
    self._due: queue.SimpleQueue = queue.SimpleQueue()
    for at in plan.poisson(rng, KILL_RPS, KILL_S):
      self._due.put((at, shop.users[int(rng.integers(len(shop.users)))]))
    self._urls = urls
    self.latencies: list[float] = []  # seconds since they were due
    self.lost: list[str] = []

  def run(self) -> None:
    """Ask all of them."""
    self._started = time.monotonic()
    threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(KILL_CALLERS)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()

  def _ask(self, place: int) -> None:
    turned = self._urls if place % 2 else self._urls[::-1]
    client = Client(*turned)
    while True:
      try:
        at, user = self._due.get_nowait()
      except queue.Empty:
        return
      time.sleep(max(0.0, self._started + at - time.monotonic()))
      try:
        client.recommend(user, k=10, reasoning='off')
        self.latencies.append(time.monotonic() - self._started - at)
      except (Failure, OSError) as error:
        self.lost.append(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=PACKAGES)
