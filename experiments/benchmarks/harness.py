"""What the benchmarks share: command line, stored points, timing in turn, processes and drawing.

A benchmark is a module with two functions and, where a table is worth printing, a third:

  def measure(store: Store, *, repeats: int = 5) -> dict    # the content of NAME.json
  def plot(results: dict, figure_path: pathlib.Path) -> None
  def table(results: dict) -> str

  if __name__ == '__main__':
    harness.main(measure, plot, table)

As a command it measures, or draws with --plot; keyword arguments of `measure` are its flags.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.config import ConfigError, digest
from rolegen_jax.data.files import write_json
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.provenance import machine

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
FIGURES = ROOT / 'docs' / 'performance'
MAX_FIGURE_BYTES = 200_000  # figures are committed

# Okabe & Ito, distinguishable without color vision.
BLUE, SKY, ORANGE, GREEN = '#0072B2', '#56B4E9', '#E69F00', '#009E73'
VERMILION, YELLOW, GRAY = '#D55E00', '#F0C808', '#8A8A8A'


# Command line


def main(
  measure: Callable[..., dict],
  plot: Callable[[dict, pathlib.Path], None],
  table: Callable[[dict], str] | None = None,
  packages: Sequence[str] = (),
) -> None:
  """Run a benchmark module as a command; every keyword argument of `measure` is a flag.

  packages: distributions whose versions the provenance needs beside those that it always has.
  """
  name = pathlib.Path(inspect.getfile(measure)).stem
  flags.disclaim_key_flags()  # so that --help lists them under the benchmark
  read_settings = _define_flags(measure)
  only_plot = flags.DEFINE_bool('plot', False, 'Draw the stored results; measure nothing.')
  results_file = path_flag('results', str(FOLDER / f'{name}.json'), 'Its JSON file.')

  def command() -> None:
    path = pathlib.Path(results_file.value)
    if only_plot.value:
      for figure in draw(name, plot, path, FIGURES):
        print(f'-> {figure}')
      return
    store = Store(path, packages)
    results = measure(store, **read_settings())
    store.write(results)
    if table:
      print(table(results))
    print(f'-> {path}')

  entry.run(command)


def _define_flags(
  measure: Callable[..., dict], flag_values: flags.FlagValues = flags.FLAGS
) -> Callable[[], dict[str, Any]]:
  """Define a flag per keyword argument of `measure`; return what reads their values.

  The default decides the type: bool, int, float, str, or a tuple, which is a comma-separated list.
  Without a default it is a required string. The help is the argument's line of the docstring.
  """
  help_lines = dict(re.findall(r'^ +(\w+): (.+)$', measure.__doc__ or '', re.MULTILINE))
  define = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
  }
  readers = {}
  for name, parameter in inspect.signature(measure).parameters.items():
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
      continue
    help_line = help_lines.get(name, f'The argument {name!r} of `measure`.')
    default = parameter.default
    if default is inspect.Parameter.empty:
      holder = flags.DEFINE_string(name, None, help_line, flag_values=flag_values, required=True)
    elif isinstance(default, tuple):
      holder = flags.DEFINE_list(
        name, [str(x) for x in default], help_line, flag_values=flag_values
      )
    else:
      holder = define[type(default)](name, default, help_line, flag_values=flag_values)
    readers[name] = functools.partial(_read, holder, default)
  return lambda: {name: read() for name, read in readers.items()}


def _read(holder: flags.FlagHolder, default: Any) -> Any:
  if not isinstance(default, tuple):
    return holder.value
  element = type(default[0]) if default else str
  try:
    return tuple(element(text) for text in holder.value)
  except ValueError as error:
    listed = ','.join(holder.value)
    raise ConfigError(f'--{holder.name}={listed}: must be a list of {element.__name__}') from error


def require_known(flag: str, values: Sequence, known: Sequence) -> None:
  """Raise ConfigError where a value of a list flag is none of the `known` ones."""
  if unknown := [value for value in values if value not in known]:
    listed = ', '.join(map(str, known))
    raise ConfigError(f'--{flag}={unknown[0]}: must be some of {listed}')


# Results


class Store:
  """The finished points of a benchmark, kept in its file, so that the same command continues.

  A point is measured again when its settings differ; all of them when the code of rolegen_jax, the
  versions, the devices or the processor do. A store without a path keeps its points in memory.
  """

  def __init__(self, path: pathlib.Path | None = None, packages: Sequence[str] = ()) -> None:
    known = machine(*packages)
    cpu = processor()
    self.provenance = known | dict(cpu=cpu, cores=len(os.sched_getaffinity(0)))
    self.environment = digest(
      distributed.code_digest(), known['versions'], known['device_kind'], cpu
    )
    self.path = path
    self.points: dict[str, dict] = {}
    if path and path.exists():
      stored = json.loads(path.read_text(encoding='utf-8'))
      if stored.get('environment') == self.environment:
        self.points = stored['points']

  def point(self, name: str, settings: Sequence, measure: Callable[[], dict]) -> dict:
    """Return the stored point `name` of these settings, or measure and store it.

    settings: whatever else decides the result, of JSON types and configs.
    """
    key = digest(*settings)
    if self.points.get(name, {}).get('key') != key:
      origin = {field: self.provenance[field] for field in ('commit', 'when')}
      self.points[name] = measure() | origin | dict(key=key)
      self.write({})
    return self.points[name]

  def write(self, results: dict) -> None:
    """Write `results` with the points, the environment they hold for, and the provenance."""
    if self.path:
      about = dict(environment=self.environment, provenance=self.provenance)
      write_json(dict(points=self.points) | results | about, self.path)


def processor() -> str:
  """Return the model of the processor, as far as the system tells."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  models = (line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
  return next(models, platform.machine())


