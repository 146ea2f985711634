"""Tensor names as the families publish them, whatever wrapped the model when it was saved.

A decoder is published as `model.layers.0...` beside `lm_head.weight`. The same tensors come without
`model.` from a model that has no head (Qwen3-Embedding), and behind the names of wrappers:
`language_model.` of an image model, `_orig_mod.` of torch.compile, `base_model.model.` of PEFT,
`module.` of data parallelism. One prefix is taken off: the one before the only token table, made of
nothing but wrappers. Any tensor that is not behind it is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rolegen_jax.data.files import DataError

WRAPPERS = (
  'model',
  'language_model',
  'base_model',
  'module',
  '_orig_mod',
  '_fsdp_wrapped_module',
)
# Ends of tensor names that older files carry and no model reads: they follow from config.json.
UNUSED = 'rotary_emb.inv_freq'
_TABLE, _HEAD, _BODY = 'embed_tokens.weight', 'lm_head.weight', ('embed_tokens', 'layers', 'norm')
_ADAPTER = re.compile(r'\.(lora_\w+|base_layer|modules_to_save)(\.|$)')
_QUANTIZED = re.compile(
  r'\.(qweight|qzeros|scales|g_idx|weight_scale\w*|weight_packed|input_scale\w*|SCB'
  r'|absmax|quant_map|nested_\w+|quant_state\.\S+)$'
)


def standard(file_of: Mapping[str, str]) -> dict[str, str]:
  """Return the published name of each tensor -> its name in the files, without the unused ones.

  file_of: tensor -> path of its file. Raises DataError.
  """
  for name, file in file_of.items():
    if _ADAPTER.search(name):
      raise DataError(
        f'{file}: {name} belongs to an adapter; must be a model with its adapters merged '
        "(PEFT's merge_and_unload)"
      )
    if _QUANTIZED.search(name):
      raise DataError(f'{file}: {name} belongs to quantized weights; must be F32, BF16 or F16')
  prefix = _prefix(file_of)
  # The head is beside the decoder or beside what wraps it.
  outside = {prefix[: place.end()] for place in re.finditer(r'\.', prefix)} | {''}
  actual: dict[str, str] = {}
  for name, file in file_of.items():
    if name.endswith(UNUSED):
      continue
    rest = name.removeprefix(prefix) if name.startswith(prefix) else ''
    if rest.split('.')[0] in _BODY:
      published = f'model.{rest}'
    elif name.endswith(_HEAD) and name.removesuffix(_HEAD) in outside:
      published = _HEAD
    else:
      raise DataError(
        f'{file}: {name} is no tensor of the decoder whose token table is {prefix}{_TABLE}; '
        'must be one decoder, all of it behind one prefix'
      )
    if published in actual:
      raise DataError(f'{file}: {name} and {actual[published]} are one tensor; must be one of them')
    actual[published] = name
  return actual


def _prefix(file_of: Mapping[str, str]) -> str:
  """Return what is before the name of the only token table."""
  found = [name for name in sorted(file_of) if f'.{name}'.endswith(f'.{_TABLE}')]
  if not found:
    first, file = next(iter(sorted(file_of.items())), ('none', 'the weights'))
    raise DataError(
      f'{file}: no {_TABLE}, with or without a prefix, there or in another file (the first tensor '
      f'is {first}); must be a decoder with the tensor names of transformers'
    )
  if len(found) > 1:
    raise DataError(
      f'{file_of[found[1]]}: {found[1]} beside {found[0]}; must be one decoder behind one prefix'
    )
  prefix = found[0].removesuffix(_TABLE)
  unknown = [part for part in prefix.split('.')[:-1] if part not in WRAPPERS]
  if unknown:
    raise DataError(
      f'{file_of[found[0]]}: {found[0]} is behind the prefix {prefix!r}; '
      f'must have no prefix, or one of {", ".join(WRAPPERS)}'
    )
  return prefix
