"""The loss of stage `kinds`: histories, and what was bought after them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rolegen_jax.data.batches import Examples
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.semantic_ids.trie import Trie
from rolegen_jax.training.losses import Metrics, Params

# Penalties of kinds of users, in nats of all conversions together, by the square root of their
# number: as much as the largest of so many entries would gain by chance grows like that.
SPARSE_PENALTY, KIND_PENALTY = dict(opens=0.11, turn=0.73, context=0.3), 0.04


def kinds_loss(
  rolegen: RoleGen,
  params: Params,
  examples: Examples,
  trie: Trie,
  key: jax.Array,
  conversions: int,
) -> tuple[jax.Array, Metrics]:
  """Return the NLL of histories and the codes bought after them, and the penalties.

  conversions: how many there are to train on.
  """
  kinds = rolegen.bind('kinds', params)
  evidence = build_prompt(
    rolegen.layout, examples.history, examples.excites, examples.timestamp, trie.item_codes
  ).evidence
  code = jnp.take(trie.item_codes[:, 0], examples.target)
  nll = -jnp.mean(kinds.joint(evidence, code, key))
  penalty = sum(SPARSE_PENALTY[name] * size for name, size in kinds.sizes().items())
  of_kinds = sum(jnp.sum(x[...] ** 2) for x in (kinds.kind, kinds.looks_kind, kinds.shown))
  return nll + (penalty + KIND_PENALTY * of_kinds) / conversions**0.5, dict(history_nll=nll)
