"""What each stage reads: the settings and outside files from which its result follows, by name.

A stage runs again only when something that it reads is another, so a field of the config belongs
either to the stages in READS or to UNREAD. A new field of the config goes to one of them; tests
compare READS with what the training stages do read.

What a stage reads of earlier stages, it is told by their hashes and keys (`inputs` of a Record).
"""

from __future__ import annotations

import functools
from typing import Any

from rolegen_jax.config import ABLATIONS, ALIGN_TASKS, AT_RUN_TIME, REFITTED, Config, digest
from rolegen_jax.data.adapters import log_fingerprint
from rolegen_jax.data.digests import content_digest
from rolegen_jax.data.shards import convert
from rolegen_jax.data.shards.reader import Shards
from rolegen_jax.overrides import field_paths
from rolegen_jax.pipeline.records import Record
from rolegen_jax.runtime import mirror
from rolegen_jax.text import prompts

# Fields and sections that decide no stage's result.
UNREAD = (
  'name',
  'data.shards',  # what is in that folder does, see `_files`
  'roles.annotations',  # likewise
  'backbone.beam',  # how many items are decoded
  # When checkpoints are written, and on which devices a run continues.
  'warmup.save_every',
  'align.save_every',
  'reason.save_every',
  'loop_stage.save_every',
  'kinds.save_every',
  'mesh',
  # Asked of a trained run.
  'serving.exploration_weight',
  'serving.exposure_penalty',
  'evaluation.batch',
  'evaluation.bootstrap',
  'evaluation.ablations',
  'evaluation.exposure_penalty',
  'evaluation.seed',
  # Of an update: where the parent lies (its content has a key), and what became other settings.
  'update.parent',
  'update.steps',
  'update.learning_rate',
  'update.prior',
)

# Settings that run folders may be older than. At their defaults, which is how those were made, they
# are no part of a record.
LATER = (
  *convert.LATER,
  'data.on_error',
  'data.cold_items',
  'semantic_ids.collaborative_weight',
  'calibration.prior',
  'reasoner.kinds',
  'reasoner.attributes',
  *(f'update.{name}' for name in ('parent_key', 'appends', 'recent_days', 'replay')),
)

_VOCABULARY = (
  'semantic_ids.levels',
  'semantic_ids.codes',
  'reasoner.text_pieces',
  'reasoner.tokenizer',
)
# What training conversions hold, and how much of their history a row shows.
_EXAMPLES = ('backbone.context', 'roles.max_conversions')

KINDS = 3  # of the equations of kinds of users; what older ones learned is not read
EQUATIONS = 'models/kinds.py'  # what a stage's record calls them
_KINDS = ('reasoner.kinds', 'reasoner.attributes')

# Kind of stage -> fields and sections, those of UNREAD left out. What is in a section that is off
# (see `_is_off`) is left out too.
READS: dict[str, tuple[str, ...]] = dict(
  data=('data', 'simulator', 'update'),
  semantic_ids=(
    'update',
    'semantic_ids',
    'reasoner.pretrained',
    'reasoner.tokenizer',
    'reasoner.transformer',
  ),
  choices=('update', 'backbone.trending', *_KINDS),
  tokenizer=('reasoner.text_pieces', 'reasoner.tokenizer', 'update'),
  warmup=('seed', *_VOCABULARY, 'backbone', 'warmup', 'update'),
  roles=('roles', 'reasoner.role_events', 'backbone.context'),
  kinds=(
    'seed',
    *_VOCABULARY,
    *_EXAMPLES,
    *_KINDS,
    'reasoner.events',
    'reasoner.role_events',
    'reasoner.roles',
    'kinds',
  ),
  align=(
    'seed',
    *_VOCABULARY,
    *_EXAMPLES,
    *_KINDS,
    'reasoner.transformer',
    'reasoner.pretrained',
    'reasoner.train',
    'reasoner.lora',
    'reasoner.events',
    'reasoner.role_events',
    'reasoner.roles',
    'reasoner.coarse_codes',
    'reasoner.transitions',
    *(f'text.{name}' for name in (*ALIGN_TASKS, 'width', 'sentence', 'held_out')),
    'align',
  ),
  reason=(
    'reasoner.intents',
    'reasoner.intent_levels',
    'reasoner.candidates',
    'reasoner.retrieved',
    'text.rationales',
    'text.replay',
    'reason',
  ),
  loop=('reasoner.temperature', 'text.replay', 'loop', 'loop_stage', 'update'),
  tiger=('seed', *_VOCABULARY, 'backbone', 'warmup', 'evaluation.tiger_steps'),
  calibration=('seed', 'calibration', 'update'),
  next_day=('evaluation.ks', 'evaluation.occasions', 'update'),
  baselines=(
    'backbone.trending',
    'evaluation.ks',
    'evaluation.occasions',
    'evaluation.sasrec',
    'reasoner.coarse_codes',
    'serving.filter_history',
    'seed',
  ),
)


