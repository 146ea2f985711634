"""A stand-in for a training run of a sweep: `python stand_in.py FOLDER SECONDS EXIT_CODES`.

Each start appends its process number to FOLDER/starts.txt. Start n ends with the n-th of
EXIT_CODES (the last one from then on); a negative code means death by that signal. A file
FOLDER/go ends the work before SECONDS are over. SIGTERM ends it with 42, like a run that saved.
A run that ends with 0 writes a report.
"""

import json
import os
import pathlib
import signal
import sys
import time


def main() -> int:
  folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
  codes = [int(code) for code in sys.argv[3].split(',')]
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
  starts = folder / 'starts.txt'
  with starts.open('a') as file:
    file.write(f'{os.getpid()}\n')
  n_starts = len(starts.read_text().splitlines())
  end = time.monotonic() + seconds
  while time.monotonic() < end and not (folder / 'go').exists():
    time.sleep(0.02)
  code = codes[min(n_starts, len(codes)) - 1]
  if code < 0:
    os.kill(os.getpid(), -code)
  if code == 0:
    (folder / 'report.json').write_text(json.dumps(report()))
  print('the data is wrong: row 7' if code == 2 else f'ends with {code}', flush=True)
  return code


def report() -> dict:
  systems = {
    'RoleGen': system('model', 0.3),
    'popularity': system('baseline', 0.1),
    'recency': system('baseline', 0.2),
  }
  return dict(systems=systems)


def system(kind: str, hit_rate: float) -> dict:
  metrics = {'HI@1': interval(hit_rate / 3), 'HI@10': interval(hit_rate)}
  return dict(kind=kind, metrics={'dormant': metrics})


def interval(mean: float) -> dict:
  return dict(mean=mean, low=mean - 0.02, high=mean + 0.02, pairs=100, users=100)


if __name__ == '__main__':
  sys.exit(main())
