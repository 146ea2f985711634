"""Alignment examples say what the log says, and a few steps teach the catalogue.

Packed rows do not depend on their neighbors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rolegen_jax.config import ALIGN_TASKS, MeshConfig
from rolegen_jax.evaluation.alignment import questions
from rolegen_jax.models import functional
from rolegen_jax.models.attention import causal
from rolegen_jax.models.numerics import NEG_INF
from rolegen_jax.reasoning import language
from rolegen_jax.reasoning.frcot import build_prompt
from rolegen_jax.reasoning.rolegen import RoleGen
from rolegen_jax.runtime.compile import jit
from rolegen_jax.sharding import make_mesh
from rolegen_jax.text.packing import pack
from tests import tiny
from tests.text import catalogue

END = '<|control_end|>'


def squeeze(text: str) -> str:
  return text.replace(' ', '')


def test_examples_say_what_the_items_are():
  a = catalogue.alignment()
  words, v = a.words, a.vocab

  def read(tokens) -> str:
    return squeeze(a.text.decode(tokens))

  codes = catalogue.log_and_examples()[1]
  item_name = ''.join(v.named[token][0] for token in v.sid(codes[5]))
  brand = a.sid_to_text(5, 'brand')
  assert read(brand.tokens[~brand.taught]) == f'{item_name}ismadeby'
  assert read(brand.tokens[brand.taught]) == words.say(5, 'brand') + END
  item = a.text_to_sid(5)
  assert item.tokens[item.taught].tolist() == a.sid[5].tolist()
  assert squeeze(words.say(5, 'title')) in read(item.tokens)
  masked = a.masked_attribute(5, 'category')
  category = squeeze(words.say(5, 'category'))
  question = read(masked.tokens[~masked.taught])
  assert 'category:?' in question and 'category:' + category not in question
  assert read(masked.tokens[masked.taught]) == category + END


def test_trajectories_read_as_frcot_prompts_do():
  a, (_, codes, table) = catalogue.alignment(), catalogue.log_and_examples()
  layout, index = RoleGen(catalogue.config()).layout, np.arange(0, len(table), 7)
  examples = table.rows(index, tiny.WIDTH)
  build = jit(functools.partial(build_prompt, layout))
  prompt = build(examples.history, examples.excites, examples.timestamp, codes)
  reason = a.vocab.control('REASON')
  for row, example in enumerate(index):
    expected = np.asarray(prompt.tokens[row])[np.asarray(prompt.valid[row])]
    tokens = [*a.trajectory(example, 1000), a.until(example), reason]
    np.testing.assert_array_equal(tokens, expected)
    bought = a.next_purchase(example, 1000)
    assert bought.tokens[bought.taught].tolist() == a.sid[table.target[example]].tolist()
  assert len(a.trajectory(index[-1], 12)) <= 12


def test_rows_depend_on_their_number_alone():
  a = catalogue.alignment()
  rows, one = a.rows(np.arange(40)), a.rows(np.arange(39, 40))
  np.testing.assert_array_equal(rows.token[39:], one.token)
  assert len(np.unique(rows.token, axis=0)) == 40 and (rows.segment > 0).mean() > 0.8
  assert set(np.unique(rows.task)) == set(range(1 + len(ALIGN_TASKS)))


def test_rows_hold_no_held_out_words():
  """No item whose words are held out is the answer to a description."""
  a = catalogue.alignment()
  rows, start = a.rows(np.arange(40)), a.vocab.blocks['sid0'][0]
  is_first_code = (rows.token >= start) & (rows.token < start + tiny.CODES)
  is_answer = is_first_code & (rows.task == 1 + ALIGN_TASKS.index('text_to_sid'))
  shown = {tuple(rows.token[row, at : at + 3]) for row, at in zip(*np.nonzero(is_answer))}
  held_out = {tuple(a.sid[item]) for item in np.flatnonzero(a.held_out)}
  assert len(held_out) == 16 and shown and not shown & held_out


def test_tasks_of_weight_zero_are_not_drawn():
  others = [task for task in ALIGN_TASKS if task != 'next_purchase']
  rows = catalogue.alignment(*(f'text.{task}=0' for task in others)).rows(np.arange(4))
  assert set(np.unique(rows.task)) == {0, 1 + ALIGN_TASKS.index('next_purchase')}


@pytest.fixture(scope='module')
def reasoner():
  rolegen = RoleGen(catalogue.config())
  params = tiny.random_params(rolegen.model_fns['reasoner'])
  return functional.bind(rolegen.graphdefs['reasoner'], params)


def causal_hidden(reasoner, tokens):
  """Hidden states of whole sequences without segments, [N, T, D]."""
  width = np.shape(tokens)[1]

  @jit
  def hidden(tokens):
    mask = jnp.asarray(np.tri(width, dtype=bool)[None])
    return reasoner.hidden(tokens, np.arange(width), mask)

  return hidden(jnp.asarray(tokens))


def test_examples_of_a_row_do_not_see_each_other(reasoner):
  a = catalogue.alignment()
  one, two, three = a.text_to_sid(1), a.sid_to_text(2, 'title'), a.next_event(3, 40)
  together, alone = pack([[one, two, three]], 160), pack([[two], [three]], 160)
  read = jit(functools.partial(language.read, reasoner))
  scores, scores_alone = read(together), read(alone)
  for number, row in ((2, 0), (3, 1)):
    in_example = np.asarray(together.segment[0] == number) & (np.asarray(scores.task[0]) > 0)
    taught = np.asarray(scores_alone.task[row]) > 0
    assert in_example.sum() == taught.sum() > 0
    expected = scores_alone.nll[row][taught]
    np.testing.assert_allclose(scores.nll[0][in_example], expected, rtol=2e-5, atol=2e-5)


def test_tokens_are_predicted_among_their_own_block(reasoner):
  a = catalogue.alignment()
  example, v = a.text_to_sid(4), a.vocab
  packed, n = pack([[example]], 96), len(example.tokens)
  scores = jit(functools.partial(language.read, reasoner))(packed)
  hidden = causal_hidden(reasoner, packed.token)
  for level, at in enumerate(range(n - 3, n)):
    start, size = v.blocks[f'sid{level}']
    log_probs = jax.nn.log_softmax(reasoner.logits(hidden[0, at - 1], start, size))
    code = example.tokens[at] - start
    np.testing.assert_allclose(scores.nll[0, at], -log_probs[code], rtol=1e-4, atol=1e-5)
    assert bool(scores.right[0, at]) == (int(jnp.argmax(log_probs)) == code)


@pytest.mark.parametrize('chunk', [8, 32])
def test_every_token_that_is_taught_is_scored_and_so_are_its_gradients(
  reasoner, monkeypatch, chunk
):
  """As by all logits at all positions, however words and semantic IDs lie in the rows."""
  monkeypatch.setattr(language, 'CHUNK', chunk)
  a = catalogue.alignment()
  words, ids = a.sid_to_text(2, 'title'), a.next_event(3, 40)
  packed = pack([[ids, words, words], [ids, ids], [words]], 96)
  first, stop = (jnp.asarray(x) for x in language.blocks(reasoner.vocab))
  weight = jax.random.uniform(jax.random.key(0), packed.token.shape)
  graph, params = nnx.split(reasoner)

  def of_read(params):
    scores = language.read(nnx.merge(graph, params), packed)
    return jnp.sum(jnp.where(scores.task > 0, scores.nll, 0.0) * weight), scores

  def of_all_logits(params):
    model = nnx.merge(graph, params)
    mask = causal(packed.segment)
    hidden = model.hidden(packed.token, np.arange(96), mask)
    target = jnp.asarray(packed.token)[:, 1:, None]
    token, logits = np.arange(model.vocab.size), model.logits(hidden[:, :-1], 0, model.vocab.size)
    logits = jnp.where((token >= first[target]) & (token < stop[target]), logits, NEG_INF)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
    return jnp.sum(jnp.where(packed.task[:, 1:] > 0, nll, 0.0) * weight[:, 1:]), nll

  (_, scores), grads = jit(jax.value_and_grad(of_read, has_aux=True))(params)
  (_, nll), expected = jit(jax.value_and_grad(of_all_logits, has_aux=True))(params)
  np.testing.assert_array_equal(scores.task, packed.task)
  taught = packed.task > 0
  np.testing.assert_allclose(scores.nll[taught], nll[taught[:, 1:]], rtol=2e-4, atol=2e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5), grads, expected)


def test_rows_that_are_replayed_are_short_and_of_their_number_alone():
  a = catalogue.alignment('text.replay=48')
  rows = a.replay(np.arange(20), 'reason')
  assert rows.token.shape == (20, 48) and (rows.segment > 0).mean() > 0.7
  np.testing.assert_array_equal(a.replay(np.arange(19, 20), 'reason').token[0], rows.token[19])
  assert set(np.unique(rows.task)) == set(range(1 + len(ALIGN_TASKS)))
  others = a.rows(np.arange(20)).token[:, :48], a.replay(np.arange(20), 'loop').token
  assert all((rows.token != other).any(1).all() for other in others)


def test_what_is_written_is_what_one_pass_would_write(reasoner):
  a, sentence = catalogue.alignment(), 5
  v, end, begin = a.vocab, a.vocab.control('END'), a.vocab.control('BOS')
  prompts = [a.trajectory(example, 20) for example in (0, 1)]
  width = max(map(len, prompts))
  prompt = np.stack([np.pad(p, (width - len(p), 0)) for p in prompts])
  valid = np.stack([np.arange(width) >= width - len(p) for p in prompts])
  plan = np.array([[v.role(2), begin, v.role(1), begin], [v.role(0), begin, 0, 0]], np.int32)
  write = jit(lambda *x: language.write(reasoner, *x, sentence=sentence, most=2))
  written = np.asarray(write(prompt, valid, plan))
  for prompt_tokens, planned, row in zip(prompts, plan, written):
    tokens = row[row != 0].tolist()
    roles = [t for t in tokens if t in (v.role(0), v.role(1), v.role(2))]
    assert roles == [t for t in planned if t not in (0, begin)]
    assert tokens.count(begin) == tokens.count(end) == (planned == begin).sum()
    assert tokens[-1] == end
    assert_greedy(reasoner, [*prompt_tokens], tokens, sentence)


def assert_greedy(reasoner, prompt: list[int], written: list[int], sentence: int):
  """Every token of a sentence is the likeliest of the text after all tokens before it."""
  v, tokens = reasoner.vocab, [*prompt, *written]
  begin, end, text = v.control('BOS'), v.control('END'), v.blocks['text'][0]
  logits = np.array(reasoner.logits(causal_hidden(reasoner, [tokens])[0], 0, v.size))
  may_follow = [t == end or text <= t < text + catalogue.PIECES for t in range(v.size)]
  logits[:, ~np.array(may_follow)] = -np.inf
  n_tokens = 0  # of the open sentence, BOS included; 0 = none is open
  for at in range(len(prompt), len(tokens)):
    token = tokens[at]
    if n_tokens:
      assert token == (end if n_tokens == sentence else logits[at - 1].argmax())
    if token == end:
      n_tokens = 0
    elif token == begin or n_tokens:
      n_tokens += 1


@pytest.mark.slow
def test_a_few_steps_teach_the_catalogue_and_the_exam_shows_it():
  a, rolegen = catalogue.alignment(), RoleGen(catalogue.config())
  mesh, tx = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), optax.adam(1e-2)

  def loss(params, packed):
    scores = language.read(rolegen.bind('reasoner', params), packed)
    return language.mean_nll(scores, ALIGN_TASKS)

  @jit
  def step(params, opt, packed):
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, packed)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, metrics

  with jax.set_mesh(mesh):
    start = functional.init(rolegen.model_fns['reasoner'], jax.random.key(0), mesh)[1]
    params, opt = start, tx.init(start)
    for number in range(60):
      params, opt, metrics = step(params, opt, a.rows(np.arange(8 * number, 8 * number + 8)))
  assert set(metrics) == {f'{task}_nll' for task in ALIGN_TASKS}
  answers = questions(rolegen, dict(before=start, after=params), a, mesh)
  rows = {(row['question'], row['items']): row for row in answers}
  category, sid = rows['semantic ID -> category', 'shown'], rows['text -> semantic ID', 'shown']
  assert category['number'] == sid['number'] == 48
  assert rows['semantic ID -> title', 'held out']['number'] == 16
  assert category['before'] < category['chance'] < category['after']
  assert sid['chance'] == 1 / 64
