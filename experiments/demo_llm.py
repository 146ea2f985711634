"""The demo with a reasoner that knows words: a small Qwen3-shaped decoder, from scratch.

  rolegen train --experiment=demo_llm --workdir=runs/words

SIMULATED data, its text too: titles, brands and categories of the simulated shop. A tokenizer is
trained on them. Expect about half an hour on two CPU cores; the report's section on words says
whether the reasoner knows what its semantic IDs stand for. `demo_llm:smollm2` starts it from a
published model instead (experiments/smollm2.py).
"""

import dataclasses

from experiments import demo, smollm2
from rolegen_jax import config as c


def get_config(arg: str = '') -> c.Config:
  if arg not in ('', smollm2.NAME):
    raise c.ConfigError(f'--experiment=demo_llm:{arg}: must be demo_llm or demo_llm:{smollm2.NAME}')
  plain = demo.get_config()
  qwen3 = c.TransformerConfig(
    layers=3, width=64, heads=4, kv_heads=2, head_dim=16, mlp=192, rope_theta=1e6, qk_norm=True
  )
  align_optimizer = c.OptimizerConfig(learning_rate=4e-3, warmup_steps=50)
  reason_optimizer = c.OptimizerConfig(learning_rate=3e-3, warmup_steps=30)
  config = dataclasses.replace(
    plain,
    name='demo_llm',
    # Codes that know nothing of words: what the reasoner says of an item whose words were held out
    # is its own.
    semantic_ids=dataclasses.replace(plain.semantic_ids, text=''),
    reasoner=dataclasses.replace(plain.reasoner, transformer=qwen3, text_pieces=768),
    text=c.TextConfig(sentence=16, rationales=1.0, replay=64),
    align=c.StageConfig(600, 16, align_optimizer, save_every=200),
    reason=c.StageConfig(240, 16, reason_optimizer, save_every=80),
    # The demo has the ablations; here words are the point.
    evaluation=dataclasses.replace(plain.evaluation, ablations=()),
  )
  return smollm2.with_smollm2(config) if arg else config
