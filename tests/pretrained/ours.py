"""A pretrained folder as our reasoner, by the rooms that a run takes: settings from the folder, parameters on a mesh of 8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import MeshConfig
from rolegen_jax.models import functional
from rolegen_jax.models.attention import causal
from rolegen_jax.pretrained.folder import Folder, configure
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.sharding import make_mesh
from tests import tiny

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def settled(folder, *assignments):
  """The tiny config over a folder."""
  plain = tiny.config(*assignments)
  return configure(
    dataclasses.replace(plain, reasoner=dataclasses.replace(plain.reasoner, pretrained=str(folder)))
  )


class Ours:
  def __init__(self, folder, *assignments):
    self.config = settled(folder, *assignments)
    self.mesh = make_mesh(self.config.mesh if assignments else MESH)
    self.rolegen = RoleGen(self.config)
    self.vocab = self.rolegen.vocab
    self.params = Folder(folder).load(self.config.reasoner, self.vocab, self.mesh)
    self.first, self.pieces = self.vocab.blocks['text']
    self._programs = {}

  def run(self, name, program, *arrays):
    """`program(reasoner, *arrays)`, compiled on the mesh once for each name."""
    if name not in self._programs:
      self._programs[name] = jit(
        lambda params, *a: program(functional.bind(self.rolegen.graphdefs['reasoner'], params), *a)
      )
    with jax.set_mesh(self.mesh):
      return jax.device_get(self._programs[name](self.params, *arrays))

  def logits(self, ids_BxT, valid_BxT, positions=None) -> np.ndarray:
    """fp32 [B, T, text pieces] of the whole sequence at once."""
    positions = np.arange(ids_BxT.shape[1]) if positions is None else positions
    read = lambda r, ids, valid, positions: r.logits(
      r.hidden(self.first + ids, positions, causal(valid)), self.first, self.pieces
    )
    if isinstance(positions, np.ndarray) and positions.ndim == 1:
      return self.run(
        'static', lambda r, ids, valid: read(r, ids, valid, positions), ids_BxT, valid_BxT
      )
    return self.run('dynamic', read, ids_BxT, valid_BxT, positions)

  def decode(
    self, ids_BxT, valid_BxT, prompt: int, shared: int, greedy: int = 0
  ) -> tuple[np.ndarray, np.ndarray]:
    """(logits [B, n, text pieces], ids [B, n]) from the last of `prompt` positions on, one token at a time against the cache, of which
    the first `shared` slots are the chains' common ones. The tokens are those given, or the best ones when `greedy` > 0 are to come."""
    steps = greedy or ids_BxT.shape[1] - prompt

    def program(r, ids, valid):
      b, readout = len(ids), lambda hidden: r.logits(hidden, self.first, self.pieces)
      hidden, cache = r.prefill(
        self.first + ids[:, :prompt], np.arange(prompt), causal(valid[:, :prompt])
      )
      common, own = (
        tuple(c[:, :, :shared] for c in cache),
        tuple(c[:, :, None, shared:] for c in cache),
      )
      own = tuple(jnp.pad(c, ((0, 0),) * 3 + ((0, steps), (0, 0), (0, 0))) for c in own)
      slots = prompt - shared + steps
      known = jnp.pad(
        valid[:, shared:prompt].astype(bool), ((0, 0), (0, steps)), constant_values=True
      )

      def one(carry, t):
        logits, cache = carry
        best = jnp.argmax(logits, axis=-1)
        token = best if greedy else ids[:, prompt + t]
        slot = prompt - shared + t
        sees = valid[:, :shared].astype(bool), (known & (jnp.arange(slots) <= slot))[:, None]
        hidden, cache = r.step(self.first + token[:, None], prompt + t, common, cache, slot, sees)
        return (readout(hidden)[:, 0], cache), (logits, token)

      start = readout(hidden[:, -1])
      (last, _), (logits, tokens) = jax.lax.scan(one, (start, own), jnp.arange(steps))
      return jnp.concatenate([jnp.moveaxis(logits, 0, 1), last[:, None]], axis=1), tokens.T

    return self.run((prompt, shared, steps), program, ids_BxT, valid_BxT)
