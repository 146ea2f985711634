"""The typed configuration of a run: frozen dataclasses, one section per package.

Every field says its meaning and unit, and every section validates its own fields. Experiments
(`experiments/*.py`) return a `Config`; `--set a.b=c` replaces fields of it (`overrides.py`); the
resolved config is written into the run folder. No jax here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import typing
from typing import Any

from rolegen_jax import fields
from rolegen_jax.fields import ConfigError, Section, local_path

# The index is the event code; ties sort in this order.
EVENT_NAMES = ('impression', 'view', 'fav', 'cart', 'remove', 'purchase')
# Columns of the data contract (`data/events.py`).
EVENT_COLUMNS = ('user_id', 'item_id', 'event', 'timestamp', 'session_id', 'price')
ITEM_COLUMNS = (
  'item_id',
  'title',
  'text',
  'category_id',
  'category_code',
  'brand',
  'price',
  'embedding',
)
TIME_UNITS = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}  # how many are a second
# How logs are written: as the contract says, or as public logs are (`data/formats/`).
FORMATS = (
  'simulated',
  'contract',
  'alibaba2014',
  'taobao_userbehavior',
  'rees46',
  'ranked_sequences',
  'recbole',
  'amazon_reviews2023',
  'movielens',
  'retailrocket',
  'tmall',
  'otto',
  'kuairand',
  'yambda',
  'merrec',
)
# Dormant: D1 first conversion, D2 reactivation. D3 never converted, so it has no target.
COHORTS = ('D1', 'D2', 'D3', 'ACTIVE')
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
# Fields of TextConfig.
ALIGN_TASKS = ('sid_to_text', 'text_to_sid', 'masked_attribute', 'next_event', 'next_purchase')
WORD_TASKS = (*ALIGN_TASKS, 'rationale')
BACKBONE_EXPERTS = ('generative', 'dense', 'history', 'popularity', 'trending')
REASONER_EXPERTS = ('intent', 'retrieved', 'candidates')
INTERVENTIONS = ('intent', 'remove', 'role')
MAX_WORLDS = 16  # world tokens in the vocabulary
# Of semantic_ids/embeddings.py and, the last, reasoning/text_states.py.
TEXT_EMBEDDERS = ('hashed_ngrams', 'column', 'minilm', 'reasoner')
# Or URLs of buckets.
PATHS = (
  'data.path',
  'data.shards',
  'reasoner.pretrained',
  'roles.annotations',
  'update.parent',
)
# Far beyond what anybody trains: whoever asks for more has mistyped.
MANY, TOO_WIDE, TOO_DEEP = 10_000_000, 65_536, 1024
# Ablation -> the expert that RoleGen is left without. Nothing is trained for it: the weights of the
# other experts are fitted again.
WITHOUT = {f'without_{name}': name for name in (*BACKBONE_EXPERTS, *REASONER_EXPERTS)}
# Ablations that replace parameters of the trained RoleGen and neither train nor fit anything
# (`reasoning/ablations.py`).
AT_RUN_TIME = ('no_language_model', 'counts_only')
# Ablations of the trained RoleGen that are calibrated again. no_reasoner is its backbone, whose
# networks have the same gradient whatever the reasoner says.
REFITTED = ('no_reasoner', *WITHOUT)
# Ablation -> the settings that make it, by section. Those without any need no training
# (AT_RUN_TIME, REFITTED) or are switches of the joint train step. no_roles: trained from stage
# `reason` on. no_interventions: as many worlds as RoleGen has, all factual. tiger: generation
# alone, the baseline TIGER (arXiv 2305.05065).
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = dict(
  no_reasoner={},
  **{name: {} for name in AT_RUN_TIME},
  no_roles=dict(
    reasoner=dict(roles=False),
    loop=dict(interventions=('remove',)),
  ),
  no_interventions={},
  no_reflection={},
  tiger=dict(backbone=dict(experts=('generative',))),
  **{name: {} for name in WITHOUT},
)


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  format: str = 'simulated'  # one of FORMATS
  # File, folder or glob (shop/date=2026-11-*) of the log, relative to $ROLEGEN_DATA; unused when
  # simulated.
  path: str = ''
  # What the files call columns of the contract: ('user_id=customer', 'item_id=sku'). With the name
  # of a table, in that one: ('events.price=paid', 'items.price=list'). For contract and recbole.
  columns: tuple[str, ...] = ()
  time_unit: str = 's'  # of timestamps of the format contract that are integers: s | ms | us | ns
  on_error: str = 'stop'  # at a wrong row: stop | skip (it is left out and counted by kind)
  max_users: int = 0  # keep the first N users in file order; 0 = all
  # Folder of `rolegen prepare_shards`: the warmup reads rows of the whole log from there, which
  # then need not fit in memory; '' = off.
  shards: str = ''
  split: str = 'time'  # time | leave_one_out
  test_fraction: float = 0.3  # share of dormant occasions, latest by time, that are test
  valid_fraction: float = 0.15  # share of dormant occasions just before them
  first_conversion_min_views: int = 10  # D1 and D3: at least this many views
  reactivation_min_days: float = 14.0  # D2: at least this long since the last purchase
  reactivation_min_views: int = 5  # D2: at least this many views since the last purchase
  # Share of items whose training rows are left out: new to every model. For measuring; 0 = off.
  cold_items: float = 0.0

  def validate(self, name: str) -> None:
    self._one_of(FORMATS, f'{name}.format')
    has_log = self.format == 'simulated' or self.path != ''
    right = f'the log, relative to $ROLEGEN_DATA, with format={self.format}'
    self._need(has_log, f'{name}.path', right)
    self._validate_columns(name)
    self._one_of(TIME_UNITS, f'{name}.time_unit')
    fits = self.time_unit == 's' or self.format == 'contract'
    self._need(fits, f'{name}.time_unit', f's with format={self.format}, which has its own')
    self._one_of(('stop', 'skip'), f'{name}.on_error')
    fits = self.on_error == 'stop' or self.format != 'ranked_sequences'
    self._need(fits, f'{name}.on_error', 'stop with format=ranked_sequences')
    self._one_of(('time', 'leave_one_out'), f'{name}.split')
    self._need(0 < self.test_fraction < 1, f'{name}.test_fraction', 'between 0 and 1')
    fits = 0 < self.valid_fraction < 1 - self.test_fraction
    self._need(fits, f'{name}.valid_fraction', 'between 0 and 1 - test_fraction')
    self._at_least(0, name, 'max_users', 'reactivation_min_days')
    self._at_least(0, name, 'first_conversion_min_views', 'reactivation_min_views')
    self._at_most(100_000, name, 'reactivation_min_days')
    self._need(0 <= self.cold_items < 1, f'{name}.cold_items', 'from 0 to below 1')
    fits = not (self.cold_items and self.shards)
    self._need(fits, f'{name}.cold_items', f'0 with {name}.shards, which hold rows of all items')

  def renamed(self, table: str) -> dict[str, str]:
    """Return what a table (events or items) calls columns that it does not call by their names."""
    columns = EVENT_COLUMNS if table == 'events' else ITEM_COLUMNS
    pairs = dict(pair.split('=', 1) for pair in self.columns)
    names = {column: pairs.get(f'{table}.{column}', pairs.get(column)) for column in columns}
    return {column: name for column, name in names.items() if name}

  def _validate_columns(self, name: str) -> None:
    tables = {'events': EVENT_COLUMNS, 'items': ITEM_COLUMNS}
    known = {f'{table}.{column}' for table, columns in tables.items() for column in columns}
    # Without a table, a price would be that of either.
    plain = [column for column in (*EVENT_COLUMNS, *ITEM_COLUMNS) if column != 'price']
    pairs = [pair.partition('=') for pair in self.columns]
    fits = all(column in (*known, *plain) and in_file for column, _, in_file in pairs)
    columns_of = ', '.join(dict.fromkeys((*plain, 'events.price', 'items.price')))
    right = f"('COLUMN=name in the files', ...) with COLUMN of {columns_of}"
    self._need(fits, f'{name}.columns', right)
    columns = [column for column, _, _ in pairs]
    self._need(len(set(columns)) == len(columns), f'{name}.columns', 'one name for each column')
    for table, of_table in tables.items():
      renamed = self.renamed(table)
      in_files = {renamed.get(column, column) for column in of_table}
      right = f'another column of the files for each column of {table}'
      self._need(len(in_files) == len(of_table), f'{name}.columns', right)
    fits = not self.columns or self.format in ('contract', 'recbole')
    self._need(fits, f'{name}.columns', f'() with format={self.format}, which has its own')


@dataclasses.dataclass(frozen=True)
class SimulatorConfig(Section):
  """The simulated shop log (`rolegen_jax/simulator/`)."""

  # item_traits (effects add up) | context (what an event does depends on its context).
  kind: str = 'item_traits'
  # Which real log its marginals were fitted to: alibaba2014 | taobao_userbehavior_1k; or
  # held_back, item traits of other strengths.
  preset: str = 'alibaba2014'
  strength: float = 1.0  # of what signals and decoys do; kind=context only
  users: int = 3000
  items: int = 1200
  categories: int = 24
  # Share of the fitted mean: the demo is smaller, the shape of the distribution stays.
  events_per_user_scale: float = 0.75
  seed: int = 0

  @property
  def label(self) -> str:
    """Return what tells this simulated log from others, in words."""
    kind = f'context of strength {self.strength:g}, ' if self.kind == 'context' else ''
    return f'{kind}{self.preset}, seed {self.seed}'

  def validate(self, name: str) -> None:
    self._one_of(('item_traits', 'context'), f'{name}.kind')
    is_context = self.kind == 'context'
    presets = 'alibaba2014', 'taobao_userbehavior_1k', *(() if is_context else ('held_back',))
    self._one_of(presets, f'{name}.preset')
    self._at_least(0, name, 'strength')
    self._at_most(4, name, 'strength')
    has_strength = is_context or self.strength == 1
    self._need(has_strength, f'{name}.strength', '1 unless simulator.kind=context')
    self._at_least(1, name, 'users', 'items', 'categories')
    self._at_most(MANY, name, 'users', 'items')
    # Two departments of four, and items to choose from in each category.
    fits = 8 <= self.categories <= self.items // 4
    self._need(fits, f'{name}.categories', f'8 to a quarter of simulator.items={self.items}')
    self._positive(name, 'events_per_user_scale')
    self._at_most(100, name, 'events_per_user_scale')
    self._at_least(0, name, 'seed')


@dataclasses.dataclass(frozen=True)
class SemanticIdConfig(Section):
  method: str = 'residual_kmeans'  # residual_kmeans | rqvae
  levels: int = 3  # codes per item
  codes: int = 256  # codebook size per level
  collaborative_dim: int = 64  # width of the collaborative item embedding; 0 = off
  # How much it counts against text, by length; of no effect unless both are on.
  collaborative_weight: float = 1.0
  # Text embedder of items: hashed_ngrams | column | minilm | reasoner, the mean of the last states
  # of `reasoner.pretrained`; '' = off.
  text: str = ''
  text_dim: int = 128  # width of the items' text vectors, at most that of the embedder's
  iterations: int = 20  # k-means iterations per level, or RQ-VAE epochs
  seed: int = 0

  def validate(self, name: str) -> None:
    self._one_of(('residual_kmeans', 'rqvae'), f'{name}.method')
    self._need(2 <= self.levels <= 8, f'{name}.levels', '2 to 8')
    self._at_least(2, name, 'codes')
    self._at_most(TOO_WIDE, name, 'codes', 'collaborative_dim', 'text_dim')
    self._at_least(0, name, 'collaborative_dim', 'seed')
    self._positive(name, 'collaborative_weight')
    self._one_of(('', *TEXT_EMBEDDERS), f'{name}.text')
    self._at_least(1, name, 'text_dim')
    some = self.collaborative_dim > 0 or self.text != ''
    self._need(some, f'{name}.collaborative_dim', 'positive when no text embedder is set')
    self._at_least(1, name, 'iterations')


@dataclasses.dataclass(frozen=True)
class RopeScaling(Section):
  """Rotary positions stretched beyond the length that a model was first trained at."""

  kind: str = 'none'  # none | linear (arXiv 2306.15595) | llama3 (arXiv 2407.21783)
  factor: float = 1.0  # frequencies are divided by it; by llama3 only the low ones
  low_frequency: float = 1.0  # llama3: waves longer than context / this are low frequencies
  high_frequency: float = 4.0  # llama3: waves shorter than context / this stay as they are
  context: int = 8192  # llama3: tokens, the length that the model was first trained at

  def validate(self, name: str) -> None:
    self._one_of(('none', 'linear', 'llama3'), f'{name}.kind')
    self._positive(name, 'factor', 'low_frequency', 'high_frequency', 'context')
    ordered = self.kind != 'llama3' or self.low_frequency < self.high_frequency
    self._need(ordered, f'{name}.low_frequency', f'below high_frequency={self.high_frequency}')


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Section):
  layers: int = 2
  width: int = 64  # residual stream
  heads: int = 4  # query heads
  kv_heads: int = 2  # key/value heads, divides heads
  head_dim: int = 16
  mlp: int = 192  # hidden width of the gated MLP
  rope_theta: float = 10_000.0
  remat: str = 'none'  # none | full | dots: what the backward pass recomputes
  # Compute type: float32 | bfloat16. Parameters are always float32.
  dtype: str = 'float32'
  # auto: the platform's kernel where it takes shapes, mask and dtype (splash on TPU, cudnn on
  # GPU) | xla: never.
  attention: str = 'auto'
  # What pretrained families differ in (pretrained/families.py). The defaults are the model that is
  # trained from scratch.
  qk_norm: bool = False  # norm of each head's queries and keys before they are rotated
  post_norms: bool = False  # norm also of what attention and MLP add to the residual stream
  norm_epsilon: float = 1e-6
  norm_offset: float = 0.0  # norms multiply by this + their parameter; Gemma 1
  activation: str = 'silu'  # of the gate: silu | gelu_tanh
  attention_scale: float = 0.0  # of scores; 0 = head_dim ** -0.5
  # A letter a layer, repeated: L sees `window` tokens, G sees all; '' = all G.
  layer_pattern: str = ''
  window: int = 0  # tokens that a query of an L layer sees, itself included
  local_rope_theta: float = 10_000.0  # of L layers
  rope_scaling: RopeScaling = RopeScaling()  # of G layers
  embedding_scale: float = 1.0  # token embeddings are multiplied by it; Gemma width ** 0.5
  tied: bool = True  # the readout is the token table; False: a table of its own
  logit_softcap: float = 0.0  # logits become cap * tanh(logits / cap); 0 = off

  def validate(self, name: str) -> None:
    self._at_least(1, name, 'layers', 'width', 'heads', 'kv_heads', 'mlp')
    self._at_most(TOO_DEEP, name, 'layers', 'heads', 'head_dim')
    self._at_most(TOO_WIDE, name, 'width')
    self._at_most(16 * TOO_WIDE, name, 'mlp')
    divides = self.heads % self.kv_heads == 0
    self._need(divides, f'{name}.kv_heads', f'a divisor of heads={self.heads}')
    even = self.head_dim >= 2 and self.head_dim % 2 == 0
    self._need(even, f'{name}.head_dim', 'even and positive (rotary pairs)')
    self._one_of(('none', 'full', 'dots'), f'{name}.remat')
    self._one_of(('float32', 'bfloat16'), f'{name}.dtype')
    self._one_of(('auto', 'xla'), f'{name}.attention')
    self._one_of(('silu', 'gelu_tanh'), f'{name}.activation')
    self._positive(name, 'rope_theta', 'local_rope_theta', 'norm_epsilon', 'embedding_scale')
    self._at_least(0, name, 'attention_scale', 'window', 'logit_softcap')
    self._need(not set(self.layer_pattern) - set('LG'), f'{name}.layer_pattern', 'letters L and G')
    has_window = 'L' not in self.layer_pattern or self.window >= 1
    self._need(has_window, f'{name}.window', 'at least 1, as layer_pattern has L')
    self.rope_scaling.validate(f'{name}.rope_scaling')


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Section):
  temporal: TransformerConfig = TransformerConfig()  # over events, one position each
  query_layers: int = 1  # cross-attention layers from a target query to its memory
  depth_layers: int = 1  # layers of the depth decoder over the codes of one item
  context: int = 128  # events of history that a trajectory row holds
  purchase_weight: float = 5.0  # loss weight of a purchase target against 1 for other events
  view_weight: float = 0.2  # loss weight of a target that is no purchase
  # Experts whose scores are added (`models/experts.py`); the others are neither trained nor run.
  experts: tuple[str, ...] = BACKBONE_EXPERTS
  generation_loss: float = 1.0  # weight of the generative expert's NLL beside that of the others
  # The generative expert learns from so many targets of a row, drawn anew in every step, as this
  # share of its width; the others learn from all. Generating is most of a step's work.
  generation_share: float = 0.25
  dropout: float = 0.2  # on event embeddings, and inside every layer, while training
  row_dropout: float = 0.1  # chance that an item is without its own row in a training step
  # Items that a step's sum over the catalogue is estimated from. One with room for no more is
  # summed over exactly.
  negatives: int = 1024
  # Items a day that are known to be trending (`features/trending.py`).
  trending: int = 1024
  # Beams kept per level, and items taken from the dense expert, when recommending.
  beam: int = 64

  def generated_targets(self, width: int) -> int:
    """Return how many targets of a row the generative expert learns from; alone it has all."""
    is_alone = self.experts == ('generative',)
    return width if is_alone else math.ceil(self.generation_share * width)

  def validate(self, name: str) -> None:
    self.temporal.validate(f'{name}.temporal')
    self._at_least(1, name, 'query_layers', 'depth_layers', 'context', 'beam', 'trending')
    self._some_of(BACKBONE_EXPERTS, f'{name}.experts')
    finds = bool({'generative', 'dense'} & set(self.experts))
    self._need(finds, f'{name}.experts', 'generative or dense too, which find items')
    self._at_least(2, name, 'negatives')
    self._at_most(MANY, name, 'negatives')
    self._at_most(TOO_DEEP, name, 'query_layers', 'depth_layers')
    self._at_most(TOO_WIDE, name, 'context', 'beam', 'trending')
    self._positive(name, 'purchase_weight')
    self._at_least(0, name, 'view_weight', 'generation_loss')
    share = self.generation_share
    self._need(0 < share <= 1, f'{name}.generation_share', 'above 0 and at most 1')
    for rate in ('dropout', 'row_dropout'):
      in_range = 0 <= getattr(self, rate) < 1
      self._need(in_range, f'{name}.{rate}', 'at least 0 and below 1')
    self._at_most(0.99, name, 'dropout', 'row_dropout')


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
  """Low-rank adapters of the reasoner's projections (Hu et al., arXiv 2106.09685)."""

  rank: int = 16  # of each adapter
  alpha: float = 32.0  # what an adapter adds is multiplied by alpha / rank
  targets: tuple[str, ...] = PROJECTIONS  # projections that get one

  def validate(self, name: str) -> None:
    self._at_least(1, name, 'rank')
    self._at_most(TOO_WIDE, name, 'rank')
    self._positive(name, 'alpha')
    self._some_of(PROJECTIONS, f'{name}.targets')


