"""A server over a small shop and random parameters, in a thread of this process.

Tests leave the histories of the first forty users alone, which others compare.
"""

import contextlib
import dataclasses
import http.client
import json

import jax
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.cli import entry
from rolegen_jax.pipeline import serving
from rolegen_jax.pipeline.context import Run
from rolegen_jax.pipeline.inputs import Inputs
from rolegen_jax.serving.http.app import App
from rolegen_jax.serving.http.engine import Trained
from tests import runs, tiny
from tests.serving.served import served

SMALL = [
  *runs.SMALL,
  'semantic_ids.codes=16',
  'backbone.beam=20',
  'evaluation.ks=(1,10)',
  'reasoner.candidates=2',
  'reasoner.kinds=2',
  'loop.worlds=2',
  'serving.filter_history=allow',
]
SIZES = (2,)


@dataclasses.dataclass
class Shop:
  """What is served, and where."""

  run: Run
  inputs: Inputs
  trained: Trained
  app: App
  port: int = 0

  def ask(self, path: str, body=None, **headers) -> tuple[int, dict]:
    """Return status and JSON of a request: GET without a body, else POST of JSON or of bytes."""
    status, content, _ = self.ask_raw(path, body, **headers)
    return status, json.loads(content)

  def ask_raw(self, path: str, body=None, **headers) -> tuple[int, bytes, dict]:
    """The same, but the bytes of the answer and its headers."""
    if body is not None and not isinstance(body, bytes):
      body = json.dumps(body).encode()
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    with contextlib.closing(connection):
      connection.request('GET' if body is None else 'POST', path, body, headers)
      response = connection.getresponse()
      return response.status, response.read(), dict(response.headers)

  def recommend(self, user_id=None, **fields) -> dict:
    """Return the answer to a good request."""
    if user_id is not None:
      fields['user_id'] = user_id
    status, answer = self.ask('/v1/recommend', fields)
    assert status == 200, answer
    return answer

  def listed(self, user_id=None, **fields) -> list:
    """Return the ids of the answer to a good request."""
    return [item['item_id'] for item in self.recommend(user_id, **fields)['items']]

  def change(self, **fields) -> dict:
    """Change the catalogue."""
    status, answer = self.ask('/v1/catalogue', fields)
    assert status == 200, answer
    return answer

  def gauge(self, name: str) -> float:
    """Return the value of a metric without labels."""
    text = self.ask_raw('/metrics')[1].decode()
    return float(next(line for line in text.splitlines() if line.startswith(f'{name} ')).split()[1])


def open_shop(folder) -> Shop:
  """Prepare the shop, draw parameters and compile."""
  run, inputs = runs.open_inputs(entry.experiment('demo', SMALL), folder)
  everywhere = sharding.sharding(run.mesh)
  params = {
    name: jax.device_put(tiny.random_params(run.rolegen.model_fns[name]), everywhere)
    for name in ('backbone', 'reasoner')
  }
  params['reasoner']['intent']['pooled'] = jax.device_put(np.full(2, 0.5, np.float32), everywhere)
  alone = jax.device_put(tiny.random_params(run.rolegen.model_fns['backbone'], 1), everywhere)
  trained = Trained(
    run.rolegen, params, alone, inputs.log, inputs.excitation, inputs.bars_history, run.mesh
  )
  settings = serving.Settings(max_batch=SIZES[-1], max_queue=8, top=10)
  return Shop(run, inputs, trained, serving.assembled(run, inputs, trained, SIZES, settings))


@contextlib.contextmanager
def serving_shop(shop: Shop, app: App):
  """Serve an application on any free port while this is open."""
  with served(app.asgi()) as port:
    yield dataclasses.replace(shop, app=app, port=port)
