"""Does the reasoner know what its semantic IDs stand for? Questions about every item, answered greedily.

An answer is right when each of its tokens, END included, is what the reasoner would have written after the ones before: that is greedy
decoding, told in one pass. Beside it stands chance: how often the best constant answer is right. Items whose words were held out of
training are asked apart. `sentences` lets it speak.
"""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np

from rolegen_jax import sharding
from rolegen_jax.reasoning import language, predict
from rolegen_jax.reasoning.alignment import Alignment
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.reasoning.rationales import Rationales
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.text.packing import Packed, in_order, pack

MOST = 4096  # items that are asked about, evenly spaced; all of them where there are no more


@dataclasses.dataclass(frozen=True)
class _Table:
  """Packed rows, as `predict.over` reads them."""

  packed: Packed

  def __len__(self) -> int:
    return len(self.packed.token)

  def rows(self, index: np.ndarray, width: int) -> Packed:
    del width
    return Packed(*(x[index] for x in self.packed))


def questions(rolegen: RoleGen, params: dict[str, dict], alignment: Alignment, mesh) -> list[dict]:
  """Rows of {question, items (shown | held out), number, chance, NAME: accuracy of the reasoner's parameters of that name ...}."""
  exam = alignment.exam(MOST)
  examples = [one for _, asked, _ in exam.values() for one in asked]
  order = in_order(examples, alignment.config.text.width)
  table = _Table(pack([[examples[i] for i in row] for row in order], alignment.config.text.width))
  right = {}

  def batch(params, number, packed):
    del number
    told = language.read(rolegen.bind('reasoner', params), packed)
    return (told.right | (told.task == 0),)

  for name, held in params.items():
    (found,) = predict.over(rolegen, batch, (held,), table, mesh, f'words, {name}')
    right[name] = np.zeros(len(examples), bool)
    for row, numbers in enumerate(order):
      right[name][numbers] = [
        found[row][table.packed.segment[row] == place].all() for place in range(1, 1 + len(numbers))
      ]
  rows, start = [], 0
  for question, (items, asked, answers) in exam.items():
    here, held = slice(start, start + len(asked)), alignment.held_out[items]
    for which, at in (('shown', ~held), ('held out', held)):
      if at.any():
        best = collections.Counter(answer for answer, yes in zip(answers, at) if yes).most_common(
          1
        )[0][1]
        chance = (
          best / at.sum() if question != 'text -> semantic ID' else 1 / len(alignment.held_out)
        )
        scores = {name: float(values[here][at].mean()) for name, values in right.items()}
        rows.append(
          dict(question=question, items=which, number=int(at.sum()), chance=float(chance), **scores)
        )
    start += len(asked)
  return rows


def sentences(
  rolegen: RoleGen,
  params: dict,
  alignment: Alignment,
  examples: list[int],
  found: Predictions,
  mesh,
) -> list[tuple[list[str], list[str]]]:
  """(a sentence for each event that has a role, one for each intent) of the factual chain of each case, written greedily.

  `alignment` is over the table that `found` predicts; intents are those that the chain's candidates stand for.
  """
  chains, v = Rationales(alignment, alignment.table, {}), rolegen.vocab
  prompts = [chains.prompt(example) for example in examples]
  plans = [
    chains.plan(example, found.roles[example], found.candidates[example, 0]) for example in examples
  ]
  rows = -len(examples) % int(np.prod([mesh.shape[axis] for axis in sharding.TRAIN['batch']]))
  lengths = [max(map(len, some)) for some in (prompts, plans)]
  pad = v.control('PAD')
  prompt, plan = (np.full((len(examples) + rows, length), pad, np.int32) for length in lengths)
  valid = np.zeros(prompt.shape, bool)
  for row in range(len(prompt)):
    example = min(row, len(examples) - 1)
    (
      prompt[row, lengths[0] - len(prompts[example]) :],
      valid[row, lengths[0] - len(prompts[example]) :],
    ) = prompts[example], True
    plan[row, : len(plans[example])] = plans[example]
  begin, end, intent = (v.control(name) for name in ('BOS', 'END', 'INTENT'))
  limits = dict(
    sentence=rolegen.config.text.sentence, most=max(some.count(begin) for some in plans)
  )
  write = lambda params, *given: language.write(rolegen.bind('reasoner', params), *given, **limits)
  place = lambda x: sharding.global_batch(mesh, x, np.arange(len(x)), len(x))
  with jax.set_mesh(mesh):
    written = jax.device_get(
      jit(write, out_shardings=sharding.sharding(mesh))(params, *map(place, (prompt, valid, plan)))
    )
  said = []
  for row in written[: len(examples)]:
    told = ([], [])
    for start in np.flatnonzero(row == begin):
      text = row[start + 1 : start + 1 + np.flatnonzero(row[start:] == end)[0] - 1]
      told[intent in row[:start]].append(alignment.text.decode(text).strip())
    said.append(told)
  return said
