"""Build the same shards with Apache Beam: locally, on Flink, Spark or Dataflow, as `--runner` says.

The steps are those of `convert`, the shuffle is the engine's: GroupByKey over shards, where a value
is an Arrow table of what one chunk holds of a shard. Log and output are folders that all workers
see under one path, as a run folder is for hosts that train. A job that was cut off begins again;
within a job the engine repeats what failed.

Why Beam: it installs by pip alone beside this project's versions (Spark needs a Java too), runs
this same pipeline on the Flink, Spark or Dataflow that a team has already (Ray Data wants a cluster
of its own), and shuffles out of memory there.
"""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from rolegen_jax.config import ConfigError
from rolegen_jax.data.contract import Chunk
from rolegen_jax.data.cuts import Cuts, OccasionTimes
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.shards import convert
from rolegen_jax.data.shards.build import BUILDING, INDEX, begin, finish, hold, read, write_rows

ShardLog = tuple[int, InteractionLog]


def build(plan: convert.Plan, output: str | os.PathLike, options: list[str]) -> dict[str, Any]:
  """Make the shards of `plan` in `output` and return the index, as `build.build` does.

  options: Beam's own, e.g. ['--runner=FlinkRunner', '--flink_master=host:8081']. Raises ConfigError
  without Beam.
  """
  try:
    import apache_beam  # noqa: F401, fails before anything is written
  except ImportError as error:
    raise ConfigError('--runner: needs Apache Beam; install requirements-cluster.txt') from error
  output = pathlib.Path(output)
  with hold(output):
    complete_index = begin(plan, output)
    if complete_index is not None:
      return complete_index
    try:
      _run(plan, output, options)
    except Exception as error:
      raise _as_data_error(error) from error
    index = read(output / BUILDING / INDEX)
    assert index is not None, 'the pipeline writes it last'
    return finish(index, output)


def _run(plan: convert.Plan, output: pathlib.Path, options: list[str]) -> None:
  """Run the pipeline, which leaves the shards in `output` and the index in its building folder."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
    logs = (
      pipeline
      | 'chunks' >> beam.Create(list(plan.chunks))
      | 'spread' >> beam.Reshuffle()
      | 'split' >> beam.FlatMap(_split, plan)
      | 'shuffle' >> beam.GroupByKey()
      | 'sort' >> beam.Map(_sort, plan)
    )
    cuts = (
      logs
      | 'times' >> beam.Map(_times, plan)
      | 'all times' >> beam.combiners.ToList()
      | 'cuts' >> beam.Map(_cuts, plan)
    )
    entries = logs | 'pack' >> beam.Map(_pack, plan, output, beam.pvalue.AsSingleton(cuts))
    # A job hands nothing back but files.
    (
      entries
      | 'all entries' >> beam.combiners.ToList()
      | 'index' >> beam.Map(_write_index, plan, output, beam.pvalue.AsSingleton(cuts))
    )


def _split(chunk: Chunk, plan: convert.Plan) -> Iterator[tuple[int, bytes]]:
  rows = convert.split(plan, chunk)
  by_shard = rows.partition_by('shard', as_dict=True, include_key=False)
  for (shard,), rows_of_shard in by_shard.items():
    table = io.BytesIO()
    rows_of_shard.write_ipc(table, compression='lz4')
    yield shard, table.getvalue()


def _sort(part: tuple[int, Iterable[bytes]], plan: convert.Plan) -> ShardLog:
  shard, tables = part
  return shard, convert.shard_log(plan, pl.concat([pl.read_ipc(table) for table in tables]))


def _times(shard_log: ShardLog, plan: convert.Plan) -> OccasionTimes:
  _, log = shard_log
  return convert.shard_times(plan, log)


def _cuts(times: list[OccasionTimes], plan: convert.Plan) -> Cuts | None:
  return convert.global_cuts(plan, times)


def _pack(
  shard_log: ShardLog, plan: convert.Plan, output: pathlib.Path, cuts: Cuts | None
) -> dict[str, Any]:
  shard, log = shard_log
  rows = convert.make_rows(plan, log, cuts)
  entry = convert.entry(shard, log, rows)
  if len(rows):
    write_rows(rows, output / entry['file'])
  return entry


def _write_index(
  entries: list[dict[str, Any]], plan: convert.Plan, output: pathlib.Path, cuts: Cuts | None
) -> None:
  write_json(convert.make_index(plan, cuts, entries), output / BUILDING / INDEX)


def _as_data_error(error: Exception) -> Exception:
  """Return the DataError that a worker raised, without what the engine adds; else `error` itself.

  From a cluster it comes as text.
  """
  prefix = f'{DataError.__name__}: '
  if isinstance(error, DataError):
    text = str(error)
  elif prefix in str(error):
    text = str(error).rpartition(prefix)[2]
  else:
    return error
  return DataError(text.splitlines()[0].partition(' [while running')[0])