# Timing


def alternate(
  sides: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
  """Return seconds per side and round, each side called once a round until its result is ready.

  A slow moment of the machine so meets all sides of a round. The side that goes first moves on
  each round. `warm_up` rounds are not timed.
  """

  def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started

  calls = {name: functools.partial(timed, call) for name, call in sides.items()}
  return in_turn(calls, repeats, warm_up)


def in_turn(
  sides: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1
) -> dict[str, list[Any]]:
  """Return what each side returned, per round; the order of `alternate`."""
  names = list(sides)
  returned = {name: [] for name in names}
  for i in range(warm_up + repeats):
    first = i % len(names)
    for name in names[first:] + names[:first]:
      returned[name].append(sides[name]())
  return {name: values[warm_up:] for name, values in returned.items()}


def summary(seconds: Sequence[float]) -> dict:
  """Return median_s, quartiles_s and their number n."""
  return dict(
    median_s=float(np.median(seconds)),
    quartiles_s=np.quantile(seconds, (0.25, 0.75)).tolist(),
    n=len(seconds),
  )


def ratio_summary(numerator: Sequence[float], denominator: Sequence[float]) -> dict:
  """Return the median and quartiles of the ratio within each round."""
  ratio = np.divide(numerator, denominator)
  return dict(median=float(np.median(ratio)), quartiles=np.quantile(ratio, (0.25, 0.75)).tolist())


# Child processes


def call_in_process(
  function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
  """Return function(*arguments) computed in a process of its own.

  The function is a top-level one of a benchmark module; arguments and result are of JSON types.
  environment: variables that differ from those of this process.
  """
  module = pathlib.Path(inspect.getfile(function)).stem
  code = (
    'import json, sys\n'
    f'from experiments.benchmarks import {module}\n'
    f'result = {module}.{function.__name__}(*json.loads(sys.argv[1]))\n'
    'with open(sys.argv[2], "w") as file:\n'
    '  json.dump(result, file)\n'
  )
  with tempfile.TemporaryDirectory() as folder:
    result_path = pathlib.Path(folder) / 'result.json'
    command = [sys.executable, '-c', code, json.dumps(arguments), str(result_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=True)
    return json.loads(result_path.read_text(encoding='utf-8'))


def cpu_devices(count: int) -> dict[str, str]:
  """Return the environment variables of a process that sees `count` CPU devices."""
  xla_flags = os.environ.get('XLA_FLAGS', '')
  forced = f'{xla_flags} --xla_force_host_platform_device_count={count}'.strip()
  return dict(JAX_PLATFORMS='cpu', XLA_FLAGS=forced)


def compile_check(*arguments: str) -> dict:
  """Return what the command compile_check writes as JSON, also where a program does not fit.

  What it prints is shown as it comes, as a program takes minutes. Raises ConfigError with its last
  lines where it fails, or where jaxlib cannot read the collectives of this libtpu's programs.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'check.json'
    command = [sys.executable, '-m', 'rolegen_jax', 'compile_check', f'--json={path}', *arguments]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if not path.exists():
      last_lines = '\n'.join(ended.stderr.splitlines()[-12:])
      raise ConfigError(
        f'compile_check {" ".join(arguments)} ended with {ended.returncode}:\n{last_lines}'
      )
    result = json.loads(path.read_text(encoding='utf-8'))
  for program in result['programs']:
    if reason := program.get('collectives', {}).get('unknown'):
      raise ConfigError(
        f'collectives are unknown, {reason}; install the libtpu of requirements-test.txt'
      )
  return result


# Drawing


def draw(
  name: str,
  plot: Callable[[dict, pathlib.Path], None],
  results_path: pathlib.Path,
  figures: pathlib.Path,
) -> list[pathlib.Path]:
  """Draw the results into `figures`; return the figures, NAME.png and any NAME_*.png.

  Raises ConfigError where there are no results, or a figure is too large to be committed.
  """
  if not results_path.exists():
    raise ConfigError(
      f'{results_path}: no such file; python -m experiments.benchmarks.{name} makes it'
    )
  figures.mkdir(parents=True, exist_ok=True)
  plot(json.loads(results_path.read_text(encoding='utf-8')), figures / f'{name}.png')
  drawn = sorted({figures / f'{name}.png', *figures.glob(f'{name}_*.png')})
  for figure in drawn:
    size = figure.stat().st_size
    if size > MAX_FIGURE_BYTES:
      raise ConfigError(
        f'{figure}: {size} bytes; must be at most {MAX_FIGURE_BYTES}: fewer dots per inch'
      )
  return drawn


def panels(
  rows: int, columns: int, size: tuple[float, float], grid: str = 'both'
) -> tuple[Figure, np.ndarray]:
  """Return (figure, panels [rows, columns]) without upper and right spines, over a light grid.

  size: width and height in inches. grid: the axis with grid lines: x, y or both.
  """
  figure = Figure(figsize=size, layout='constrained')
  made = figure.subplots(rows, columns, squeeze=False)
  for panel in made.flat:
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(axis=grid, color='#e9ecef')
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
  return figure, made


def error_bars(times: dict) -> list[list[float]]:
  """Return the quartiles of a `summary` as distances from its median, as matplotlib wants them."""
  low, high = times['quartiles_s']
  return [[times['median_s'] - low], [high - times['median_s']]]


def stacked_bars(panel: Any, heights: Mapping[str, Sequence[float]], colors: Sequence[str]) -> None:
  """Draw one stack per position, labeled with its total; heights: part -> one per position."""
  total = np.zeros(len(next(iter(heights.values()))))
  positions = np.arange(len(total))
  for (part, height), color in zip(heights.items(), colors, strict=True):
    panel.bar(positions, height, 0.65, bottom=total, color=color, label=part)
    total = total + np.asarray(height)
  for position, height in zip(positions, total, strict=True):
    panel.text(position, height, f'{height:.3g}', ha='center', va='bottom', fontsize=8)