@dataclasses.dataclass(frozen=True)
class ReasonerConfig(Section):
  transformer: TransformerConfig = TransformerConfig()
  events: int = 24  # latest events of the trajectory in the prompt, (2 + levels) tokens each
  role_events: int = 12  # latest events that get a role token
  roles: bool = True  # False: every such token says that the role is unknown
  intents: int = 2  # intents per completion
  intent_levels: int = 1  # codes of the semantic-ID prefix that names an intent
  candidates: int = 4  # items on a path; at inference, that a world names
  coarse_codes: int = 8  # coarse codes that contact with an item may excite, the strongest ones
  transitions: int = 16  # items that contact with an item may retrieve, those that follow it most
  # Items retrieved by a whole history, the strongest: where candidates start from, and an expert.
  retrieved: int = 64
  # Kinds of users, who are told apart by their histories and for whom contact with items leads to
  # different intents (`models/kinds.py`); 0 = all are of one kind.
  kinds: int = 0
  # Words by which kinds tell items apart, the most frequent ones, at most. Where items have none,
  # their coarse codes below this number: as many as `semantic_ids.codes` are all of them.
  attributes: int = 128
  temperature: float = 0.2  # of rollouts; demonstrations are fitted at 1
  # Folder or GGUF file of a decoder, or package:NAME of a Python package that brings it; sets
  # `transformer`; '' = none.
  pretrained: str = ''
  # Text tokens: those of the tokenizer of `pretrained`, or at most so many of one trained on the
  # items' words; 0 = no text.
  text_pieces: int = 0
  tokenizer: str = ''  # hash of the tokenizer of `pretrained`
  # What training changes: all | lora | frozen. frozen: the rows of our tokens (all before the text
  # block) and the structural equations; lora: those and adapters. The rest, the base, has neither
  # gradients nor moments, is in no checkpoint, and the KL reference shares it.
  train: str = 'all'
  lora: LoraConfig = LoraConfig()

  def validate(self, name: str) -> None:
    self.transformer.validate(f'{name}.transformer')
    self.lora.validate(f'{name}.lora')
    self._at_least(2, name, 'events')  # an event, and the one that follows it
    self._at_least(1, name, 'intents', 'intent_levels', 'candidates', 'coarse_codes')
    self._at_least(1, name, 'transitions', 'retrieved')
    self._at_most(TOO_DEEP, name, 'intents', 'candidates', 'transitions')
    self._at_most(TOO_WIDE, name, 'retrieved')
    self._at_least(0, name, 'kinds')
    self._at_most(TOO_DEEP, name, 'kinds')
    self._at_least(1, name, 'attributes')
    self._at_most(TOO_WIDE, name, 'attributes')
    fits = 1 <= self.role_events <= self.events
    self._need(fits, f'{name}.role_events', f'1 to reasoner.events={self.events}')
    self._positive(name, 'temperature')
    self._at_least(0.001, name, 'temperature')  # gradients, over its square, stay in float32
    self._at_most(1000, name, 'temperature')
    self._at_least(0, name, 'text_pieces')
    self._at_most(MANY, name, 'text_pieces')
    self._one_of(('all', 'lora', 'frozen'), f'{name}.train')


