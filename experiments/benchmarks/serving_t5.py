"""What teams serve generative recommendation with today: FastAPI, and Hugging Face's `generate`.

  python -m experiments.benchmarks.serving_t5 --workdir=runs/demo --parameters=200000 --port=8081

T5 generates semantic IDs of the run's own catalogue under a prefix tree (`third_party_models.py`),
as many beams as the run's backbone, from the user's latest 20 items, as TIGER reads them. Its width
is the one at which it has nearest to --parameters weights, which are fresh: lists say nothing about
quality. It answers one request at a time with all cores, as a batch of them takes no less time each
(third_party_decoding.json).
"""

# Annotations are no text here: FastAPI reads them.
import os
import threading

import numpy as np
from absl import flags

from experiments.benchmarks.third_party_models import PAD, IdTokens
from rolegen_jax.cli import entry
from rolegen_jax.cli.path_flags import path_flag
from rolegen_jax.data.log import InteractionLog
from rolegen_jax.pipeline.artifacts import saved_config

HISTORY = 20  # items
LAYERS, HEADS, STEP = 2, 4, 8  # of encoder and of decoder; widths that are tried are so far apart

_WORKDIR = path_flag('workdir', None, 'Folder of a run of rolegen train.', required=True)
_PARAMETERS = flags.DEFINE_integer('parameters', 200_000, 'Of the model.', lower_bound=1000)
_PORT = flags.DEFINE_integer('port', 8081, 'Port of the loopback.', lower_bound=1)


def network(vocabulary: int, width: int):
  """Return T5 of a width, untrained."""
  import transformers

  config = transformers.T5Config(
    vocab_size=vocabulary,
    d_model=width,
    d_ff=4 * width,
    d_kv=max(width // HEADS, 8),
    num_heads=HEADS,
    num_layers=LAYERS,
    num_decoder_layers=LAYERS,
    pad_token_id=PAD,
    decoder_start_token_id=PAD,
    eos_token_id=None,
    feed_forward_proj='relu',
  )
  return transformers.T5ForConditionalGeneration(config).eval()


def sized(vocabulary: int, parameters: int):
  """Return the network whose number of weights is nearest to `parameters`, and that number."""
  import torch

  def count(width: int) -> int:
    with torch.device('meta'):
      return sum(p.numel() for p in network(vocabulary, width).parameters())

  width, counted = STEP, count(STEP)
  while counted < parameters:
    larger = count(width + STEP)
    if abs(larger - parameters) > abs(counted - parameters):
      break
    width, counted = width + STEP, larger
  torch.manual_seed(0)
  return network(vocabulary, width), counted


class Model:
  """The network over the histories of a run."""

  def __init__(self, workdir: str, parameters: int):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = saved_config(workdir)
    catalogue = np.load(f'{workdir}/semantic_ids/catalogue.npz', allow_pickle=False)
    self.item_ids, self.beams = catalogue['item_ids'].tolist(), config.backbone.beam
    codes, per_level = catalogue['codes'], config.semantic_ids.codes
    self.ids, self.levels = IdTokens(codes, per_level), codes.shape[1]
    self.network, self.parameters = sized(1 + self.levels * per_level, parameters)
    log = InteractionLog.load(f'{workdir}/data')
    rows = zip(log.users.to_list(), log.offsets, log.offsets[1:])
    self.history = {u: log.item[max(a, b - HISTORY) : b] for u, a, b in rows}
    self._lock = threading.Lock()

  def recommend(self, user_id: int | str, k: int) -> list:
    """Return the ids of the k likeliest items."""
    import torch

    tokens, mask = map(torch.from_numpy, self.ids.encoder_inputs(self.history[user_id][None]))
    with self._lock, torch.inference_mode():
      generated = self.network.generate(
        input_ids=tokens,
        attention_mask=mask,
        num_beams=self.beams,
        num_return_sequences=k,
        do_sample=False,
        min_new_tokens=self.levels,
        max_new_tokens=self.levels,
        prefix_allowed_tokens_fn=self.ids.following,
      )
    return [self.item_ids[i] for i in self.ids.items_of(generated[:, 1:].numpy()) if i >= 0]


def application(model: Model):
  """Return the FastAPI application."""
  import fastapi
  import pydantic

  class Asked(pydantic.BaseModel):
    user_id: int | str
    k: int = 10
    reasoning: str = 'off'  # which it has none of

  app = fastapi.FastAPI()

  @app.get('/readyz')
  def ready() -> dict:
    return dict(ready=True, parameters=model.parameters)

  @app.post('/v1/recommend')
  def recommend(asked: Asked) -> dict:
    if asked.user_id not in model.history:
      raise fastapi.HTTPException(404, 'user_id')
    return dict(items=[dict(item_id=item) for item in model.recommend(asked.user_id, asked.k)])

  return app


def main() -> None:
  """Serve until a signal."""
  import uvicorn

  model = Model(_WORKDIR.value, _PARAMETERS.value)
  model.recommend(next(iter(model.history)), 10)
  uvicorn.run(application(model), port=_PORT.value, log_level='warning')


if __name__ == '__main__':
  entry.run(main)
