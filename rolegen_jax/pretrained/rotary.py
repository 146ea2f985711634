"""Rotary positions as a config.json states them, in either spelling.

Published checkpoints have `rope_theta`, `rope_scaling` and `rope_local_base_freq`; transformers 5
writes `rope_parameters`, for Gemma one per type of layer. Where a file has several, transformers
picks one. Here all that is stated must agree with what transformers picks: another version, or
another reader, would pick otherwise.
"""

from __future__ import annotations

from typing import Any

from rolegen_jax.config import RopeScaling
from rolegen_jax.pretrained.fields import Unsupported, count, get, mapping, number, same, shown

# Type -> the settings that it has beside theta.
_TYPES: dict[str, tuple[str, ...]] = {
  'default': (),
  'linear': ('factor',),
  'llama3': (
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
}
_OF_ALL_TYPES = ('rope_type', 'rope_theta', 'partial_rotary_factor')
_LAYER_TYPES = ('full_attention', 'sliding_attention')
_CONTEXT = 'original_max_position_embeddings'

Statement = tuple[str, str, Any]  # (field of config.json, rotary setting, value)


def rotary(hf_config: dict) -> tuple[float, RopeScaling]:
  """Return (theta, scaling) of a model whose layers all have the same. Raises Unsupported."""
  parameters = _typed(mapping(hf_config, 'rope_parameters'), 'rope_parameters')
  scaling = _typed(mapping(hf_config, 'rope_scaling'), 'rope_scaling')
  settings = dict(scaling or parameters) or {'rope_type': 'default'}
  top = ['rope_theta', 'partial_rotary_factor']
  settings.setdefault('rope_theta', get(hf_config, 'rope_theta', 10_000.0))
  settings.setdefault('partial_rotary_factor', get(hf_config, 'partial_rotary_factor', 1.0))
  if settings['rope_type'] == 'llama3':
    top.append(_CONTEXT)
    context = get(hf_config, _CONTEXT, get(hf_config, 'max_position_embeddings'))
    settings.setdefault(_CONTEXT, context)
  _check_agreement(
    settings,
    [
      *_statements('rope_scaling', scaling),
      *_statements('rope_parameters', parameters),
      *((name, name, get(hf_config, name)) for name in top),
    ],
  )
  return number(settings, 'rope_theta'), _scaling(settings)


def rotary_by_layer_type(hf_config: dict) -> tuple[float, float, RopeScaling]:
  """Return (theta of G layers, theta of L layers, scaling of G layers), as Gemma 3 has them.

  Raises Unsupported.
  """
  parameters = mapping(hf_config, 'rope_parameters')
  unknown = sorted(set(parameters) - set(_LAYER_TYPES))
  if unknown:
    raise Unsupported(
      f'config.json: rope_parameters has {shown(unknown[0])}: '
      f'must have one object each for {" and ".join(_LAYER_TYPES)}'
    )
  stated_full, stated_local = (
    _typed(mapping(parameters, layer_type), f'rope_parameters.{layer_type}')
    for layer_type in _LAYER_TYPES
  )
  scaling = _typed(mapping(hf_config, 'rope_scaling'), 'rope_scaling')
  full = {'rope_type': 'default'} | stated_full | scaling
  full.setdefault('rope_theta', get(hf_config, 'rope_theta', 1_000_000.0))
  local = {'rope_type': 'default'} | stated_local
  local.setdefault('rope_theta', get(hf_config, 'rope_local_base_freq', 10_000.0))
  of_full, of_local = (f'rope_parameters.{layer_type}' for layer_type in _LAYER_TYPES)
  _check_agreement(
    full,
    [
      *_statements('rope_scaling', scaling),
      *_statements(of_full, stated_full),
      ('rope_theta', 'rope_theta', get(hf_config, 'rope_theta')),
    ],
  )
  theta_at_top = 'rope_local_base_freq', 'rope_theta', get(hf_config, 'rope_local_base_freq')
  _check_agreement(local, [*_statements(of_local, stated_local), theta_at_top])
  if _scaling(local) != RopeScaling():
    raise Unsupported(
      f'config.json: rope_parameters.sliding_attention={shown(stated_local)}: must be default'
    )
  return number(full, 'rope_theta'), number(local, 'rope_theta'), _scaling(full)


def _typed(said: dict, where: str) -> dict:
  """Return settings without nulls, their type always under the name rope_type."""
  settings = {name: value for name, value in said.items() if value is not None}
  if not settings:
    return {}
  old_name = settings.pop('type', None)
  rope_type = settings.setdefault('rope_type', 'default' if old_name is None else old_name)
  if old_name not in (None, rope_type):
    raise _contradiction(f'{where}.type', old_name, f'{where}.rope_type', rope_type)
  if not isinstance(rope_type, str) or rope_type not in _TYPES:
    raise Unsupported(
      f'config.json: {where}.rope_type={shown(rope_type)}: must be default, linear or llama3'
    )
  return settings


def _statements(where: str, said: dict) -> list[Statement]:
  return [(f'{where}.{name}', name, value) for name, value in said.items()]


def _check_agreement(settings: dict, stated: list[Statement]) -> None:
  """Refuse what is stated otherwise than in the settings in force; null says nothing."""
  stated = [statement for statement in stated if statement[2] is not None]
  for field, name, value in stated:
    in_force = settings.get(name)
    if not same(in_force, value):
      others = (
        other for other, its_name, its in stated if its_name == name and same(its, in_force)
      )
      raise _contradiction(field, value, next(others, f'the default {name}'), in_force)


def _contradiction(name: str, value: object, other: str, other_value: object) -> Unsupported:
  return Unsupported(
    f'config.json: {name}={shown(value)} beside {other}={shown(other_value)}: must say the same'
  )


def _scaling(settings: dict) -> RopeScaling:
  """Return the scaling of settings that agree."""
  kind = settings['rope_type']
  unknown = sorted(set(settings) - set(_TYPES[kind]) - set(_OF_ALL_TYPES))
  if unknown:
    raise Unsupported(
      f'config.json: rotary setting {unknown[0]}={shown(settings[unknown[0]])}: '
      f'must be absent, as rope_type={kind!r} has none'
    )
  if number(settings, 'partial_rotary_factor', 1.0) != 1.0:
    raise Unsupported(
      f'config.json: partial_rotary_factor={settings["partial_rotary_factor"]}: must be 1.0'
    )
  if kind == 'default':
    return RopeScaling()
  factor = number(settings, 'factor')
  if kind == 'linear':
    return RopeScaling('linear', factor)
  low, high = number(settings, 'low_freq_factor'), number(settings, 'high_freq_factor')
  if low >= high:
    raise Unsupported(
      f'config.json: low_freq_factor={low}, high_freq_factor={high}: must be the smaller first'
    )
  return RopeScaling('llama3', factor, low, high, count(settings, _CONTEXT))