@dataclasses.dataclass(frozen=True)
class TextConfig(Section):
  """What the reasoner learns in words (`text/prompts.toml`).

  In force where the vocabulary has text pieces and the items have words. The first five are shares
  of the examples of stage `align`, of any sum.
  """

  sid_to_text: float = 1.0  # semantic ID -> title, category or brand
  text_to_sid: float = 1.0  # all that is known of an item -> semantic ID
  masked_attribute: float = 0.5  # semantic ID and description, one value hidden -> that value
  next_event: float = 1.0  # a trajectory, token by token
  next_purchase: float = 0.5  # a trajectory and a time -> semantic ID of what was bought
  width: int = 256  # tokens of a packed row
  sentence: int = 24  # tokens of a text, its end included, at most; longer ones are cut
  # Share of items whose words are never shown; the report asks for them separately.
  held_out: float = 0.05
  # Weight in stage `reason` of the chain with a sentence after each role and intent; 0 = chains
  # without words.
  rationales: float = 0.0
  # Tokens of `align` examples that each example of `reason` and of the loop brings along, so that
  # what was learned is kept; 0 = none but in the room that chains with sentences leave.
  replay: int = 0

  def validate(self, name: str) -> None:
    self._at_least(0, name, *ALIGN_TASKS, 'rationales')
    some = sum(getattr(self, task) for task in ALIGN_TASKS) > 0
    self._need(some, f'{name}.next_event', 'positive where the other shares are 0')
    self._need(0 <= self.held_out <= 0.5, f'{name}.held_out', '0 to 0.5')
    self._at_least(2, name, 'sentence')
    self._at_least(1, name, 'width')
    self._at_least(0, name, 'replay')
    self._at_most(TOO_WIDE, name, 'sentence', 'width', 'replay')


