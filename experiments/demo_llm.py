"""The demo with a reasoner that knows words: a small Qwen3-shaped decoder from scratch and a tokenizer trained on the items' text.

SIMULATED data, its text too: titles, brands and categories of the simulated world. See docs/simulated_world.md.
"""

import dataclasses

from experiments import demo
from rolegen_jax import config as c


def get_config(arg: str = '') -> c.Config:
  plain = demo.get_config(arg)
  qwen3 = c.TransformerConfig(
    layers=3, width=64, heads=4, kv_heads=2, head_dim=16, mlp=192, rope_theta=1e6, qk_norm=True
  )
  return dataclasses.replace(
    plain,
    name='demo_llm',
    # Codes that know nothing of words: what the reasoner says of an item whose words were held out is its own.
    semantic_ids=dataclasses.replace(plain.semantic_ids, text=''),
    reasoner=dataclasses.replace(plain.reasoner, transformer=qwen3, text_pieces=768),
    text=c.TextConfig(sentence=16, rationales=1.0),
    align=c.StageConfig(
      600, 16, c.OptimizerConfig(learning_rate=4e-3, warmup_steps=50), save_every=200
    ),
    evaluation=dataclasses.replace(
      plain.evaluation, ablations=()
    ),  # the demo has them; here words are the point
    reason=c.StageConfig(
      240, 16, c.OptimizerConfig(learning_rate=3e-3, warmup_steps=30), save_every=80
    ),
  )
