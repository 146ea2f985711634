"""A pretrained folder as the reasoner, by the steps of a run: settings, then sharded parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rolegen_jax.config import MeshConfig
from rolegen_jax.models import functional
from rolegen_jax.models.attention import Visible, causal
from rolegen_jax.pretrained.folder import Folder, configure
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.sharding import make_mesh
from tests import tiny

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def configured(folder, *assignments):
  """The tiny config with the reasoner of a folder."""
  plain = tiny.config(*assignments)
  reasoner = dataclasses.replace(plain.reasoner, pretrained=str(folder))
  return configure(dataclasses.replace(plain, reasoner=reasoner))


class LoadedReasoner:
  """The reasoner of a folder and programs over it.

  Shapes: B sequences, T tokens, n decoded tokens.
  """

  def __init__(self, folder, *assignments):
    self.config = configured(folder, *assignments)
    self.mesh = make_mesh(self.config.mesh if assignments else MESH)
    self.rolegen = RoleGen(self.config)
    self.vocab = self.rolegen.vocab
    self.params = Folder(folder).load(self.config.reasoner, self.vocab, self.mesh)
    self.first, self.pieces = self.vocab.blocks['text']
    self._programs = {}

  def run(self, name, program, *arrays):
    """`program(reasoner, *arrays)`, compiled on the mesh once for each name."""
    if name not in self._programs:
      graphdef = self.rolegen.graphdefs['reasoner']
      self._programs[name] = jit(
        lambda params, *arrays: program(functional.bind(graphdef, params), *arrays)
      )
    with jax.set_mesh(self.mesh):
      return jax.device_get(self._programs[name](self.params, *arrays))

  def all_logits(self, tokens_BxT) -> np.ndarray:
    """fp32 [B, T, tokens of the vocabulary], of tokens of the one vocabulary."""
    valid = np.ones(tokens_BxT.shape, np.int32)
    size = self.first + self.pieces

    def program(reasoner, tokens):
      hidden = reasoner.hidden(tokens, np.arange(tokens.shape[1]), causal(valid))
      return reasoner.logits(hidden, 0, size)

    return self.run('all', program, tokens_BxT)

  def logits(self, ids_BxT, valid_BxT, positions_BxT=None) -> np.ndarray:
    """fp32 [B, T, text pieces] of the whole sequence at once; positions 0, 1, ... by default."""

    def read(reasoner, ids, valid, positions):
      hidden = reasoner.hidden(self.first + ids, positions, causal(valid))
      return reasoner.logits(hidden, self.first, self.pieces)

    if positions_BxT is not None:
      return self.run('positions given', read, ids_BxT, valid_BxT, positions_BxT)
    positions_T = np.arange(ids_BxT.shape[1])

    def read_from_start(reasoner, ids, valid):
      return read(reasoner, ids, valid, positions_T)

    return self.run('positions from the start', read_from_start, ids_BxT, valid_BxT)

  def decode(
    self, ids_BxT, valid_BxT, prompt: int, shared: int, greedy: int = 0
  ) -> tuple[np.ndarray, np.ndarray]:
    """(logits [B, n, text pieces], ids [B, n]) from the last of `prompt` positions on.

    One token at a time against the cache, of which the first `shared` slots are the chains' common
    ones. The tokens are those given, or, with `greedy` > 0, as many best ones.
    """
    steps = greedy or ids_BxT.shape[1] - prompt

    def program(reasoner, ids, valid):
      def readout(hidden):
        return reasoner.logits(hidden, self.first, self.pieces)

      hidden, cache = reasoner.prefill(
        self.first + ids[:, :prompt], np.arange(prompt), causal(valid[:, :prompt])
      )
      common = tuple(part[:, :, :shared] for part in cache)
      padding = ((0, 0),) * 3 + ((0, steps), (0, 0), (0, 0))
      own = tuple(jnp.pad(part[:, :, None, shared:], padding) for part in cache)
      slots = prompt - shared + steps
      is_known = jnp.pad(
        valid[:, shared:prompt].astype(bool), ((0, 0), (0, steps)), constant_values=True
      )

      def decode_token(carry, t):
        logits, cache = carry
        token = jnp.argmax(logits, axis=-1) if greedy else ids[:, prompt + t]
        slot = prompt - shared + t
        sees_own = (is_known & (jnp.arange(slots) <= slot))[:, None]
        sees = Visible(valid[:, :shared].astype(bool), sees_own)
        hidden, cache = reasoner.step(
          self.first + token[:, None], prompt + t, common, cache, slot, sees
        )
        return (readout(hidden)[:, 0], cache), (logits, token)

      start = readout(hidden[:, -1]), own
      (last, _), (logits, tokens) = jax.lax.scan(decode_token, start, jnp.arange(steps))
      return jnp.concatenate([jnp.moveaxis(logits, 0, 1), last[:, None]], axis=1), tokens.T

    return self.run((prompt, shared, steps), program, ids_BxT, valid_BxT)
