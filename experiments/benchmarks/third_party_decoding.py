"""Constrained beam search: RoleGen's backbone against Hugging Face `generate` and cornac's TIGER.

  pip install -r requirements-third-party.txt
  python -m experiments.benchmarks.third_party_decoding

A cell (history items, requests of a batch, beams) times all models in turn, from histories to
lists of items: encoding and search. One catalogue, the 12,101 items of Beauty with four codes each;
one count of parameters, fresh weights, so lists say nothing about quality. Beside it: our search
against scoring every item by itself, where there are as many beams as items; and on the whole
catalogue the share of the truly best items that is found, with fresh weights and with trained ones.
Needs the Beauty log (README.md).

Legend: B requests, n history items, k beams, I items.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import time

import numpy as np

from experiments.benchmarks import beauty, harness
from experiments.benchmarks import third_party_models as models
from experiments.benchmarks.third_party_models import COLORS, LABELS, OURS

COVERED = (40, 100, 200)  # items of the catalogues that beams cover
COVERAGE_BEAMS, TOPS = (10, 20, 50, 200), (10, 50)
CHECK_HISTORY = 20  # items, of the checks
TIE = 1e-5  # nats between two float32 sums of the same terms
MIN_ROUNDS, MAX_ROUNDS = 3, 15  # timed, of a cell
T5_GIB = 4.0  # for T5's copies of keys and values; what needs more is served in pieces
CORNAC_REQUESTS = 4  # timed one after the other; more of them say no more
TRAINING_BATCH = 32  # rows of an update before the trained check
STYLES = [
  dict(linestyle=line, marker=marker) for line, marker in (('-', 'o'), ('--', 's'), (':', '^'))
]


def measure(
  store: harness.Store,
  *,
  histories: tuple = (20, 200),
  batches: tuple = (1, 8, 64),
  beams: tuple = (10, 20, 50),
  budget: float = 8.0,
  users: int = 16,
  updates: int = 150,
) -> dict:
  """Measure a point per cell and one per check of our search.

  histories: History items of a request.
  batches: Requests of a batch.
  beams: Beams, and items of a list.
  budget: Seconds of timed rounds of a cell; 3 rounds at least, 15 at most.
  users: Requests whose whole catalogue is scored.
  updates: Training updates before the check of trained weights.
  """
  models.require_packages()
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  sequences, codes, config = beauty.sequences(), beauty.codes(), beauty.config()
  settings = [config, codes.tolist()]
  sides = {
    OURS: beauty.Ours(sequences, codes, config, TRAINING_BATCH),
    'hf_t5': models.HuggingFace(sequences, codes, TRAINING_BATCH),
    'cornac': models.Cornac(sequences, codes, TRAINING_BATCH),
  }
  for width, batch, k in itertools.product(histories, batches, beams):
    items = sequences.full_histories(max(batches), width)[:batch]
    name = f'history {width}, batch {batch}, beams {k}'
    store.point(name, [*settings, budget], functools.partial(time_cell, sides, items, k, budget))
  ours, items = sides[OURS], sequences.full_histories(users, CHECK_HISTORY)
  checks = {
    'covered': lambda: dict(catalogues=check_covered(ours, items, COVERED)),
    'found fresh': lambda: dict(updates=0, lists=share_found(ours, items, COVERAGE_BEAMS, TOPS)),
    'found trained': lambda: check_trained(ours, items, updates),
  }
  for name, check in checks.items():
    store.point(name, [*settings, users, updates], check)
  parameters = {name: side.parameters for name, side in sides.items()}
  return dict(parameters=parameters, points=store.points)


def time_cell(sides: dict, item_Bxn: np.ndarray, beams: int, budget_s: float) -> dict:
  """Time all models in turn, as often as `budget_s` allows after a round that is not timed.

  A third party that cannot hold the whole batch, or answers one request at a time, is timed on
  `requests` of it, and the batch's seconds are so many times more. `invalid` and `duplicate` count
  list entries that are no item or name one again. `ratios`: their median over ours.
  """
  batch, width = item_Bxn.shape
  at_once = {OURS: batch, 'cornac': CORNAC_REQUESTS}
  at_once['hf_t5'] = sides['hf_t5'].requests_at_once(width, beams, T5_GIB)
  served = {name: largest_divisor(batch, at_once[name]) for name in sides}
  lists = {}

  def serve(name: str) -> None:
    lists[name] = sides[name].serve(item_Bxn[: served[name]], beams)

  calls = {name: functools.partial(serve, name) for name in sides}
  calls[OURS]()  # compiles
  started = time.perf_counter()
  for call in calls.values():
    call()
  round_s = time.perf_counter() - started
  repeats = int(np.clip(budget_s / round_s, MIN_ROUNDS, MAX_ROUNDS))
  measured = {}
  for name, seconds in harness.alternate(calls, repeats, warm_up=0).items():
    of_batch = harness.summary([batch / served[name] * s for s in seconds])
    faults = count_faults(lists[name], len(sides[OURS].codes_IxL))
    measured[name] = of_batch | dict(requests=served[name]) | faults
  ours_s = measured[OURS]['median_s']
  ratios = {name: side['median_s'] / ours_s for name, side in measured.items() if name != OURS}
  return dict(history=width, batch=batch, beams=beams, sides=measured, ratios=ratios)


def largest_divisor(batch: int, most: int) -> int:
  """Return the largest divisor of `batch` that is at most `most`."""
  return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)


def count_faults(item_Bxk: np.ndarray, n_items: int) -> dict:
  """Return how many entries of the lists are no item, and how many name an item again."""
  is_item = (item_Bxk >= 0) & (item_Bxk < n_items)
  repeated = sum(
    int(row.sum()) - len(np.unique(items[row])) for items, row in zip(item_Bxk, is_item)
  )
  return dict(invalid=int((~is_item).sum()), duplicate=repeated)


def check_covered(
  ours: beauty.Ours, item_Bxn: np.ndarray, sizes: tuple[int, ...], seed: int = 0
) -> list[dict]:
  """Compare whole rankings, with as many beams as items, with scoring every item by itself.

  same_but_ties: requests whose scores never rise along our ranking by more than TIE. max_nats: the
  greatest difference of an item's two scores.
  """
  score_BxI, checks = ours.score_all(item_Bxn), []
  for size in sizes:
    allowed_I = np.zeros(score_BxI.shape[1], bool)
    drawn = np.random.default_rng((seed, size)).choice(len(allowed_I), size, replace=False)
    allowed_I[drawn] = True
    ranking = ours.ranking(item_Bxn, size, ours.catalogue(allowed_I))
    along = np.take_along_axis(score_BxI, ranking.item, axis=1)
    complete = (np.sort(ranking.item, axis=1) == np.flatnonzero(allowed_I)).all(axis=1)
    in_order = complete & (np.diff(along, axis=1) <= TIE).all(axis=1)
    nats = float(np.abs(along - ranking.terms.sum(-1)).max())
    counts = dict(items=size, requests=len(item_Bxn), same_but_ties=int(in_order.sum()))
    checks.append(counts | dict(max_nats=nats))
  return checks


def share_found(
  ours: beauty.Ours,
  item_Bxn: np.ndarray,
  beams: tuple[int, ...],
  tops: tuple[int, ...],
) -> list[dict]:
  """Return, by beams and top, the share of the truly best `top` items that the search found."""
  best = np.argsort(-ours.score_all(item_Bxn), axis=1, kind='stable')
  lists = []
  for k in beams:
    items = ours.serve(item_Bxn, k)
    for top in (top for top in tops if top <= k):
      shares = [np.isin(true[:top], row[:top]).mean() for true, row in zip(best, items)]
      found = dict(share=float(np.mean(shares)), all_found=shares.count(1.0))
      lists.append(dict(beams=k, top=top, requests=len(item_Bxn)) | found)
  return lists


def check_trained(ours: beauty.Ours, item_Bxn: np.ndarray, updates: int) -> dict:
  """Train our model and return `share_found`; it stays trained."""
  for _ in range(updates):
    ours.update()
  lists = share_found(ours, item_Bxn, COVERAGE_BEAMS, TOPS)
  return dict(updates=updates, batch=ours.batch, loss=ours.loss, lists=lists)


def _cells(results: dict) -> list[dict]:
  cells = [point for point in results['points'].values() if 'ratios' in point]
  return sorted(cells, key=lambda cell: (cell['history'], cell['batch'], cell['beams']))


def table(results: dict) -> str:
  """Return our seconds and the ratios of every cell, then the checks of our search."""
  lines = [f'{"history":>8}{"batch":>7}{"beams":>7}{"ours, ms":>10}{"HF T5":>8}{"cornac":>8}']
  for cell in _cells(results):
    shape = f'{cell["history"]:>8}{cell["batch"]:>7}{cell["beams"]:>7}'
    ratios = ''.join(f'{cell["ratios"][name]:>7.1f}x' for name in ('hf_t5', 'cornac'))
    lines.append(f'{shape}{1e3 * cell["sides"][OURS]["median_s"]:>10.1f}{ratios}')
  for check in results['points']['covered']['catalogues']:
    same = f'{check["same_but_ties"]} of {check["requests"]} rankings'
    lines.append(f'{check["items"]} items and beams: {same} are the order of the scores')
  for name in ('found fresh', 'found trained'):
    point = results['points'][name]
    for found in point['lists']:
      share = f'{100 * found["share"]:.1f} % of the best {found["top"]}'
      lines.append(f'{point["updates"]} updates, {found["beams"]} beams: {share} found')
  return '\n'.join(lines)


def plot(results: dict, figure_path: pathlib.Path) -> None:
  """Draw requests per second over the batch, a panel for every length of history."""
  from matplotlib.lines import Line2D

  cells = _cells(results)
  histories, batches, beams = (
    sorted({cell[field] for cell in cells}) for field in ('history', 'batch', 'beams')
  )
  names = list(cells[0]['sides'])
  figure, [panels] = harness.panels(1, len(histories), (4.6 * len(histories), 3.8))
  for panel in panels[1:]:
    panel.sharey(panels[0])
  for panel, history in zip(panels, histories, strict=True):
    for k, style in zip(reversed(beams), STYLES, strict=False):
      line = [cell for cell in cells if (cell['history'], cell['beams']) == (history, k)]
      for name in names:
        rates = [cell['batch'] / cell['sides'][name]['median_s'] for cell in line]
        style = style | dict(color=COLORS[name], markersize=4, linewidth=1.2)
        panel.plot([cell['batch'] for cell in line], rates, **style)
    panel.set(xscale='log', yscale='log', xlabel='requests of a batch')
    panel.set_xticks(batches, map(str, batches))
    panel.minorticks_off()
    panel.set_title(f'history of {history} items', loc='left', fontsize=10)
  panels[0].set_ylabel('requests per second')
  handles = [Line2D([], [], color=COLORS[name], label=LABELS[name]) for name in names]
  for k, style in zip(reversed(beams), STYLES, strict=False):
    handles.append(Line2D([], [], color='#444444', markersize=4, label=f'{k} beams', **style))
  place = dict(loc='outside lower center', ncols=len(handles), frameon=False, fontsize=8)
  figure.legend(handles=handles, **place)
  figure.savefig(figure_path, dpi=110)


if __name__ == '__main__':
  harness.main(measure, plot, table, packages=models.PACKAGES)
