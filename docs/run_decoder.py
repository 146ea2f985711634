"""Recommend with what `rolegen export --what=decoder` wrote; needs numpy, jax and flatbuffers.

  python docs/run_decoder.py FOLDER PLATFORM < request.json

request.json, with times in seconds UTC:

  {"events": [{"item_id": 17, "event": "view", "timestamp": 1714435200},
              {"item_id": 17, "event": "cart", "timestamp": 1714438800}],
   "time": 1714521600, "fold": 0}

Events may be in any order; those from `time` on are not read. What events lead to was counted for
each fold of the log's users over all other folds, so that nobody's own future is in it: `fold` is
the user's place in the log, from 0, modulo `folds` of manifest.json. Somebody else has 0, the
default.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

folder, platform = pathlib.Path(sys.argv[1]), sys.argv[2]
manifest = json.loads((folder / 'manifest.json').read_text())
programs = [p for p in manifest['programs'] if p['platform'] == platform]
if not programs:
  known = ', '.join(sorted({p['platform'] for p in manifest['programs']}))
  sys.exit(f'{folder} has no program for {platform!r}; must be one of {known}')
for name, file in manifest['files'].items():
  assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file['sha256'], name
program = min(programs, key=lambda p: p['batch'])
exported = jax.export.deserialize(bytearray((folder / program['file']).read_bytes()))
tables = jax.device_put(dict(np.load(folder / 'tables.npz')))
item_ids = np.load(folder / 'items.npz')['item_id'].tolist()

request = json.load(sys.stdin)
index = {item_id: i for i, item_id in enumerate(item_ids)}
event = {name: i for i, name in enumerate(manifest['events'])}
rows = [(e['timestamp'], event[e['event']], index[e['item_id']]) for e in request['events']]
rows = [row for row in rows if row[0] < request['time']]
# Sorted by time, event and item; equal events are one, with a count.
rows, count = np.unique(np.array(rows, int).reshape(-1, 3), axis=0, return_counts=True)
columns = dict(timestamp=rows[:, 0], event=rows[:, 1], item=rows[:, 2], count=count)
width, n = manifest['width'], min(len(rows), manifest['width'])
batch = {name: np.full((program['batch'], width), -(name == 'item')) for name in columns}
for name, column in columns.items():
  batch[name][:, width - n :] = column[len(column) - n :]
batch |= {name: np.full(program['batch'], request.get(name, 0)) for name in ('time', 'fold')}
lists = jax.jit(exported.call)(tables, {k: x.astype(np.int32) for k, x in batch.items()})
for i, score in zip(np.asarray(lists['item'][0]), np.asarray(lists['score'][0])):
  if i >= 0:
    print(json.dumps({'item_id': item_ids[i], 'log_prob': float(score)}))
