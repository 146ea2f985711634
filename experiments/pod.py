"""Pod scale, on a log of your own in the contract's format.

  python -m launch.run --target=tpu_vm --experiment=pod:v5e_16 ...
  rolegen compile_check --experiment=pod:v5e_16 --topology=tpu:v5e:4x4

  v5e_16     reasoner 0.6 B, backbone 0.3 B   tpu:v5e:4x4
  v5p_128    reasoner 8 B, backbone 1 B       tpu:v5p:4x4x8
  v5p_2048   the same                         tpu:v5p:8x16x16
  v6e_1024   the same                         tpu:v6e:16x16:slices=4
  h100_64    the same                         gpu:h100:8x8

Nothing here was trained, so there is no expected time or metric; docs/pods.md says what was
compiled. Blocks have the shapes of Qwen3-0.6B and Qwen3-8B (arXiv 2505.09388), with more layers, as
there are no 152,000 text tokens. The number counts chips: 128 chips of v5p are 4x4x8, two whole
cubes, the smallest slice of that size whose dimensions all close to rings (Google sells it as
v5p-256, by cores).
"""

from rolegen_jax import config as c

MESHES = {
  # Parameters whole while decoding: 1.2 GB in bfloat16.
  'v5e_16': c.MeshConfig(data=1, fsdp=16, tensor=1),
  # An 8 B reasoner is 16 GB whole: sharded over tensor, a chip holds and reads a quarter for each
  # token.
  'v5p_128': c.MeshConfig(data=1, fsdp=32, tensor=4, rollout='tensor'),
  # Every axis is one whole dimension of the 8 x 16 x 16 torus: JAX splits none, so tensor cannot
  # be 4 here.
  'v5p_2048': c.MeshConfig(data=16, fsdp=16, tensor=8, rollout='tensor'),
  # A slice holds the state once, and `data` lies over the four. JAX splits no dimension of 16 x 16,
  # and 8 heads of keys cannot be divided by 16.
  'v6e_1024': c.MeshConfig(data=4, fsdp=256, tensor=1),
  # tensor stays inside a host's NVLink.
  'h100_64': c.MeshConfig(data=1, fsdp=8, tensor=8, rollout='tensor'),
}
# Per step of the loop
USERS = dict(v5e_16=64, v5p_128=512, v5p_2048=8192, v6e_1024=1024, h100_64=256)


def get_config(arg: str = 'v5e_16') -> c.Config:
  size = arg or 'v5e_16'
  if size not in MESHES:
    raise c.ConfigError(f'--experiment=pod:{size}: must be one of {", ".join(MESHES)}')
  reasoner, backbone = _models(size)
  users = USERS[size]
  return c.Config(
    name=f'pod_{size}',
    data=c.DataConfig(format='contract', path='contract'),
    semantic_ids=c.SemanticIdConfig(levels=4, codes=256, collaborative_dim=256),
    backbone=c.BackboneConfig(temporal=backbone, query_layers=2, depth_layers=2, context=256),
    reasoner=c.ReasonerConfig(transformer=reasoner, events=32, role_events=16, candidates=4),
    loop=c.LoopConfig(worlds=4),
    warmup=_stage(50_000, 2 * users, 3e-4),
    align=_stage(20_000, users, 3e-4),
    reason=_stage(20_000, users, 1e-4),
    loop_stage=_stage(20_000, users, 3e-5),
    mesh=MESHES[size],
    evaluation=c.EvaluationConfig(batch=users, ablations=()),
  )


def _models(size: str) -> tuple[c.TransformerConfig, c.TransformerConfig]:
  """Return the stacks of (reasoner, backbone)."""
  block = dict(head_dim=128, kv_heads=8, rope_theta=1_000_000.0, remat='full', dtype='bfloat16')
  if size == 'v5e_16':
    reasoner = c.TransformerConfig(layers=38, width=1024, heads=16, mlp=3072, **block)
    backbone = c.TransformerConfig(layers=16, width=1024, heads=16, mlp=3072, **block)
  else:
    reasoner = c.TransformerConfig(layers=42, width=4096, heads=32, mlp=12288, **block)
    backbone = c.TransformerConfig(layers=16, width=2048, heads=16, mlp=6144, **block)
  return reasoner, backbone


def _stage(steps: int, batch: int, learning_rate: float) -> c.StageConfig:
  optimizer = c.OptimizerConfig(learning_rate=learning_rate, warmup_steps=1000)
  return c.StageConfig(steps, batch, optimizer, save_every=500)