@dataclasses.dataclass(frozen=True)
class RolesConfig(Section):
  """Hindsight roles (`reasoning/roles.py`): how many, and thresholds."""

  # Training conversions that are labeled and teach the reasoner, evenly drawn; 0 = all.
  max_conversions: int = 20_000
  intent_days: float = 14.0  # an intent ends after so long without contact with its coarse code
  # Sigmas by which contact with the item raises interest near the target, beyond what items of its
  # kind do.
  trigger_z: float = 4.0
  distract_z: float = -3.0  # the same, lowers
  # Share of interest that purchases there move towards the target's coarse code.
  complement_shift: float = 0.03
  # Nats of the target's coarse code from which an event matters, where there are kinds of users:
  # then it replaces the three shares above.
  effect: float = 0.4
  # JSONL of imported roles and rationales, which replace those of hindsight
  # (`text/annotations.py`); '' = none.
  annotations: str = ''

  def validate(self, name: str) -> None:
    self._at_least(0, name, 'max_conversions')
    self._share(name, 'complement_shift')
    self._positive(name, 'intent_days', 'effect')
    ordered = self.distract_z < self.trigger_z
    self._need(ordered, f'{name}.distract_z', f'below trigger_z={self.trigger_z}')


@dataclasses.dataclass(frozen=True)
class LoopConfig(Section):
  """The closed loop: rollouts, rewards and the reasoner's objective."""

  worlds: int = 4  # rollouts per user; world 0 is factual
  # What is done in the worlds after the factual one, in turn. remove: an event is removed | role:
  # an event gets another role | intent: another intent, the next likeliest; it costs candidates
  # (docs/decisions/37-candidates-by-beams.md).
  interventions: tuple[str, ...] = ('remove', 'role')
  # independent: each world has noise of its own | common: the worlds of a user differ through
  # their interventions alone.
  noise: str = 'independent'
  # What of the reasoning adds to the score of an item.
  experts: tuple[str, ...] = REASONER_EXPERTS
  # a: what a world adds to the hit of all worlds of a user: codes in common, and the item itself.
  reward_hit: float = 1.0
  reward_gain: float = 0.5  # b: execution gain in nats, clipped to [-2, 2]
  reward_malformed: float = 1.0  # c: penalty on the share of malformed candidates
  # reinforce (log-likelihood by advantage) | weighted (by softmax of reward / weight_beta)
  objective: str = 'reinforce'
  weight_beta: float = 0.5  # temperature of the `weighted` objective, in reward units
  kl: float = 0.02  # weight of KL(policy || reference)
  imitation: float = 0.5  # weight of the supervised FR-CoT loss that is kept in the loop
  reference_decay: float = 0.99  # EMA of the reference; 1 = frozen
  reasoning_dropout: float = 0.3  # chance that a training target sees nothing of the reasoning
  reflect_every: int = 1  # the reasoner is updated every k-th step

  def validate(self, name: str) -> None:
    fits = 2 <= self.worlds <= MAX_WORLDS
    self._need(fits, f'{name}.worlds', f'2 to {MAX_WORLDS}, the world tokens of the vocabulary')
    self._some_of(INTERVENTIONS, f'{name}.interventions')
    self._one_of(('common', 'independent'), f'{name}.noise')
    self._some_of(REASONER_EXPERTS, f'{name}.experts')
    self._at_least(0, name, 'reward_hit', 'reward_gain', 'reward_malformed')
    self._one_of(('reinforce', 'weighted'), f'{name}.objective')
    self._positive(name, 'weight_beta')
    self._at_least(0, name, 'kl', 'imitation')
    self._share(name, 'reference_decay', 'reasoning_dropout')
    self._at_least(1, name, 'reflect_every')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
  learning_rate: float = 3e-3  # peak
  # Of the reasoner's structural equations, on top of the learning rate.
  equation_lr_multiplier: float = 10.0
  warmup_steps: int = 50
  final_share: float = 0.05  # of the peak, at the end of the cosine
  weight_decay: float = 0.05
  clip_norm: float = 1.0
  b2: float = 0.98

  def validate(self, name: str) -> None:
    self._positive(name, 'learning_rate', 'equation_lr_multiplier', 'clip_norm')
    self._at_least(0, name, 'warmup_steps', 'weight_decay')
    self._share(name, 'final_share')
    self._need(0 < self.b2 < 1, f'{name}.b2', 'between 0 and 1')
    self._at_most(0.99999, name, 'b2')  # 1 in float32, a little further on
    self._at_most(1000, name, 'learning_rate')