def record(stage: str, config: Config, inputs: dict[str, str]) -> Record:
  """Return what a run of these settings has `stage` read; `inputs` are of earlier stages."""
  return Record(stage, settings(stage, config), _files(stage, config), inputs)


def settings(stage: str, config: Config) -> dict[str, Any]:
  """Return the settings that `stage` reads, by their full names."""
  ablation = _ablation(stage)
  if ablation:
    config = config.ablated(ablation)
  values: dict[str, Any] = {
    path: _value(path, config)
    for path in fields(kind(stage))
    if not _is_off(kind(stage), path, config)
  }
  for path in LATER:
    if path in values and values[path] == _value(path, Config()):
      del values[path]
  if 'evaluation.ks' in values:  # lists are that long, and shorter ones are their beginnings
    values['max(evaluation.ks)'] = max(values.pop('evaluation.ks'))
  return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}  # as JSON


def _value(path: str, config: Config) -> Any:
  return functools.reduce(getattr, path.split('.'), config)


def kind(stage: str) -> str:
  """Return the entry of READS for a stage by its name, which is its folder in the run folder."""
  if stage.endswith('/calibration'):
    return 'calibration'
  if stage.startswith('reason/'):
    return 'reason'
  ablation = _ablation(stage)
  return (ablation if ablation in READS else 'loop') if ablation else stage


def _ablation(stage: str) -> str:
  """Return the ablation that a stage belongs to, '' = none."""
  first, _, ablation = stage.removesuffix('/calibration').partition('/')
  return ablation if first in ('ablations', 'reason') else ''


@functools.cache
def fields(stage_kind: str) -> tuple[str, ...]:
  """Return the fields that a kind of stage reads, in the order of the config."""
  unread = under(*UNREAD)
  return tuple(path for path in under(*READS[stage_kind]) if path not in unread)


def under(*sections: str) -> list[str]:
  """Return the fields that are one of `sections` or in one of them, in the order of the config."""
  leaves = field_paths(Config())
  return [path for path in leaves if any(f'{path}.'.startswith(f'{s}.') for s in sections)]


def stages(config: Config) -> list[str]:
  """Return the names of the stages that `rolegen train` runs under these settings, in order."""
  looped = []
  trained = [name for name in config.evaluation.ablations if name not in AT_RUN_TIME]
  for name in ('', *trained):
    stage = f'ablations/{name}' if name else 'loop'
    looped += [f'reason/{name}'] if 'reasoner' in ABLATIONS.get(name, {}) else []
    looped += [stage] if name not in REFITTED else []
    looped += [f'{stage}/calibration'] if config.calibration.steps and name != 'tiger' else []
  tokenizer = ['tokenizer'] if config.reasoner.text_pieces else []
  first = ['data', 'semantic_ids', 'choices', *tokenizer]
  first += ['next_day'] if config.update.appends else []
  first += ['warmup']
  if config.update.parent:  # the reasoner is the parent's
    return [*first, 'roles', *looped, 'baselines']
  first += ['kinds'] if config.reasoner.kinds else []
  first += ['roles', 'align', 'reason']
  return [*first, *looped, 'baselines']


def _is_off(stage: str, path: str, config: Config) -> bool:
  """Return whether the field is of a part that these settings turn off for a kind of stage."""
  if path.startswith('simulator.'):
    return config.data.format != 'simulated'
  if stage == 'semantic_ids' and path.startswith('reasoner.'):
    return config.semantic_ids.text != 'reasoner'
  if path.startswith('update.'):
    return not config.update.parent
  if path in ('reasoner.attributes', 'roles.effect'):
    return not config.reasoner.kinds
  if path == 'semantic_ids.text_dim':
    return not config.semantic_ids.text
  if path == 'semantic_ids.collaborative_weight':
    return not (config.semantic_ids.text and config.semantic_ids.collaborative_dim)
  if path.startswith('text.'):
    return not config.reasoner.text_pieces
  return path.startswith('reasoner.lora.') and config.reasoner.train != 'lora'


def stage_of_kinds(config: Config) -> str:
  """Return the first stage that depends on the equations of kinds of users, '' = none does."""
  if not config.reasoner.kinds:
    return ''
  return 'roles' if config.update.parent else 'kinds'


def _files(stage: str, config: Config) -> dict[str, Any]:
  """Return what the stage reads from outside the run folder: name -> what is in it."""
  files: dict[str, Any] = {}
  if stage == 'data' and config.data.format != 'simulated':
    files |= log_fingerprint(config.data)
  if stage in ('data', 'warmup', 'ablations/tiger') and config.data.shards:
    files['data.shards'] = Shards(config.data.shards).digest
  if stage == stage_of_kinds(config):
    files[EQUATIONS] = digest(KINDS)
  if stage == 'roles' and config.roles.annotations:
    files['roles.annotations'] = content_digest(mirror.opened(config.roles.annotations))
  if stage in ('tokenizer', 'align', 'reason') and config.reasoner.text_pieces:
    files['text/prompts.toml'] = prompts.digest()
  return files
