"""`python fast_sweep.py --flags`: `python -m launch.sweep`, with points that compile fast."""

import dataclasses
import pathlib
import runpy
import sys

from launch import points
from launch.pool import Point

FAST_TRAIN = str(pathlib.Path(__file__).with_name('fast_train.py'))

_local_point = points.local_point


def fast_point(*args) -> Point:
  point = _local_point(*args)
  train = point.command.index('train')
  return dataclasses.replace(point, command=[sys.executable, FAST_TRAIN, *point.command[train:]])


if __name__ == '__main__':
  points.local_point = fast_point
  runpy.run_module('launch.sweep', run_name='__main__', alter_sys=True)