@dataclasses.dataclass(frozen=True)
class StageConfig(Section):
  steps: int = 300
  batch: int = 32  # rows (warmup) or examples (other stages) per step over all devices
  optimizer: OptimizerConfig = OptimizerConfig()
  save_every: int = 100  # steps between checkpoints

  def validate(self, name: str) -> None:
    self._at_least(1, name, 'steps', 'batch', 'save_every')
    self._at_most(MANY, name, 'batch')
    most = fields.LARGEST_INT // self.batch  # rows are numbered
    self._need(self.steps <= most, f'{name}.steps', f'at most {most} with batch={self.batch}')
    self.optimizer.validate(f'{name}.optimizer')


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  """Devices per mesh axis; -1 on one axis = all that are left."""

  data: int = -1  # batch only: parameters are replicated over it
  fsdp: int = 1  # batch, and parameters sharded
  tensor: int = 1  # heads, MLP and vocabulary sharded
  # Parameters while decoding: replicated (no collective in the loop) | tensor (sharded over
  # tensor: larger models fit).
  rollout: str = 'replicated'

  def validate(self, name: str) -> None:
    sizes = (self.data, self.fsdp, self.tensor)
    for axis, size in zip(('data', 'fsdp', 'tensor'), sizes):
      self._need(size == -1 or size >= 1, f'{name}.{axis}', 'at least 1, or -1')
      self._at_most(MANY, name, axis)
    right = f'a number where another axis is -1 (fsdp={self.fsdp}, tensor={self.tensor})'
    self._need(sizes.count(-1) <= 1, f'{name}.data', right)
    self._one_of(('replicated', 'tensor'), f'{name}.rollout')


