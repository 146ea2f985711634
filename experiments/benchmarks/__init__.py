"""One file per benchmark: `measure` fills NAME.json, `plot` draws docs/performance/NAME.png of it.

`harness.py` holds what they share. It turns the keyword arguments of `measure` into flags:

  python -m experiments.benchmarks.NAME           # measure, write NAME.json, print its table
  python -m experiments.benchmarks.NAME --plot    # draw NAME.json
"""
