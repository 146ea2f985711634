"""cudnn against XLA on the GPU at hand, in bfloat16.

Prints, of values and gradients, the largest difference and the largest number.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.models import attention


def main() -> None:
  rng = np.random.default_rng(0)
  b, t, h, k, x = 4, 151, 4, 2, 128  # t is odd, and cudnn's backward pass takes even lengths only
  q, keys, values, weight = (
    jnp.asarray(rng.normal(size=(b, t, heads, x)), jnp.bfloat16) for heads in (h, k, k, h)
  )
  segment = np.arange(t) >= 30 * np.arange(b)[:, None]
  mask = attention.causal(jnp.asarray(segment.astype(np.int32)))
  assert attention.kernel_for(attention.platform(), q, mask) == 'cudnn'

  def run(kernel: str) -> list[jax.Array]:
    def value(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
      attended = attention.attend(*qkv, mask, kernel=kernel)
      return jnp.sum((attended * weight).astype(jnp.float32)), attended

    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))
    return jax.tree.leaves(gradient(q, keys, values))

  for expected, actual in zip(run('xla'), run('auto')):
    expected, actual = (np.asarray(a, np.float32) for a in (expected, actual))
    print(np.abs(expected - actual).max(), np.abs(expected).max())


if __name__ == '__main__':
  main()
