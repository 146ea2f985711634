"""The typed configuration of a run: frozen dataclasses, one section per room, and one `validate`.

Every line says its meaning and unit. Experiments (`experiments/*.py`) return a `Config`; `--set a.b=c` replaces fields of it
(`overrides.py`); the resolved config is written into the run folder. No jax here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing

EVENT_NAMES = (
  'impression',
  'view',
  'fav',
  'cart',
  'remove',
  'purchase',
)  # index = event code; ties sort in this order
COHORTS = (
  'D1',
  'D2',
  'D3',
  'ACTIVE',
)  # dormant: D1 first conversion, D2 reactivation; D3 never converted (no target)
ROLE_NAMES = (
  'TRIGGER',
  'ANCHOR',
  'COMPARE',
  'REINFORCE',
  'COMPLEMENT',
  'EXPLORE',
  'DISTRACT',
  'CONVERT',
)
PROJECTIONS = ('wq', 'wk', 'wv', 'wo', 'gate', 'up', 'down')
ALIGN_TASKS = (
  'sid_to_text',
  'text_to_sid',
  'masked_attribute',
  'next_event',
  'next_purchase',
)  # fields of TextConfig
WORD_TASKS = (*ALIGN_TASKS, 'rationale')
BACKBONE_INPUTS = ('roles', 'intent', 'candidates', 'retrieved')
INTERVENTIONS = ('intent', 'remove', 'role')
# Ablation -> the settings of the closed loop that make it; those without any are switches of the training step.
ABLATIONS = dict(
  no_reasoner={},
  roles_only=dict(backbone_inputs=('roles',)),
  no_retrieved=dict(backbone_inputs=('roles', 'intent', 'candidates')),
  no_counterfactual={},
  common_noise=dict(noise='common'),
  no_reflection={},
  weighted=dict(objective='weighted'),
)


class ConfigError(ValueError):
  """A field of the configuration is wrong. The message names the field and what would be right."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
  format: str = 'simulated'  # simulated | contract | alibaba2014 | taobao_userbehavior | rees46 | ranked_sequences
  path: str = ''  # file or folder of the log, relative to $ROLEGEN_DATA; unused when simulated
  max_users: int = 0  # keep the first N users in file order; 0 = all
  shards: str = ''  # folder of rolegen prepare_shards: backbone warmup on rows of the whole log, which memory need not hold; '' = off
  split: str = 'time'  # time | leave_one_out
  test_fraction: float = 0.3  # share of dormant occasions, latest by time, that are test
  valid_fraction: float = 0.15  # share of dormant occasions just before them that are validation
  first_conversion_min_views: int = 10  # D1 and D3: at least this many views
  reactivation_min_days: float = 14.0  # D2: at least this long since the last purchase
  reactivation_min_views: int = 5  # D2: at least this many views since the last purchase


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
  """The simulated world (`simulator/world.py`, rules in docs/simulated_world.md)."""

  preset: str = 'alibaba2014'  # which real log its marginals were fitted to: alibaba2014 | taobao_userbehavior_1k; or held_back, other strengths
  users: int = 3000
  items: int = 1200
  categories: int = 24
  events_per_user_scale: float = (
    0.75  # of the fitted mean: the demo is smaller, the shape of the distribution stays
  )
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class SemanticIdConfig:
  method: str = 'residual_kmeans'  # residual_kmeans | rqvae
  levels: int = 3  # codes per item
  codes: int = 256  # codebook size per level
  collaborative_dim: int = 64  # width of the collaborative item embedding; 0 = off
  text: str = ''  # text embedder by registered name; '' = off
  iterations: int = 20  # k-means iterations per level, or RQ-VAE epochs
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Rotary positions stretched beyond the length that a model was first trained at."""

  kind: str = 'none'  # none | linear (Chen et al., arXiv 2306.15595) | llama3 (arXiv 2407.21783)
  factor: float = 1.0  # frequencies are divided by it; by llama3 only the low ones
  low_frequency: float = 1.0  # llama3: waves longer than context / this are low frequencies
  high_frequency: float = 4.0  # llama3: waves shorter than context / this stay as they are
  context: int = 8192  # llama3: tokens, the length that the model was first trained at


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  layers: int = 2
  width: int = 64  # residual stream
  heads: int = 4  # query heads
  kv_heads: int = 2  # key/value heads, divides heads
  head_dim: int = 16
  mlp: int = 192  # hidden width of the gated MLP
  rope_theta: float = 10_000.0
  remat: str = 'none'  # none | full | dots: what the backward pass recomputes
  dtype: str = 'float32'  # compute type: float32 | bfloat16; parameters are always float32
  attention: str = 'auto'  # auto: the platform's kernel where it takes shapes, mask and dtype (splash on TPU, cudnn on GPU) | xla: never
  # What pretrained families differ in (pretrained/families.py); as they stand here, the model that is trained from scratch.
  qk_norm: bool = False  # norm of each head's queries and keys before they are rotated
  post_norms: bool = False  # norm also of what attention and MLP add to the residual stream
  norm_epsilon: float = 1e-6
  norm_offset: float = 0.0  # norms multiply by this + their parameter; Gemma 1
  activation: str = 'silu'  # of the gate: silu | gelu_tanh
  attention_scale: float = 0.0  # of scores; 0 = head_dim ** -0.5
  layer_pattern: str = (
    ''  # a letter a layer, from the first on and again: L sees `window`, G sees all; '' = all G
  )
  window: int = 0  # tokens that a query of an L layer sees, itself included
  local_rope_theta: float = 10_000.0  # of L layers
  rope_scaling: RopeScaling = RopeScaling()  # of G layers
  embedding_scale: float = 1.0  # token embeddings are multiplied by it; Gemma width ** 0.5
  tied: bool = True  # the readout is the token table; False: a table of its own
  logit_softcap: float = 0.0  # logits become cap * tanh(logits / cap); 0 = off


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
  temporal: TransformerConfig = TransformerConfig()  # over events, one position each
  query_layers: int = 1  # cross-attention layers from a target query to its memory
  depth_layers: int = 1  # layers of the depth decoder over the codes of one item
  context: int = 128  # events of history that a trajectory row holds
  purchase_weight: float = 5.0  # loss weight of a purchase target against 1 for other events
  view_weight: float = 0.2  # loss weight of a target that is no purchase
  generation_loss: float = 0.3  # weight of the generated part's own NLL beside the mixture's
  dropout: float = 0.1  # on event embeddings and query output while training
  pointer: bool = True  # mix the generated distribution with a pointer over history and candidates
  beam: int = 64  # beams kept per level when decoding


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters of the reasoner's projections (Hu et al., arXiv 2106.09685)."""

  rank: int = 16  # of each adapter
  alpha: float = 32.0  # what an adapter adds is multiplied by alpha / rank
  targets: tuple[str, ...] = PROJECTIONS  # projections that get one


