"""A pretrained reasoner that is read from a bucket, and exported to one."""

import jax
import numpy as np
import pytest

from rolegen_jax.config import ConfigError
from rolegen_jax.pretrained import folder as pretrained
from rolegen_jax.pretrained.export import export
from rolegen_jax.runtime import mirror, storage
from tests import tiny
from tests.pretrained.checkpoints import TINY_QWEN3, read_tensors, write_folder
from tests.pretrained.loaded import LoadedReasoner


@pytest.mark.slow
def test_a_reasoner_comes_from_a_bucket_and_goes_to_one(s3_url, tmp_path):
  write_folder(tmp_path / 'in', TINY_QWEN3)
  for file in (tmp_path / 'in').iterdir():
    storage.put(file, storage.path(s3_url) / 'in' / file.name)
  sized = pretrained.sized(tiny.config(f'reasoner.pretrained={s3_url}/in'))
  assert sized.reasoner.transformer.width == TINY_QWEN3['hidden_size']
  assert [file.name for file in mirror._absent if file.suffix == '.safetensors']  # not for sizes
  here, there = LoadedReasoner(tmp_path / 'in'), LoadedReasoner(f'{s3_url}/in')
  jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
  assert there.config.reasoner.pretrained == f'{s3_url}/in'
  for folder, ours in ((tmp_path / 'out', here), (f'{s3_url}/out', there)):
    export(ours.params, ours.vocab, ours.config.reasoner.pretrained, folder)
  exported = mirror.fetch(mirror.opened(f'{s3_url}/out'))
  names = sorted(file.name for file in (tmp_path / 'out').iterdir())
  assert sorted(file.name for file in exported.iterdir()) == names
  tensors = read_tensors(exported)
  for name, array in read_tensors(tmp_path / 'out').items():
    np.testing.assert_array_equal(tensors[name], array)
  with pytest.raises(ConfigError, match=f'{s3_url}/in: is the folder that is read'):
    export(there.params, there.vocab, f'{s3_url}/in', f'{s3_url}/in')
