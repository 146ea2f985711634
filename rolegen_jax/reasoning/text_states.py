"""Text embeddings by a language model: the mean of a text's last hidden states.

Other texts of a packed row are not seen. Rows are spread over the mesh, as are the parameters.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax.reasoning import language
from rolegen_jax.reasoning.batched import over
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.text.packing import Packed, PackedTable, in_order, pack, text_example
from rolegen_jax.text.tokenizers import TextVocabulary, Tokenizer

WIDTH = 256  # tokens of a row; longer texts are cut
MOST = 16  # texts of a row: what comes back of each row is as large


def text_states(
  rolegen: RoleGen, reasoner: dict, tokenizer: Tokenizer, texts: list[str], mesh: Mesh
) -> np.ndarray:
  """Return float32 [N, D], of unit length; zero where a text is empty.

  reasoner: parameters of the reasoner of `rolegen`.
  """
  vocabulary = TextVocabulary(rolegen.vocab, tokenizer)
  distinct, place_N = np.unique([text.strip() for text in texts], return_inverse=True)
  said = [(i, vocabulary.encode(text)[:WIDTH]) for i, text in enumerate(distinct) if text]
  said.sort(key=lambda numbered: len(numbered[1]))  # rows of like texts are filled up alike
  examples = [text_example(tokens, [], 0) for _, tokens in said]
  full = in_order(examples, WIDTH)
  order = [row[first : first + MOST] for row in full for first in range(0, len(row), MOST)]
  table = PackedTable(pack([[examples[i] for i in row] for row in order], WIDTH))

  def batch(params: Any, packed: Packed) -> tuple[jax.Array]:
    return (language.mean_states(rolegen.bind('reasoner', params), packed, MOST),)

  vectors = np.zeros((len(distinct), rolegen.config.reasoner.transformer.width), np.float32)
  if said:
    (states_RxNxD,) = over(rolegen, batch, (reasoner,), table, mesh, 'texts')
    for row, numbers in enumerate(order):
      vectors[[said[i][0] for i in numbers]] = states_RxNxD[row, : len(numbers)]
  norm = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / np.maximum(norm, 1e-12))[place_N]