@dataclasses.dataclass(frozen=True)
class CalibrationConfig(Section):
  """After the loop: weights of the experts and the language model, by validation conversions."""

  steps: int = 30  # of L-BFGS; 0 = no calibration
  # Validation conversions, evenly drawn; 0 = all. What is scored for them is held at once.
  examples: int = 2000
  prior: float = 1.0  # conversions that the weights found by training, or yesterday, are worth

  def validate(self, name: str) -> None:
    self._at_least(0, name, 'steps', 'examples')
    self._at_most(MANY, name, 'steps', 'prior')
    self._positive(name, 'prior')


@dataclasses.dataclass(frozen=True)
class UpdateConfig(Section):
  """What continues another run: `rolegen update`, `rolegen train --warm_start`."""

  # Run folder whose semantic IDs, parameters and optimizer moments this run starts from; '' = none.
  # It is read until the stages that start from it are complete.
  parent: str = ''
  parent_key: str = ''  # the key of that folder's last stage; the commands fill both in
  appends: bool = False  # whether data.path holds only what came after the parent's log
  # Of `rolegen update`: shares of the steps of warmup and loop, and of their peak learning rates.
  steps: float = 0.1
  learning_rate: float = 0.3
  recent_days: float = 2.0  # trained on whole: these last days, and all that the parent did not see
  replay: float = 0.5  # share of rows, beside those, that are of the time before; below 1
  prior: float = 300.0  # the `calibration.prior` of an update: few conversions move weights little

  def validate(self, name: str) -> None:
    right = 'a run folder, with its parent_key; --warm_start and `rolegen update` set both'
    self._need(bool(self.parent) == bool(self.parent_key), f'{name}.parent', right)
    self._need(
      bool(self.parent) or not self.appends, f'{name}.appends', f'false without {name}.parent'
    )
    self._positive(name, 'steps', 'learning_rate', 'prior')
    self._at_most(100, name, 'steps', 'learning_rate')
    self._at_most(MANY, name, 'prior')
    self._at_least(0, name, 'recent_days')
    self._at_most(100_000, name, 'recent_days')
    self._need(0 <= self.replay < 1, f'{name}.replay', 'at least 0 and below 1')


