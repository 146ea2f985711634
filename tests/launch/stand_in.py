"""A run in miniature, for the tests of the sweep's bookkeeping: python stand_in.py FOLDER SECONDS EXIT_CODES

Each start appends a line to FOLDER/starts.txt. Start n ends with the n-th of EXIT_CODES (the last one from then on), negative = dies
by that signal. FOLDER/go ends its work before its SECONDS are over. SIGTERM ends it with 42, as a run that saved. Ending with 0 it writes a report.
"""

import json
import os
import pathlib
import signal
import sys
import time

folder, seconds, codes = pathlib.Path(sys.argv[1]), float(sys.argv[2]), [int(code) for code in sys.argv[3].split(',')]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
with (folder / 'starts.txt').open('a') as file:
  file.write(f'{os.getpid()}\n')
started = len((folder / 'starts.txt').read_text().splitlines())
end = time.monotonic() + seconds
while time.monotonic() < end and not (folder / 'go').exists():
  time.sleep(0.02)
code = codes[min(started, len(codes)) - 1]
if code < 0:
  os.kill(os.getpid(), -code)
if code == 0:
  interval = lambda mean: dict(mean=mean, low=mean - 0.02, high=mean + 0.02, pairs=100, occasions=100)
  system = lambda kind, mean: dict(kind=kind, metrics={'dormant': {'HI@1': interval(mean / 3), 'HI@10': interval(mean)}})
  systems = {'RoleGen': system('model', 0.3), 'popularity': system('floor', 0.1), 'recency': system('floor', 0.2)}
  (folder / 'report.json').write_text(json.dumps(dict(systems=systems)))
print('the data is wrong: row 7' if code == 2 else f'ends with {code}', flush=True)
sys.exit(code)
