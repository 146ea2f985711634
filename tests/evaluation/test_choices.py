"""What a run chooses once, on planted logs."""

import dataclasses
import json

import numpy as np
import pytest

from rolegen_jax.cli import entry
from rolegen_jax.config import Config
from rolegen_jax.evaluation import choices
from rolegen_jax.evaluation.baselines import tuning_rows
from rolegen_jax.features.item_transitions import Kernel, Transitions
from rolegen_jax.pipeline.inputs import choose_on_validation, prepare_data, prepare_inputs
from tests import runs
from tests.evaluation import tiny_log
from tests.evaluation.test_baselines import fresh, real

ITEMS = 40


def walk(repeats: bool, users: int = 80, seed: int = 0):
  """Everybody walks along a ring of items; with repeats, most often over the same three again."""
  rng = np.random.default_rng(seed)
  rows = []
  for user in range(users):
    start = int(rng.integers(ITEMS))
    for day in range(10):
      item = start + (int(rng.integers(3)) if repeats else day)
      rows.append((user, item % ITEMS, 'purchase', day))
  return tiny_log.make(rows, ITEMS, split='leave_one_out')


@pytest.fixture(scope='module')
def chosen():
  return {repeats: choices.choose(*walk(repeats), Config()) for repeats in (False, True)}


@pytest.mark.parametrize('repeats', [False, True])
def test_lists_leave_out_the_history_where_nobody_comes_back(chosen, repeats):
  made = chosen[repeats]
  assert made.bars_history != repeats
  allowed, barred = made.scores['history_allowed'], made.scores['history_barred']
  assert (barred > allowed) == made.bars_history


def test_the_kernel_follows_the_walk(chosen):
  """On the ring the next item is always the newest one's: the kernel finds it first."""
  made = chosen[False]
  assert made.scores['item_transitions'] == pytest.approx(1, abs=0.02)
  assert made.scores['item_transitions'] >= made.scores['history_barred']


def test_the_choice_is_the_same_again_and_reads_no_test_target(chosen):
  log, occasions = walk(False)
  other = occasions.target.copy()
  tuning = tuning_rows(log, occasions)
  of_tuning = np.concatenate([np.arange(*occasions.target_offsets[r : r + 2]) for r in tuning])
  elsewhere = np.setdiff1d(np.arange(len(other)), of_tuning)
  other[elsewhere] = (other[elsewhere] + 1) % ITEMS
  changed = dataclasses.replace(occasions, target=other)
  assert choices.choose(log, occasions, Config()) == chosen[False]
  assert choices.choose(log, changed, Config()) == chosen[False]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ranked_sequences', 'alibaba2014', 'taobao_userbehavior'])
def test_on_public_logs_only_reviews_leave_out_the_history(name):
  known = real(name)
  made = choices.choose(known.log, known.occasions, known.config)
  assert made.bars_history == (name == 'ranked_sequences')


def test_the_half_life_follows_the_log():
  """What sells is new each day, or the same all along; ranks are no dates."""
  moving = fresh()
  assert choices.choose(*moving, Config()).trending == choices.HALF_LIVES[0]
  log, occasions = moving
  rng = np.random.default_rng(1)
  same = dataclasses.replace(log, timestamp=log.timestamp, item=rng.permutation(log.item))
  assert choices.choose(same, occasions, Config()).trending >= 8
  assert choices.choose(*walk(False), Config()).trending == 0


def test_without_validation_occasions_the_defaults_stand():
  log, occasions = tiny_log.make([(u, u, 'view', 1) for u in range(3)], 3)
  defaults = choices.Choices(Kernel(), Kernel(), False, {}, trending=4.0)
  assert choices.choose(log, occasions, Config()) == defaults


def test_choices_survive_json(chosen):
  for made in chosen.values():
    again = choices.Choices.from_json(json.loads(json.dumps(dataclasses.asdict(made))))
    assert again == made


def test_a_run_keeps_its_choices_and_the_setting_overrules_them(tmp_path):
  config = entry.experiment('demo', runs.SMALL)
  run, inputs = runs.open_inputs(config, tmp_path)
  kept = json.loads((tmp_path / 'choices' / 'choices.json').read_text(encoding='utf-8'))
  assert choices.Choices.from_json(kept) == inputs.choices
  assert inputs.bars_history == inputs.choices.bars_history
  assert choose_on_validation(run, prepare_data(run)) == inputs.choices
  for wish, bars_history in dict(bar=True, allow=False).items():
    serving = dataclasses.replace(config.serving, filter_history=wish)
    varied = dataclasses.replace(run, config=dataclasses.replace(config, serving=serving))
    _, again = prepare_inputs(varied)
    assert again.bars_history == bars_history and again.hashes == inputs.hashes


def test_an_excitation_is_of_the_kernel_that_was_chosen(tmp_path):
  config = entry.experiment('demo', runs.SMALL)
  _, inputs = runs.open_inputs(config, tmp_path)
  end = inputs.occasions.train_end(inputs.log)
  counted = Transitions.of(inputs.log, end, inputs.choices.retrieval)
  np.testing.assert_array_equal(inputs.excitation.share, counted.strongest(16)[1])