@dataclasses.dataclass(frozen=True)
class ReasonerConfig:
  transformer: TransformerConfig = TransformerConfig()
  events: int = 24  # latest events of the trajectory in the prompt, (2 + levels) tokens each
  role_events: int = 12  # latest events that get a role token
  intents: int = 2  # intents per completion
  intent_levels: int = 1  # codes of the SID prefix that names an intent
  candidates: int = 4  # items on the path of one completion
  coarse_codes: int = 8  # coarse codes that contact with an item may excite, the strongest ones
  transitions: int = (
    16  # items that contact with an item may call for, the ones that follow it most
  )
  retrieved: int = (
    64  # items that a history calls for most: what paths go to and the backbone reads
  )
  temperature: float = 0.2  # of rollouts; demonstrations are fitted at 1
  pretrained: str = (
    ''  # folder of a pretrained decoder, which sets `transformer`; '' = from scratch
  )
  text_pieces: int = 0  # text tokens: of the tokenizer of `pretrained`, or at most of one trained on the items' words; 0 = no text
  tokenizer: str = ''  # hash of the tokenizer of `pretrained`
  # What training changes: all | lora | frozen. frozen: rows of our tokens (all before the text block) and the equation of intent; lora: those
  # and adapters. The rest, the base, has neither gradients nor moments, is in no checkpoint, and the KL reference shares it.
  train: str = 'all'
  lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """What the reasoner learns in words (`text/prompts.toml`). In force where the vocabulary has text pieces and the items have words.

  The next five are shares of the examples of stage `align`, of any sum.
  """

  sid_to_text: float = 1.0  # semantic ID -> title, category or brand
  text_to_sid: float = 1.0  # all that is known of an item -> semantic ID
  masked_attribute: float = 0.5  # semantic ID and description, one value hidden -> that value
  next_event: float = 1.0  # a trajectory, token by token
  next_purchase: float = 0.5  # a trajectory and a time -> semantic ID of what was bought
  width: int = 256  # tokens of a packed row
  sentence: int = 24  # tokens of a text, its end included, at most; longer ones are cut
  held_out: float = (
    0.05  # share of items whose words are never shown: the report asks for them apart
  )
  rationales: float = 0.0  # weight in stage `reason` of the chain with a sentence after each role and intent; 0 = chains without words


