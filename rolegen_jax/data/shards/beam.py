"""The same shards made by Apache Beam: by its local runner, on Flink, Spark or Dataflow, whatever `--runner` names.

The steps are those of `shards`, the shuffle is the engine's: GroupByKey over shards, where a value is an Arrow table of what
one chunk holds of a shard. Log and output are folders that all workers see under one path, as a run folder is for hosts that
train. A job that was cut off begins again; within a job the engine repeats what failed.

Why Beam: it installs by pip alone beside this project's versions (Spark needs a Java too), runs this same pipeline on the
Flink, Spark or Dataflow that a team has already (Ray Data wants a cluster of its own), and shuffles out of memory there.
"""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Iterable, Iterator

import polars as pl

from rolegen_jax.config import ConfigError
from rolegen_jax.data.events import Chunk
from rolegen_jax.data.files import DataError, write_json
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.data.occasions import Cuts
from rolegen_jax.data.shards import convert
from rolegen_jax.data.shards.build import BUILDING, INDEX, begin, finish, hold, read, write_rows


def build(plan: convert.Plan, output: str | os.PathLike, options: list[str]) -> dict:
  """Makes the shards of `plan` in `output` and returns the index, as `shard_build.build` does.

  options: Beam's own, e.g. ['--runner=FlinkRunner', '--flink_master=host:8081']. Raises ConfigError without Beam.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ConfigError('--runner: needs Apache Beam; install requirements-cluster.txt') from error
  output = pathlib.Path(output)
  with hold(output):
    done = begin(plan, output)
    if done is not None:
      return done
    try:
      with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        logs = (
          pipeline
          | 'chunks' >> beam.Create(list(plan.chunks))
          | 'spread' >> beam.Reshuffle()
          | 'split' >> beam.FlatMap(_split, plan)
          | 'shuffle' >> beam.GroupByKey()
          | 'sort' >> beam.Map(_part, plan)
        )
        cuts = (
          logs
          | 'clock' >> beam.Map(lambda part: convert.part_clock(plan, part[1]))
          | 'clocks' >> beam.combiners.ToList()
          | 'cuts' >> beam.Map(lambda clocks: convert.whole_cuts(plan, clocks))
        )
        found = logs | 'pack' >> beam.Map(_pack, plan, output, beam.pvalue.AsSingleton(cuts))
        # A job hands nothing back but files.
        (
          found
          | 'entries' >> beam.combiners.ToList()
          | 'index' >> beam.Map(_index, plan, output, beam.pvalue.AsSingleton(cuts))
        )
    except Exception as error:
      raise _ours(error) from error
    return finish(read(output / BUILDING / INDEX), output)


def _split(chunk: Chunk, plan: convert.Plan) -> Iterator[tuple[int, bytes]]:
  for (shard,), rows in (
    convert.split(plan, chunk).partition_by('shard', as_dict=True, include_key=False).items()
  ):
    table = io.BytesIO()
    rows.write_ipc(table, compression='lz4')
    yield shard, table.getvalue()


def _part(part: tuple[int, Iterable[bytes]], plan: convert.Plan) -> tuple[int, InteractionLog]:
  shard, tables = part
  return shard, convert.part_log(plan, pl.concat([pl.read_ipc(table) for table in tables]))


def _pack(
  part: tuple[int, InteractionLog], plan: convert.Plan, output: pathlib.Path, cuts: Cuts | None
) -> dict:
  shard, log = part
  rows = convert.make_rows(plan, log, cuts)
  found = convert.entry(shard, log, rows)
  if len(rows):
    write_rows(rows, output / found['file'])
  return found


def _index(found: list[dict], plan: convert.Plan, output: pathlib.Path, cuts: Cuts | None) -> None:
  write_json(convert.make_index(plan, cuts, found), output / BUILDING / INDEX)


def _ours(error: Exception) -> Exception:
  """The DataError that a worker raised, without what the engine adds; from a cluster it comes as text. Else `error` itself."""
  text = (
    str(error)
    if isinstance(error, DataError)
    else str(error).rpartition(f'{DataError.__name__}: ')[2]
  )
  raised = isinstance(error, DataError) or f'{DataError.__name__}: ' in str(error)
  return DataError(text.splitlines()[0].partition(' [while running')[0]) if raised else error
