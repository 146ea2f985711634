"""Your own log in the contract's format: --experiment=contract --set data.path=FOLDER (relative to $ROLEGEN_DATA, or absolute)."""

import dataclasses

from experiments import alibaba2014
from rolegen_jax import config as c


def get_config(arg: str = '') -> c.Config:
  base = alibaba2014.get_config(arg)
  return dataclasses.replace(
    base, name='contract', data=c.DataConfig(format='contract', path=arg or 'contract')
  )
