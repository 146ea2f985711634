"""cudnn against XLA on the GPU at hand, bfloat16: prints the largest difference and the largest number of values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.models import attention


def main():
  rng = np.random.default_rng(0)
  b, t, h, k, x = 4, 151, 4, 2, 128  # odd: cudnn's backward pass takes even lengths only
  q, keys, values, weight = (
    jnp.asarray(rng.normal(size=(b, t, heads, x)), jnp.bfloat16) for heads in (h, k, k, h)
  )
  mask = attention.causal(
    jnp.asarray((np.arange(t) >= 30 * np.arange(b)[:, None]).astype(np.int32))
  )
  assert attention.kernel_for(attention.platform(), q, mask) == 'cudnn'

  def run(kernel):
    value = lambda *a: (
      jnp.sum((attention.attend(*a, mask, kernel=kernel) * weight).astype(jnp.float32)),
      attention.attend(*a, mask, kernel=kernel),
    )
    return jax.tree.leaves(
      jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, keys, values)
    )

  for plain, found in zip(run('xla'), run('auto')):
    plain, found = (np.asarray(a, np.float32) for a in (plain, found))
    print(np.abs(plain - found).max(), np.abs(plain).max())


if __name__ == '__main__':
  main()
