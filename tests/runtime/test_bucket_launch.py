"""Commands of launch/ on folders in buckets: a sweep, its status, the doctor."""

import json
import sys

from launch import checks, overview
from launch import points as sweep_points
from launch.pool import Limits, Point
from rolegen_jax.runtime import storage
from tests.launch import stand_in

RUN = """
import sys
from rolegen_jax.data.files import write_json
from rolegen_jax.runtime import storage
folder, text, code = sys.argv[1:]
print('it ran')
if code == '0':
  write_json(eval(text), storage.path(folder) / 'report.json')
sys.exit(int(code))
"""


def sweep(url, **codes):
  workdir, selected = storage.path(url), []
  for name, code in codes.items():
    folder = workdir / 'points' / name
    arguments = [str(folder), repr(stand_in.report()), str(code)]
    selected.append(Point(name, [sys.executable, '-c', RUN, *arguments], folder))
  points = {point.name: [] for point in selected}
  return sweep_points.run('demo', points, selected, workdir, [], Limits())


def test_a_sweep_in_a_bucket(url, capfd):
  assert sweep(url, good=0, bad=2) == 1
  workdir = storage.path(url)
  ledger = json.loads((workdir / 'ledger.json').read_text())['points']
  assert {name: entry['state'] for name, entry in ledger.items()} == {
    'good': 'done',
    'bad': 'failed',
  }
  assert ledger['bad']['why'].endswith('it ran')
  for name in ('good', 'bad'):
    assert 'it ran' in (workdir / 'points' / name / 'log.txt').read_text()
  assert (workdir / 'summary.csv').read_text().startswith('point,state')
  assert (workdir / 'summary.png').read_bytes().startswith(b'\x89PNG')
  capfd.readouterr()
  assert sweep(url, good=0) == 0
  assert 'good: done' in capfd.readouterr().err
  assert 'good' in overview.describe(workdir, as_json=False)
  assert not (workdir / '.lock').exists()


def test_the_doctor_writes_reads_and_leases(url):
  written, clock = checks.storage(url)
  assert written.state == checks.OK and 'write, read and lease' in written.detail
  assert clock.state == checks.OK
  assert not storage.file_system(url).find(url)


def test_the_doctor_names_a_bucket_that_is_not_there(stores):
  (check,) = checks.storage('s3://no-such-bucket/run')
  assert check.state == checks.FAILED
  assert check.detail.startswith('s3://no-such-bucket: cannot be listed')
