"""Orbax on s3://, as it is on gs://.

Orbax opens checkpoints on Google's store and takes any other path for a local one, although
TensorStore, which writes the arrays, has a driver for S3. What it knows of gs:// (no renames, so a
commit_success file comes last; kvstore specs) is true of s3:// too.
"""

from __future__ import annotations

import functools
import re

# Orbax has no public way to add a store; tests save, kill and restore on both.
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from rolegen_jax.runtime import storage

PREFIXES = ('gs://', 's3://')


@functools.cache
def teach_orbax() -> None:
  """Have Orbax keep checkpoints in buckets of both kinds, on the endpoint of `storage.kvstore`."""
  gcs_utils._GCS_PATH_PREFIX = PREFIXES
  gcs_utils.get_kvstore_for_gcs = storage.kvstore
  tensorstore_utils._use_gcs_driver = lambda folder: folder.startswith(PREFIXES)
  tensorstore_utils._normalize_path = _normalized


def _normalized(path: str) -> str:
  scheme, separator, rest = path.rpartition('://')
  return scheme + separator + re.sub('/+', '/', rest).rstrip('/')
