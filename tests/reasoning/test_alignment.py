"""Alignment examples say what the log says; packed rows do not depend on their neighbours; a few steps teach the catalogue."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rolegen_jax.config import ALIGN_TASKS, MeshConfig
from rolegen_jax.evaluation.alignment import questions
from rolegen_jax.models import functional
from rolegen_jax.reasoning import language
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.sharding import make_mesh
from rolegen_jax.text.packing import pack
from tests import tiny
from tests.text import catalogue


def test_examples_say_what_the_items_are():
  a = catalogue.alignment()
  words, end, v = a.words, '<|control_end|>', a.vocab
  asked = a.sid_to_text(5, 'brand')
  name = ''.join(v.named[token][0] for token in v.sid(catalogue.log_and_examples()[1][5]))
  read = lambda tokens: a.text.decode(tokens).replace(' ', '')
  assert (
    read(asked.tokens[~asked.taught]) == f'{name}ismadeby'
    and read(asked.tokens[asked.taught]) == words.say(5, 'brand') + end
  )
  back = a.text_to_sid(5)
  assert back.tokens[back.taught].tolist() == a.sid[5].tolist() and words.say(5, 'title').replace(
    ' ', ''
  ) in read(back.tokens)
  hidden = a.masked_attribute(5, 'category')
  question = read(hidden.tokens[~hidden.taught])
  assert (
    'category:?' in question
    and 'category:' + words.say(5, 'category').replace(' ', '') not in question
  )
  assert read(hidden.tokens[hidden.taught]) == words.say(5, 'category').replace(' ', '') + end


def test_trajectories_read_as_frcot_prompts_do():
  a, (_, codes, examples) = catalogue.alignment(), catalogue.log_and_examples()
  layout, index = RoleGen(catalogue.config()).layout, np.arange(0, len(examples), 7)
  rows = examples.rows(index, tiny.WIDTH)
  prompt = build_prompt(layout, rows.history, rows.excites, rows.timestamp, codes)
  for row, example in enumerate(index):
    shown = np.asarray(prompt.tokens[row])[np.asarray(prompt.valid[row])]
    np.testing.assert_array_equal(
      [*a.trajectory(example, 1000), a.until(example), a.vocab.control('REASON')], shown
    )
    bought = a.next_purchase(example, 1000)
    assert bought.tokens[bought.taught].tolist() == a.sid[examples.target[example]].tolist()
  assert len(a.trajectory(index[-1], 12)) <= 12


def test_rows_are_functions_of_their_number_and_hold_no_held_out_words():
  a = catalogue.alignment()
  rows, again = a.rows(np.arange(40)), a.rows(np.arange(39, 40))
  np.testing.assert_array_equal(rows.token[39:], again.token)
  assert len(np.unique(rows.token, axis=0)) == 40 and (rows.segment > 0).mean() > 0.8
  assert set(np.unique(rows.task)) == set(range(1 + len(ALIGN_TASKS)))
  sid = a.vocab.blocks['sid0'][0]
  first = (
    (rows.token >= sid)
    & (rows.token < sid + tiny.CODES)
    & (rows.task == 1 + ALIGN_TASKS.index('text_to_sid'))
  )
  shown = {tuple(rows.token[row, at : at + 3]) for row, at in zip(*np.nonzero(first))}
  held = {tuple(a.sid[item]) for item in np.flatnonzero(a.held_out)}
  assert len(held) == 16 and shown and not shown & held
  only = catalogue.alignment(
    'text.sid_to_text=0', 'text.text_to_sid=0', 'text.masked_attribute=0', 'text.next_event=0'
  ).rows(np.arange(4))
  assert set(np.unique(only.task)) == {0, 1 + ALIGN_TASKS.index('next_purchase')}


def _reasoner(params=None):
  rolegen = RoleGen(catalogue.config())
  params = params or tiny.random_params(rolegen.model_fns['reasoner'])
  return rolegen, functional.bind(rolegen.graphdefs['reasoner'], params)


def test_examples_of_a_row_do_not_see_each_other():
  a, (_, reasoner) = catalogue.alignment(), _reasoner()
  one, two, three = a.text_to_sid(1), a.sid_to_text(2, 'title'), a.next_event(3, 40)
  together, alone = pack([[one, two, three]], 160), pack([[two], [three]], 160)
  read = jit(lambda packed: language.read(reasoner, packed))
  here, there = read(together), read(alone)
  for number, row in ((2, 0), (3, 1)):
    at, own = (
      np.asarray(together.segment[0] == number) & (np.asarray(here.task[0]) > 0),
      np.asarray(there.task[row]) > 0,
    )
    assert at.sum() == own.sum() > 0
    np.testing.assert_allclose(here.nll[0][at], there.nll[row][own], rtol=2e-5, atol=2e-5)


def test_tokens_are_told_among_their_own_block():
  a, (_, reasoner) = catalogue.alignment(), _reasoner()
  found, v = a.text_to_sid(4), a.vocab
  packed = pack([[found]], 96)
  told = language.read(reasoner, packed)
  n = len(found.tokens)
  hidden = reasoner.hidden(
    jnp.asarray(packed.token), np.arange(96), jnp.asarray(np.tri(96, dtype=bool)[None])
  )
  for level, at in enumerate(range(n - 3, n)):
    start, size = v.blocks[f'sid{level}']
    log_probs = jax.nn.log_softmax(reasoner.logits(hidden[0, at - 1], start, size))
    np.testing.assert_allclose(
      told.nll[0, at], -log_probs[found.tokens[at] - start], rtol=1e-4, atol=1e-5
    )
    assert bool(told.right[0, at]) == (int(jnp.argmax(log_probs)) == found.tokens[at] - start)


def test_what_is_written_is_what_one_pass_would_write():
  a, (_, reasoner) = catalogue.alignment(), _reasoner()
  v, end, begin = a.vocab, a.vocab.control('END'), a.vocab.control('BOS')
  prompts = [a.trajectory(example, 20) for example in (0, 1)]
  width = max(map(len, prompts))
  prompt = np.stack([np.pad(p, (width - len(p), 0)) for p in prompts])
  valid = np.stack([np.arange(width) >= width - len(p) for p in prompts])
  plan = np.array([[v.role(2), begin, v.role(1), begin], [v.role(0), begin, 0, 0]], np.int32)
  written = np.asarray(
    jit(lambda *x: language.write(reasoner, *x, sentence=5, most=2))(prompt, valid, plan)
  )
  for row, (before, planned) in enumerate(zip(prompts, plan)):
    tokens = written[row][written[row] != 0].tolist()
    assert [t for t in tokens if t in (v.role(0), v.role(1), v.role(2))] == [
      p for p in planned if p not in (0, begin)
    ]
    assert (
      tokens.count(begin) == tokens.count(end) == (planned == begin).sum() and tokens[-1] == end
    )
    whole, inside = [*before, *tokens], 0
    hidden = reasoner.hidden(
      jnp.asarray([whole]), np.arange(len(whole)), jnp.asarray(np.tri(len(whole), dtype=bool)[None])
    )
    logits = np.array(reasoner.logits(hidden[0], 0, v.size))
    text = v.blocks['text'][0]
    logits[
      :, [t for t in range(v.size) if (t < text and t != end) or t >= text + catalogue.PIECES]
    ] = -np.inf
    for at in range(len(before), len(whole)):
      if inside:
        assert whole[at] == (end if inside == 5 else logits[at - 1].argmax())
      inside = 0 if whole[at] == end else 1 if whole[at] == begin else inside + 1 if inside else 0


def test_a_few_steps_teach_the_catalogue_and_the_exam_shows_it():
  a, rolegen, mesh = (
    catalogue.alignment(),
    RoleGen(catalogue.config()),
    make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
  )
  tx = optax.adam(1e-2)
  loss = lambda p, packed: language.mean_nll(
    language.read(rolegen.bind('reasoner', p), packed), ALIGN_TASKS
  )
  with jax.set_mesh(mesh):
    params = start = functional.init(rolegen.model_fns['reasoner'], jax.random.key(0), mesh)[1]
    opt = tx.init(params)

    @jit
    def step(params, opt, packed):
      (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, packed)
      updates, opt = tx.update(grads, opt, params)
      return optax.apply_updates(params, updates), opt, metrics

    for number in range(60):
      params, opt, metrics = step(params, opt, a.rows(np.arange(8 * number, 8 * number + 8)))
  assert set(metrics) == {f'{task}_nll' for task in ALIGN_TASKS}
  rows = {
    (row['question'], row['items']): row
    for row in questions(rolegen, dict(before=start, after=params), a, mesh)
  }
  category, sid = rows['semantic ID -> category', 'shown'], rows['text -> semantic ID', 'shown']
  assert (
    category['number'] == sid['number'] == 48
    and rows['semantic ID -> title', 'held out']['number'] == 16
  )
  assert category['before'] < category['chance'] < category['after'] and sid['chance'] == 1 / 64
