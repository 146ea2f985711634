"""A trained run as what `rolegen serve` serves."""

from __future__ import annotations

import dataclasses
import os
import time

import msgspec

from rolegen_jax import sharding
from rolegen_jax.config import Config, ConfigError
from rolegen_jax.data.files import DataError
from rolegen_jax.pipeline import stages
from rolegen_jax.pipeline.ablations import train_ablation
from rolegen_jax.pipeline.context import Run, open_run
from rolegen_jax.pipeline.inputs import Inputs, prepare_inputs
from rolegen_jax.pipeline.run import train_models
from rolegen_jax.runtime import distributed
from rolegen_jax.runtime.progress import say
from rolegen_jax.semantic_ids.embeddings import embedder_of_more
from rolegen_jax.serving.hot_swap import MutableCatalogue
from rolegen_jax.serving.http.app import App
from rolegen_jax.serving.http.batcher import Batcher
from rolegen_jax.serving.http.columns import Columns
from rolegen_jax.serving.http.dispatch import Dispatcher
from rolegen_jax.serving.http.engine import Engine, Trained
from rolegen_jax.serving.http.guard import Guard
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.metrics import Metrics
from rolegen_jax.serving.http.placing import Placer
from rolegen_jax.serving.http.programs import MOST_ROWS, batch_sizes
from rolegen_jax.serving.http.trends import Trends
from rolegen_jax.serving.http.views import AbTest


@dataclasses.dataclass(frozen=True)
class Settings:
  """The flags of `rolegen serve`."""

  max_batch: int = 8
  max_wait: float = 0.002  # seconds
  max_queue: int = 256
  top: int = 10
  cache_bytes: int = 256 * 10**6  # of encoded histories on each device
  reasoning: str = 'online'
  token: str = ''
  names: frozenset[str] | None = None  # see `Guard`


def application(config: Config, workdir: str | os.PathLike, settings: Settings) -> App:
  """Return the application over a trained run, every program compiled.

  Raises ConfigError where the run is not complete, or cannot be served so.
  """
  run = open_run(config, workdir, may_train=False)
  sizes = _sizes(run, settings.max_batch)
  run, inputs = prepare_inputs(run)
  models = train_models(run, inputs)
  trained = _trained(run, inputs, models, reasons=settings.reasoning != 'off')
  return assembled(run, inputs, trained, sizes, settings)


def assembled(
  run: Run, inputs: Inputs, trained: Trained, sizes: tuple[int, ...], settings: Settings
) -> App:
  """Return the application over models, every program compiled for these batch sizes."""
  ab_test = _ab_test(run)
  items, placer = _live_items(run, inputs)
  metrics = Metrics()
  trends, table = None, inputs.trie.trending
  if table is not None:
    trends = Trends(inputs.log, inputs.choices.trending, table, items)
  engine = Engine(
    trained, items, sizes, settings.top, settings.cache_bytes, metrics.observe, trends
  )
  started = time.monotonic()
  programs = engine.warm()
  say(
    f'{len(items)} items, room for {items.tables.capacity}; '
    f'{programs} programs compiled in {time.monotonic() - started:.1f} s'
  )
  batcher = Batcher(settings.max_batch, settings.max_wait, settings.max_queue)
  dispatcher = Dispatcher(engine, batcher, metrics)
  guard = Guard(settings.token, settings.names)
  return App(engine, placer, dispatcher, metrics, settings.reasoning, guard, ab_test)


def _ab_test(run: Run) -> AbTest | None:
  """Return the latest A/B test of the run; None where none was played. Raises DataError."""
  path = run.workdir / 'ab.json'
  if not path.exists():
    return None
  try:
    return msgspec.json.decode(path.read_bytes(), type=AbTest)
  except (OSError, msgspec.DecodeError) as error:
    right = 'must be what rolegen simulate_ab writes; run it again, or remove the file'
    raise DataError(f'{path}: {" ".join(str(error).split())}; {right}') from error


def _sizes(run: Run, max_batch: int) -> tuple[int, ...]:
  """Return the batch sizes to compile for."""
  if distributed.several():
    raise ConfigError('serve: must be one process; start a server for each')
  parts = sharding.batch_parts(run.mesh, sharding.ROLLOUTS[run.config.mesh.rollout])
  sizes = batch_sizes(max_batch, parts)
  if sizes[-1] > MOST_ROWS:
    raise ConfigError(
      f'--max_batch={max_batch}: fills up to {sizes[-1]} rows on {parts} devices; must leave '
      f'them at most {MOST_ROWS}'
    )
  return sizes


def _trained(run: Run, inputs: Inputs, models: stages.Models, reasons: bool) -> Trained:
  """Return the models and what they read. reasons: whether the reasoner is needed.

  The backbone that stands alone has the weights that the run fitted to it, where it did.
  """
  whole = models.calibrated.load()
  alone = whole
  if 'no_reasoner' in run.config.evaluation.ablations:
    alone = train_ablation(run, inputs, models, 'no_reasoner').load()
  return Trained(
    rolegen=run.rolegen,
    params={name: whole[name] for name in ('backbone', 'reasoner')} if reasons else {},
    alone=alone['backbone'],
    log=inputs.log,
    excitation=inputs.excitation,
    bars_history=inputs.bars_history,
    mesh=run.mesh,
  )


def _live_items(run: Run, inputs: Inputs) -> tuple[Items, Placer]:
  """Return the run's catalogue, which may change, and what gives new items their codes."""
  text, embed = inputs.text_vectors, None
  if text is not None:
    embed = embedder_of_more(inputs.log.items, run.config.semantic_ids.text)
    if embed:
      embed([''])  # what it makes once, it makes now
  counts = inputs.trie.item_count[: len(inputs.codes)]
  vectors = inputs.trie.item_text
  if vectors is not None:
    vectors = vectors[: len(inputs.codes)]
  tables = MutableCatalogue(
    inputs.codes,
    run.config.semantic_ids.codes,
    sharding=sharding.sharding(run.mesh),
    counts=counts,
    text=vectors,
    trending=inputs.trie.trending,
  )
  columns = Columns(inputs.log.items)
  items = Items(inputs.log.items['item_id'].to_list(), tables, columns, counts, vectors)
  return items, Placer(inputs.catalogue.codebooks, text, embed)
