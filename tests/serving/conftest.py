"""One server for all tests of this folder, on a mesh of one device, which compiles faster."""

import jax
import live
import pytest

from rolegen_jax import sharding

make_mesh = sharding.make_mesh


@pytest.fixture(scope='session')
def shop_at_start(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(
      sharding, 'make_mesh', lambda config, devices=None: make_mesh(config, jax.devices()[:1])
    )
    shop = live.open_shop(tmp_path_factory.mktemp('shop'))
  with live.serving_shop(shop, shop.app) as served:
    yield served


@pytest.fixture
def shop(shop_at_start):
  """The server. A test leaves the catalogue and what is compiled as they were."""
  version = shop_at_start.ask('/v1/catalogue')[1]['version']
  compiled = shop_at_start.gauge('rolegen_compilations_since_ready')
  yield shop_at_start
  if shop_at_start.ask('/v1/catalogue')[1]['version'] != version:
    shop_at_start.change(roll_back_to=version)
  assert shop_at_start.gauge('rolegen_compilations_since_ready') == compiled
