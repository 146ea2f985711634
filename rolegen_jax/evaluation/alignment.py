"""Test whether the reasoner knows what its semantic IDs stand for.

`questions` asks about items. An answer is right when each of its tokens, END included, is the one
that the reasoner would write after the tokens before it: this is greedy decoding, checked in one
pass. Chance is how often the best constant answer is right. Items whose words were held out of
training have rows of their own. `sentences` lets the reasoner write.
"""

from __future__ import annotations

import collections
import functools
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from rolegen_jax import sharding
from rolegen_jax.reasoning import language
from rolegen_jax.reasoning.alignment import Alignment
from rolegen_jax.reasoning.batched import over
from rolegen_jax.reasoning.predict import Predictions
from rolegen_jax.reasoning.rationales import Rationales
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.text.packing import Packed, PackedTable, TextExample, in_order, pack

MOST = 1024  # items asked about, evenly spaced; all items of a smaller catalogue


def questions(
  rolegen: RoleGen, params: dict[str, dict], alignment: Alignment, mesh: Mesh
) -> list[dict]:
  """Return a row for each question and each kind of items (shown in training or held out).

  `params` holds parameters of the reasoner by stage. A row holds question, items, number, chance,
  and under the name of each stage the accuracy of its parameters.
  """
  exam = alignment.exam(MOST)
  examples = [example for _, asked, _ in exam.values() for example in asked]
  right = {
    name: _right_answers(rolegen, reasoner, alignment, examples, mesh, f'words, {name}')
    for name, reasoner in params.items()
  }
  rows, start = [], 0
  for question, (items, asked, answers) in exam.items():
    block, held_out = slice(start, start + len(asked)), alignment.held_out[items]
    for kind, mask in (('shown', ~held_out), ('held out', held_out)):
      if not mask.any():
        continue
      chance = _best_constant(answers, mask)
      if question == 'text -> semantic ID':
        chance = 1 / len(alignment.held_out)
      accuracies = {name: float(values[block][mask].mean()) for name, values in right.items()}
      number = int(mask.sum())
      row = dict(question=question, items=kind, number=number, chance=float(chance))
      rows.append(row | accuracies)
    start += len(asked)
  return rows


def _best_constant(answers: list, mask: np.ndarray) -> float:
  """Return how often the most common answer is right."""
  counts = collections.Counter(answer for answer, chosen in zip(answers, mask) if chosen)
  return counts.most_common(1)[0][1] / int(mask.sum())


def _right_answers(
  rolegen: RoleGen,
  reasoner: dict,
  alignment: Alignment,
  examples: list[TextExample],
  mesh: Mesh,
  label: str,
) -> np.ndarray:
  """Return which examples the reasoner answers correctly, bool [examples]."""
  # A question may be longer than the rows of training, where it is left out.
  width = max([alignment.config.text.width, *(len(example.tokens) for example in examples)])
  order = in_order(examples, width)
  table = PackedTable(pack([[examples[i] for i in row] for row in order], width))

  def batch(params: Any, packed: Packed) -> tuple[jax.Array]:
    tokens = language.read(rolegen.bind('reasoner', params), packed)
    return (tokens.right | (tokens.task == 0),)

  (token_right,) = over(rolegen, batch, (reasoner,), table, mesh, label)
  right = np.zeros(len(examples), bool)
  for row, numbers in enumerate(order):
    for segment, number in enumerate(numbers, 1):
      right[number] = token_right[row][table.packed.segment[row] == segment].all()
  return right


def sentences(
  rolegen: RoleGen,
  params: dict,
  alignment: Alignment,
  examples: list[int],
  predictions: Predictions,
  mesh: Mesh,
) -> list[tuple[list[str], list[str]]]:
  """Return (a sentence for each event with a role, one for each intent) of each factual chain.

  The reasoner writes them greedily. `alignment` must be over the table that `predictions` were made
  for. The intents are those that the chain's candidates stand for.
  """
  assert predictions.roles is not None and predictions.candidates is not None
  chains = Rationales(alignment, alignment.table, {})
  prompts = [chains.prompt(example) for example in examples]
  plans = [
    chains.plan(example, predictions.roles[example], named[named >= 0])
    for example, named in zip(examples, predictions.candidates[examples, 0])
  ]
  written = _write(rolegen, params, prompts, plans, mesh)
  vocab = rolegen.vocab
  begin, end = (vocab.control(name) for name in ('BOS', 'END'))
  first_role, roles = vocab.blocks['role']
  results = []
  for row in written[: len(examples)]:
    of_events: list[str] = []
    of_intents: list[str] = []
    is_role = (row >= first_role) & (row < first_role + roles)
    for start in np.flatnonzero(row == begin):
      length = np.flatnonzero(row[start:] == end)[0]
      sentence = alignment.text.decode(row[start + 1 : start + length]).strip()
      (of_events if is_role[:start].any() else of_intents).append(sentence)
    results.append((of_events, of_intents))
  return results


def _write(
  rolegen: RoleGen, params: dict, prompts: list[list[int]], plans: list[list[int]], mesh: Mesh
) -> np.ndarray:
  """Return the tokens that the reasoner writes: one row per prompt, then padding rows."""
  vocab = rolegen.vocab
  batch_axes = cast(tuple[str, ...], sharding.TRAIN['batch'])
  n_padding = -len(prompts) % int(np.prod([mesh.shape[axis] for axis in batch_axes]))
  prompt_width, plan_width = (max(map(len, rows)) for rows in (prompts, plans))
  n_rows, pad = len(prompts) + n_padding, vocab.control('PAD')
  prompt = np.full((n_rows, prompt_width), pad, np.int32)
  plan = np.full((n_rows, plan_width), pad, np.int32)
  valid = np.zeros(prompt.shape, bool)
  for row in range(n_rows):
    source = min(row, len(prompts) - 1)
    first = prompt_width - len(prompts[source])
    prompt[row, first:], valid[row, first:] = prompts[source], True
    plan[row, : len(plans[source])] = plans[source]
  begin = vocab.control('BOS')
  write = functools.partial(
    _bind_and_write,
    rolegen,
    sentence=rolegen.config.text.sentence,
    most=max(tokens.count(begin) for tokens in plans),
  )
  with jax.set_mesh(mesh):
    program = jit(write, out_shardings=sharding.sharding(mesh))
    rows = (
      sharding.global_batch(mesh, x, np.arange(n_rows), n_rows) for x in (prompt, valid, plan)
    )
    return jax.device_get(program(params, *rows))


def _bind_and_write(
  rolegen: RoleGen,
  params: dict,
  prompt: jax.Array,
  valid: jax.Array,
  plan: jax.Array,
  *,
  sentence: int,
  most: int,
) -> jax.Array:
  return language.write(rolegen.bind('reasoner', params), prompt, valid, plan, sentence, most)
