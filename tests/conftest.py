"""Every test runs on eight CPU devices: sharding that one device would hide is part of what is tested."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

jax.config.update('jax_num_cpu_devices', 8)
