"""Benchmarks, one file each: `measure` fills NAME.json, `plot` draws docs/performance/NAME.png.

`python -m experiments.benchmarks.NAME` measures, `--plot` draws; `harness.py` is shared."""
