"""Flags that name a file or a folder, of this machine or in a bucket."""

from __future__ import annotations

from typing import Any

from absl import flags

from rolegen_jax import fields

# Flags belong to the modules that call path_flag, whose --help lists them.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
  """Reads a path of this machine or, with `urls`, of a bucket; `words` stand for something else."""

  def __init__(self, *words: str, urls: bool):
    self._words, self._urls = words, urls

  def parse(self, argument: str) -> str:
    """Return the expanded path. Raises ValueError, saying what would be right."""
    return argument if argument in self._words else fields.expanded(argument, self._urls)


class _PathListParser(flags.ListParser):
  """Reads paths of this machine or of buckets."""

  def parse(self, argument: str | list[str]) -> list[str]:
    """Return the expanded paths. Raises ValueError, saying what would be right."""
    return [fields.expanded(path, urls=True) for path in super().parse(argument) or ['']]


_COMMAS = flags.CsvListSerializer(',')


def path_flag(
  name: str, default: str | None, help: str, *words: str, urls: bool = False, **settings: Any
) -> flags.FlagHolder[Any]:
  """Define a flag that names a file or folder of this machine, or one of `words`.

  urls: whether it may be in a bucket, gs:// or s3://, too. Its value has `~` and $VARIABLES
  expanded.
  """
  words = (*words, '') if default == '' else words
  parser = _PathParser(*words, urls=urls)
  return flags.DEFINE(
    parser, name, default, help, serializer=flags.ArgumentSerializer(), **settings
  )


def path_list_flag(name: str, help: str, **settings: Any) -> flags.FlagHolder[Any]:
  """Define a flag that names folders, of this machine or of buckets, separated by commas."""
  return flags.DEFINE(_PathListParser(), name, None, help, serializer=_COMMAS, **settings)