@dataclasses.dataclass(frozen=True)
class ServingConfig(Section):
  """How lists are ordered (`serving/slate.py`)."""

  # Weight, beside log p, of what contact with an item opens; 0 = by log p alone.
  exploration_weight: float = 2.0
  # `recommend`: weight against items that the lists before show much; 0 = each list for itself.
  exposure_penalty: float = 0.0
  # Whether lists may hold items of the user's history, in `recommend`, the report and A/B tests
  # alike: allow | bar | auto (what is better on validation occasions). Models drop them from the
  # backbone.beam items they find, so the beam must leave room for them.
  filter_history: str = 'auto'

  def validate(self, name: str) -> None:
    self._at_least(0, name, 'exploration_weight', 'exposure_penalty')
    self._one_of(('auto', 'allow', 'bar'), f'{name}.filter_history')


@dataclasses.dataclass(frozen=True)
class SasrecConfig(Section):
  """The baseline SASRec, sized and trained as published, whatever the backbone is."""

  widths: tuple[int, ...] = (64, 128)  # one model each; the best on validation occasions is kept
  blocks: int = 1
  heads: int = 1
  context: int = 50  # latest events of a history
  dropout: float = 0.5  # on embeddings and inside blocks
  learning_rate: float = 1e-3  # of Adam
  b2: float = 0.98
  # Uniform negatives that all positions of a step share; catalogues of at most `full_softmax` items
  # are read whole.
  negatives: int = 1024
  full_softmax: int = 2048
  view_weight: float = 0.04  # loss weight of an event that is no purchase, against 1
  batch: int = 16  # packed rows of `context` events per step
  steps: int = 40_000  # at most, of each model
  check_every: int = 400  # steps between validations
  patience: int = 10  # validations in a row without improvement that end the training of a model

  def validate(self, name: str) -> None:
    self._at_least(1, name, 'blocks', 'heads', 'context', 'negatives', 'batch', 'steps')
    self._at_least(1, name, 'check_every', 'patience')
    self._at_most(TOO_DEEP, name, 'blocks', 'heads')
    self._at_most(TOO_WIDE, name, 'context')
    self._at_most(MANY, name, 'negatives', 'full_softmax', 'batch', 'steps', 'check_every')
    self._at_most(MANY, name, 'patience')
    self._at_least(0, name, 'full_softmax', 'view_weight')
    fits = len(self.widths) > 0 and all(w % (2 * self.heads) == 0 and w > 0 for w in self.widths)
    even = f'one or more multiples of 2 * heads={2 * self.heads}'
    self._need(fits, f'{name}.widths', even)
    self._need(max(self.widths) <= TOO_WIDE, f'{name}.widths', f'at most {TOO_WIDE} each')
    self._need(0 <= self.dropout < 1, f'{name}.dropout', 'at least 0 and below 1')
    self._at_most(0.99, name, 'dropout')
    self._positive(name, 'learning_rate')
    self._at_most(1000, name, 'learning_rate')
    self._need(0 < self.b2 < 1, f'{name}.b2', 'between 0 and 1')
    self._at_most(0.99999, name, 'b2')


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Section):
  ks: tuple[int, ...] = (1, 5, 10, 50)
  batch: int = 64
  # At most so many test occasions of each cohort, evenly spaced in time; 0 = all of them. What is
  # over all cohorts then weighs them otherwise than the log does.
  occasions: int = 0
  bootstrap: int = 1000  # resamples of users for 95 % intervals
  # Some of ABLATIONS, made and reported beside RoleGen.
  ablations: tuple[str, ...] = ('no_reasoner', *AT_RUN_TIME)
  # RoleGen and the backbone alone are also reported with their lists under this exposure penalty;
  # 0 = they are not.
  exposure_penalty: float = 0.7
  sasrec: SasrecConfig = SasrecConfig()
  tiger_steps: int = 0  # training steps of the ablation `tiger`; 0 = as many as the warmup's
  seed: int = 0

  def validate(self, name: str) -> None:
    ascending = len(self.ks) > 0 and list(self.ks) == sorted(set(self.ks)) and self.ks[0] >= 1
    self._need(ascending, f'{name}.ks', 'one or more numbers from 1 on, ascending')
    self._at_least(1, name, 'batch', 'bootstrap')
    self._at_most(MANY, name, 'batch', 'bootstrap', 'occasions', 'tiger_steps')
    self.sasrec.validate(f'{name}.sasrec')
    self._at_least(0, name, 'exposure_penalty', 'seed', 'occasions', 'tiger_steps')
    if self.ablations:
      self._some_of(ABLATIONS, f'{name}.ablations')


