"""The real logs, for tests that read them in their original formats."""

import os
import pathlib

import pytest

from rolegen_jax.config import DataConfig

RAW = {
  'alibaba2014': DataConfig('alibaba2014', 'raw/alibaba2014_t_alibaba_data.csv'),
  'taobao_userbehavior': DataConfig(
    'taobao_userbehavior', 'raw/UserBehavior_first100001.csv', max_users=982
  ),
  'rees46': DataConfig('rees46', 'raw/rees46_2019-Oct_head.csv'),
  'ijcai15': DataConfig(
    'contract', 'ijcai15', first_conversion_min_views=5, reactivation_min_views=3
  ),
  'ranked_sequences': DataConfig('ranked_sequences', 'amazon_beauty', split='leave_one_out'),
}


def need(path: str) -> pathlib.Path:
  """Return the full path of `path` under $ROLEGEN_DATA; skip the test where it is absent."""
  root = os.environ.get('ROLEGEN_DATA')
  if not root:
    pytest.skip(
      'real logs are not part of the project: set ROLEGEN_DATA to the folder that holds them'
    )
  full = pathlib.Path(root).absolute() / path
  if not full.exists():
    pytest.skip(f'{full} is absent: this test reads a real log')
  return full