@dataclasses.dataclass(frozen=True)
class RolesConfig:
  """Hindsight roles (`reasoning/roles.py`): how many, and thresholds."""

  max_conversions: int = (
    20_000  # training conversions that are labelled and teach the reasoner, evenly drawn; 0 = all
  )
  intent_days: float = 14.0  # an intent ends after so long without contact with its coarse code
  trigger_z: float = 4.0  # sigmas by which contact with the item raises interest near y, beyond what items of its kind do
  distract_z: float = -3.0  # the same, lowers
  complement_shift: float = (
    0.03  # share of interest that purchases there move towards y's coarse code
  )
  annotations: str = ''  # JSONL of imported roles and rationales, which replace those of hindsight (`text/annotations.py`); '' = none


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  worlds: int = 4  # rollouts per user; world 0 is factual
  # What is done in the counterfactual worlds, by turns. intent: the path starts from another intent, the next likeliest | remove: an event is
  # taken out | role: an event gets another role.
  interventions: tuple[str, ...] = INTERVENTIONS
  noise: str = 'independent'  # of its own for each world | common: worlds of a user differ through their interventions alone
  backbone_inputs: tuple[str, ...] = BACKBONE_INPUTS  # what of the reasoning the backbone reads
  reward_hit: float = 1.0  # a: graded semantic-ID prefix hit of the candidates
  reward_gain: float = 0.5  # b: execution gain in nats, clipped to [-2, 2]
  reward_novelty: float = 0.3  # c: share of a world's candidates in no other world
  reward_malformed: float = 1.0  # d: penalty share of malformed candidates
  objective: str = (
    'policy_gradient'  # policy_gradient (clipped, KL) | weighted (softmax(A / beta) likelihood)
  )
  weight_beta: float = 0.5  # temperature of the `weighted` objective, in reward units
  clip: float = 0.2  # ratio clip of the policy gradient
  kl: float = 0.02  # weight of KL(policy || reference)
  imitation: float = 0.5  # weight of the supervised FR-CoT loss kept in the loop
  reference_decay: float = 0.99  # EMA of the reference; 1 = frozen
  candidate_dropout: float = 0.3  # chance that a training target sees no candidates and no roles
  reflect_every: int = 1  # the reasoner is updated every k-th step


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  learning_rate: float = 3e-3  # peak
  equation_lr_multiplier: float = (
    10.0  # times the learning rate, for the structural equations of the reasoner
  )
  warmup_steps: int = 50  # steps
  final_share: float = 0.05  # of the peak, at the end of the cosine
  weight_decay: float = 0.05
  clip_norm: float = 1.0
  b2: float = 0.98


@dataclasses.dataclass(frozen=True)
class StageConfig:
  steps: int = 300
  batch: int = 32  # rows (warmup) or occasions (others) per step over all devices
  optimizer: OptimizerConfig = OptimizerConfig()
  save_every: int = 100  # steps between checkpoints


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per mesh axis; -1 on one axis = all that are left."""

  data: int = -1  # batch only: parameters are replicated over it
  fsdp: int = 1  # batch, and parameters sharded
  tensor: int = 1  # heads, MLP and vocabulary sharded
  rollout: str = 'replicated'  # parameters while decoding: replicated (no collective in the loop) | tensor (spread over tensor: fits more)


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
  """After the loop: the weights by which the backbone mixes its sources, fitted to validation conversions (`training/calibration.py`)."""

  steps: int = 80  # of full-batch Adam; 0 = off
  learning_rate: float = 0.05  # at the start of the cosine
  examples: int = (
    1000  # validation conversions, evenly drawn; 0 = all. Their memories are held at once
  )


@dataclasses.dataclass(frozen=True)
class ServingConfig:
  exploration_weight: float = 2.0  # of a slate: weight of what contact with an item opens beside log p (`serving/slate.py`); 0 = by log p alone
  exposure_penalty: float = 0.0  # of `recommend`: weight against items that the lists before show much; 0 = each list for itself


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  ks: tuple[int, ...] = (1, 5, 10, 50)
  batch: int = 64
  bootstrap: int = 1000  # resamples of occasions for 95 % intervals
  ablations: tuple[str, ...] = (
    'no_reasoner',
    'no_counterfactual',
    'no_reflection',
  )  # some of ABLATIONS, trained and reported beside RoleGen
  exposure_penalty: float = 0.7  # RoleGen and the backbone alone are also reported with their lists so spread (`ServingConfig.spread`); 0 = are not
  sasrec_steps: int = 600  # training steps of the SASRec baseline, its best validation step is kept
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = 'demo'
  seed: int = 0
  data: DataConfig = DataConfig()
  simulator: SimulatorConfig = SimulatorConfig()
  semantic_ids: SemanticIdConfig = SemanticIdConfig()
  backbone: BackboneConfig = BackboneConfig()
  reasoner: ReasonerConfig = ReasonerConfig()
  text: TextConfig = TextConfig()
  roles: RolesConfig = RolesConfig()
  warmup: StageConfig = StageConfig()
  align: StageConfig = StageConfig()
  reason: StageConfig = StageConfig()
  loop_stage: StageConfig = StageConfig(steps=150)
  loop: LoopConfig = LoopConfig()
  calibration: CalibrationConfig = CalibrationConfig()
  serving: ServingConfig = ServingConfig()
  mesh: MeshConfig = MeshConfig()
  evaluation: EvaluationConfig = EvaluationConfig()


def to_dict(config) -> dict:
  """Nested plain dict of a config or a section, tuples as lists."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict, kind: type = Config):
  """The inverse of `to_dict`. Raises ConfigError on a field that this version does not know."""
  hints = typing.get_type_hints(kind)
  unknown = sorted(set(values) - set(hints))
  if unknown:
    raise ConfigError(
      f'{kind.__name__}: unknown field {unknown[0]!r}; this folder was written by another version'
    )
  section = lambda name, v: (
    from_dict(v, hints[name])
    if dataclasses.is_dataclass(hints[name])
    else tuple(v)
    if isinstance(v, list)
    else v
  )
  return kind(**{name: section(name, v) for name, v in values.items()})