@dataclasses.dataclass(frozen=True)
class Config(Section):
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
  kinds: StageConfig = StageConfig(
    800, 128, OptimizerConfig(5e-3, warmup_steps=20, weight_decay=0.0), save_every=200
  )
  align: StageConfig = StageConfig()
  reason: StageConfig = StageConfig()
  loop_stage: StageConfig = StageConfig(steps=150)
  loop: LoopConfig = LoopConfig()
  calibration: CalibrationConfig = CalibrationConfig()
  update: UpdateConfig = UpdateConfig()
  serving: ServingConfig = ServingConfig()
  mesh: MeshConfig = MeshConfig()
  evaluation: EvaluationConfig = EvaluationConfig()

  def validated(self) -> Config:
    """Return this config with `~` and $VARIABLES of its paths expanded.

    Raises ConfigError naming the first field that is wrong.
    """
    fields.check_types(self)
    config = self
    for path in PATHS:
      name, field = path.split('.')
      section = getattr(self, name)
      if text := getattr(section, field):
        expanded = dataclasses.replace(section, **{field: local_path(text, path, urls=True)})
        config = dataclasses.replace(config, **{name: expanded})
    for name, kind in fields.types(Config).items():
      if dataclasses.is_dataclass(kind):
        getattr(config, name).validate(name)
    config._validate_across_sections()
    return config

  def ablated(self, ablation: str) -> Config:
    """Return the settings that an ablation trains and recommends with."""
    config, steps = self, self.evaluation.tiger_steps
    for name, settings in ABLATIONS.get(ablation, {}).items():
      section = dataclasses.replace(getattr(config, name), **settings)
      config = dataclasses.replace(config, **{name: section})
    if ablation == 'tiger' and steps:
      config = dataclasses.replace(config, warmup=dataclasses.replace(config.warmup, steps=steps))
    return config

  def _validate_across_sections(self) -> None:
    ids, reasoner, backbone = self.semantic_ids, self.reasoner, self.backbone
    if self.seed < 0:
      raise ConfigError(f'seed={self.seed}: must be at least 0')
    if not self.name:
      raise ConfigError("name='': must be the name of the experiment")
    events = reasoner.events
    backbone._need(
      backbone.context >= events, 'backbone.context', f'at least reasoner.events={events}'
    )
    top = ids.levels - 1
    fits = reasoner.intent_levels <= top
    reasoner._need(fits, 'reasoner.intent_levels', f'1 to semantic_ids.levels - 1 = {top}')
    fits = reasoner.coarse_codes <= ids.codes
    reasoner._need(fits, 'reasoner.coarse_codes', f'1 to semantic_ids.codes={ids.codes}')
    needs = ids.text != 'reasoner' or reasoner.pretrained != ''
    right = 'another embedder, or reasoner.pretrained the model that embeds'
    ids._need(needs, 'semantic_ids.text', right)
    least = 4 * (2 + ids.levels)
    self.text._need(self.text.width >= least, 'text.width', f'at least {least}, four events')
    least, replay = 3 * (2 + ids.levels), self.text.replay
    self.text._need(not 0 < replay < least, 'text.replay', f'0, or at least {least}, three events')
    most, beam = max(self.evaluation.ks), backbone.beam
    backbone._need(beam >= most, 'backbone.beam', f'at least the largest of evaluation.ks={most}')
    on = (*backbone.experts, *self.loop.experts)
    off = [name for name in self.evaluation.ablations if WITHOUT.get(name, on[0]) not in on]
    finds = {'generative', 'dense'} & set(backbone.experts)
    lost = [name for name in self.evaluation.ablations if {WITHOUT.get(name)} >= finds]
    right = f'free of {", ".join(lost)}, as nothing would find items'
    self.evaluation._need(not lost, 'evaluation.ablations', right)
    right = f'free of {", ".join(off)}, as backbone.experts and loop.experts lack that already'
    self.evaluation._need(not off, 'evaluation.ablations', right)


def to_dict(config: Any) -> dict:
  """Return a config or a section as a nested plain dict, tuples as lists."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Any, kind: type = Config, prefix: str = '') -> Any:
  """Return the config of such a dict; `prefix` is the path of a section, with a dot at its end.

  Raises ConfigError on a field that this version lacks or that is of another type. Ranges are for
  `validated` to check.
  """
  if not isinstance(values, dict):
    raise ConfigError(f'{prefix.removesuffix(".") or "config"}={values!r}: must be an object')
  known = fields.types(kind)
  given = {}
  for name, value in values.items():
    path = prefix + name
    if name not in known:
      raise ConfigError(f'unknown field {path!r}; this folder was written by another version')
    if dataclasses.is_dataclass(known[name]):
      given[name] = from_dict(value, typing.cast(type, known[name]), f'{path}.')
      continue
    try:
      given[name] = fields.coerced(value, known[name])
    except TypeError as error:
      wanted = fields.named(known[name])
      raise ConfigError(f'{path}={value!r}: must be of type {wanted}') from error
  return kind(**given)


def load(path: pathlib.Path) -> Config:
  """Return the config of a config.json. Raises ConfigError naming the file and the field."""
  try:
    return from_dict(json.loads(path.read_text(encoding='utf-8')))
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}') from error
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(
      f'{path}: cannot be read ({error}); must be the settings that `rolegen train` wrote'
    ) from error


def digest(*parts: Any) -> str:
  """Return 16 hex digits over JSON-able parts; configs are taken as dicts."""
  plain = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