def digest(*parts) -> str:
  """16 hex digits over JSON-able parts; configs are taken as dicts."""
  plain = [to_dict(p) if dataclasses.is_dataclass(p) else p for p in parts]
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def validate(config: Config) -> Config:
  """Returns `config`, or raises ConfigError naming the first field that is wrong."""

  def need(ok: bool, field: str, right: str):
    if not ok:
      value = config
      for part in field.split('.'):
        value = getattr(value, part)
      raise ConfigError(f'{field}={value!r}: must be {right}')

  def one_of(field: str, value, options):
    need(value in options, field, 'one of ' + ', '.join(map(repr, options)))

  formats = (
    'simulated',
    'contract',
    'alibaba2014',
    'taobao_userbehavior',
    'rees46',
    'ranked_sequences',
  )
  one_of('data.format', config.data.format, formats)
  one_of('data.split', config.data.split, ('time', 'leave_one_out'))
  need(
    config.data.format == 'simulated' or config.data.path,
    'data.path',
    'the log, relative to $ROLEGEN_DATA',
  )
  need(0 < config.data.test_fraction < 1, 'data.test_fraction', 'between 0 and 1')
  need(
    0 < config.data.valid_fraction < 1 - config.data.test_fraction,
    'data.valid_fraction',
    'between 0 and 1 - test_fraction',
  )
  one_of(
    'simulator.preset',
    config.simulator.preset,
    ('alibaba2014', 'taobao_userbehavior_1k', 'held_back'),
  )
  one_of('semantic_ids.method', config.semantic_ids.method, ('residual_kmeans', 'rqvae'))
  need(2 <= config.semantic_ids.levels <= 8, 'semantic_ids.levels', '2 to 8')
  need(config.semantic_ids.codes >= 2, 'semantic_ids.codes', 'at least 2')
  need(
    config.semantic_ids.collaborative_dim > 0 or config.semantic_ids.text != '',
    'semantic_ids.collaborative_dim',
    'positive when no text embedder is set',
  )
  for name in ('backbone.temporal', 'reasoner.transformer'):
    room, part = name.split('.')
    t = getattr(getattr(config, room), part)
    need(t.layers >= 1, f'{name}.layers', 'at least 1')
    need(t.heads % t.kv_heads == 0, f'{name}.kv_heads', f'a divisor of heads={t.heads}')
    need(t.head_dim % 2 == 0, f'{name}.head_dim', 'even (rotary pairs)')
    one_of(f'{name}.remat', t.remat, ('none', 'full', 'dots'))
    one_of(f'{name}.dtype', t.dtype, ('float32', 'bfloat16'))
    one_of(f'{name}.attention', t.attention, ('auto', 'xla'))
    one_of(f'{name}.activation', t.activation, ('silu', 'gelu_tanh'))
    one_of(f'{name}.rope_scaling.kind', t.rope_scaling.kind, ('none', 'linear', 'llama3'))
    need(not set(t.layer_pattern) - set('LG'), f'{name}.layer_pattern', 'letters L and G')
    need(
      'L' not in t.layer_pattern or t.window >= 1,
      f'{name}.window',
      'at least 1, as layer_pattern has L',
    )
  need(
    config.backbone.context >= config.reasoner.events,
    'backbone.context',
    f'at least reasoner.events={config.reasoner.events}',
  )
  need(
    1 <= config.reasoner.role_events <= config.reasoner.events,
    'reasoner.role_events',
    f'1 to reasoner.events={config.reasoner.events}',
  )
  need(
    1 <= config.reasoner.intent_levels < config.semantic_ids.levels,
    'reasoner.intent_levels',
    f'1 to semantic_ids.levels - 1 = {config.semantic_ids.levels - 1}',
  )
  need(
    1 <= config.reasoner.coarse_codes <= config.semantic_ids.codes,
    'reasoner.coarse_codes',
    f'1 to semantic_ids.codes={config.semantic_ids.codes}',
  )
  need(config.reasoner.transitions >= 1, 'reasoner.transitions', 'at least 1')
  need(config.reasoner.retrieved >= 1, 'reasoner.retrieved', 'at least 1')
  need(config.reasoner.temperature > 0, 'reasoner.temperature', 'positive')
  one_of('reasoner.train', config.reasoner.train, ('all', 'lora', 'frozen'))
  need(config.reasoner.lora.rank >= 1, 'reasoner.lora.rank', 'at least 1')
  need(config.reasoner.lora.alpha > 0, 'reasoner.lora.alpha', 'positive')
  targets = {*config.reasoner.lora.targets}
  need(
    targets and targets <= {*PROJECTIONS},
    'reasoner.lora.targets',
    'some of ' + ', '.join(PROJECTIONS),
  )
  for name in ALIGN_TASKS:
    need(getattr(config.text, name) >= 0, f'text.{name}', 'at least 0')
  need(
    sum(getattr(config.text, name) for name in ALIGN_TASKS) > 0,
    'text.next_event',
    'positive where the other shares are 0',
  )
  need(config.text.rationales >= 0, 'text.rationales', 'at least 0')
  need(0 <= config.text.held_out < 1, 'text.held_out', 'at least 0 and below 1')
  need(config.text.sentence >= 2, 'text.sentence', 'at least 2')
  need(
    config.text.width >= 4 * (2 + config.semantic_ids.levels),
    'text.width',
    f'at least {4 * (2 + config.semantic_ids.levels)}, four events',
  )
  need(config.loop.worlds >= 2, 'loop.worlds', 'at least 2')
  need(config.calibration.steps >= 0, 'calibration.steps', 'at least 0')
  need(config.calibration.learning_rate > 0, 'calibration.learning_rate', 'positive')
  need(config.serving.exploration_weight >= 0, 'serving.exploration_weight', 'at least 0')
  need(config.serving.exposure_penalty >= 0, 'serving.exposure_penalty', 'at least 0')
  need(config.evaluation.exposure_penalty >= 0, 'evaluation.exposure_penalty', 'at least 0')
  need(config.calibration.examples >= 0, 'calibration.examples', 'at least 0')
  need(
    config.loop.interventions and {*config.loop.interventions} <= {*INTERVENTIONS},
    'loop.interventions',
    'some of ' + ', '.join(INTERVENTIONS),
  )
  one_of('loop.noise', config.loop.noise, ('common', 'independent'))
  need(
    0 < len({*config.loop.backbone_inputs})
    and {*config.loop.backbone_inputs} <= {*BACKBONE_INPUTS},
    'loop.backbone_inputs',
    'some of ' + ', '.join(BACKBONE_INPUTS),
  )
  one_of('loop.objective', config.loop.objective, ('policy_gradient', 'weighted'))
  for name in ('warmup', 'align', 'reason', 'loop_stage'):
    stage = getattr(config, name)
    need(stage.steps >= 1, f'{name}.steps', 'at least 1')
    need(stage.batch >= 1, f'{name}.batch', 'at least 1')
    need(stage.save_every >= 1, f'{name}.save_every', 'at least 1')
  for name in config.evaluation.ablations:
    need(name in ABLATIONS, 'evaluation.ablations', 'some of ' + ', '.join(ABLATIONS))
  one_of('mesh.rollout', config.mesh.rollout, ('replicated', 'tensor'))
  need(
    sum(v == -1 for v in dataclasses.asdict(config.mesh).values()) <= 1,
    'mesh',
    'at most one axis of -1',
  )
  return config
