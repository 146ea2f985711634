import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rolegen_jax.config import EvaluationConfig
from rolegen_jax.evaluation import report, role_scores
from rolegen_jax.evaluation.agreement import effect_agreement, role_agreement
from rolegen_jax.evaluation.content import experts, short_lists, table
from rolegen_jax.evaluation.diversity import list_diversity, world_diversity
from rolegen_jax.evaluation.metrics import Interval, Pairs, compare, evaluate

SECTIONS = (
  'headline',
  'results',
  'differences',
  'diversity',
  'training',
  'roles',
  'worlds',
  'semantic-ids',
  'trajectories',
)
PROVENANCE = dict(
  data='made up for a test',
  simulated=True,
  when='2026-01-01',
  device_kind='cpu',
  versions={'jax': '0'},
  commit='0',
  seed=0,
  config_digest='0',
)


def systems(model_hits: bool) -> tuple[dict, dict]:
  """Return (two systems on 40 occasions, one always right and one never; their differences)."""
  n = 40
  cohort = np.arange(n, dtype=np.int8) % 2
  pairs = Pairs(np.arange(n), np.arange(n), np.arange(n), np.ones(n, bool), cohort, n)
  right, wrong = np.arange(n)[:, None], np.full((n, 1), n)
  lists = {
    'RoleGen': right if model_hits else wrong,
    'recency <7 d>': wrong if model_hits else right,
  }
  config = EvaluationConfig(bootstrap=20)
  codes = np.stack([np.arange(n + 1) % 5, np.arange(n + 1)], 1)
  by_name = {
    name: dict(
      kind=kind,
      metrics=evaluate(lists[name], pairs, config, codes),
      settings={'tau': 604800.0},
      diversity=list_diversity(lists[name], codes, np.ones(n + 1)),
    )
    for name, kind in (('RoleGen', 'model'), ('recency <7 d>', 'baseline'))
  }
  difference = compare(lists['RoleGen'], lists['recency <7 d>'], pairs, config)
  return by_name, {'recency <7 d>': difference}


def content(model_hits: bool = True) -> dict:
  """Return the content of a report that has every section except words."""
  by_name, differences = systems(model_hits)
  rng = np.random.default_rng(0)
  return dict(
    title='A test',
    provenance=PROVENANCE,
    systems=by_name,
    differences=differences,
    notes=['A note.'],
    training=[dict(stage='loop', step=s, loss=1.0 / (s + 1), reward=float(s)) for s in range(5)],
    roles=roles(rng),
    worlds=worlds(rng),
    semantic_ids={'items': 1200, 'perplexity': {'level 0': 3.5}},
    trajectories=[trajectory()],
  )


def roles(rng: np.random.Generator) -> dict:
  role = rng.integers(0, 8, 50)
  curve = {k: Interval(0.1 * k, 0.05 * k, 0.2 * k, 9, 9) for k in (1, 2)}
  compared = [f'{gain}minus_{other}' for gain in ('', 'gain_') for other in ('random', 'recency')]
  compared += ['drop', 'gain']
  score = role_scores.scores(rng.dirichlet(np.ones(8), (5, 10)), role.reshape(5, 10))
  return dict(
    shares={'hindsight': {'TRIGGER': 1.0}, 'predicted': {'EXPLORE': 1.0}},
    scores={'told the intent': {'RoleGen': score, 'the most that can be known': score}},
    judged_by='planted roles',
    agreement=role_agreement(role, role),
    effects=effect_agreement(rng.normal(size=20), rng.normal(size=20)),
    deletion={
      'by effects': dict.fromkeys(compared, curve),
      'random': dict(drop=curve, gain=curve),
    },
  )


def worlds(rng: np.random.Generator) -> dict:
  codes = np.stack([np.arange(9) % 3, np.arange(9)], 1)
  by_system = {
    name: dict(
      jaccard=0.5,
      union_size=7.0,
      hits=dict(all=Interval(hits, 0.1, 0.4, 9, 9)),
      difference=dict(all=Interval(0.3 - hits, 0.0, 0.2, 9, 9)),
    )
    for name, hits in (('RoleGen', 0.3), ('no_interventions', 0.2))
  }
  figures = world_diversity(rng.integers(0, 9, (3, 2, 4)), codes, np.ones(9))
  return figures | dict(systems=by_system)


def trajectory() -> dict:
  events = [
    dict(when=f'day {d}', item=f'item {d} <b>', event='view', role='TRIGGER') for d in range(20)
  ]
  return dict(
    user='u1',
    cohort='D2',
    target='scarf',
    rank=2,
    k=10,
    events=events,
    worlds=[
      dict(name='Factual', event=-1, change='', candidates=['scarf', 'hat']),
      dict(name='World 1', event=19, change='remove event 20', candidates=['hat']),
      dict(name='World 2', event=0, change='remove event 1', candidates=['hat']),
    ],
  )


class Tags(HTMLParser):
  """The ids of a page's sections; asserts that tags close in order."""

  VOID = ('meta', 'br', 'path', 'use', 'link', 'input', 'img')

  def __init__(self, text: str):
    super().__init__()
    self.ids, self.open = [], []
    self.feed(text)

  def handle_starttag(self, tag: str, attrs: list) -> None:
    if tag in ('section', 'header'):
      self.ids.append(dict(attrs)['id'])
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag: str) -> None:
    if tag not in self.VOID:
      assert self.open.pop() == tag


def test_the_page_has_all_sections_and_loads_nothing(tmp_path):
  page = report.write_report(tmp_path, content()).read_text()
  tags = Tags(page)
  assert tuple(tags.ids) == SECTIONS and tags.open == []
  assert not re.search(r'https?://|src=|@import|url\((?!#)', page), 'the page must load nothing'
  assert re.findall(r'href="(?!#|data:)[^"]*"', page) == []
  assert 'SIMULATED DATA' in page and 'recency &lt;7 d&gt;' in page and '<b>' not in page
  assert '6 earlier events are not drawn' in page and '(event not drawn)' in page
  assert page.count('class="hitmark"') == 1
  ids = re.findall(r' id="([^"]+)"', page)
  assert len(ids) == len(set(ids)), 'plots on one page must not share ids'
  assert page.count('<svg') == 10
  stored = json.loads((tmp_path / 'report.json').read_text())
  assert stored['systems']['RoleGen']['metrics']['dormant']['HI@10']['mean'] == 1.0
  assert {'config_digest', 'commit'} <= set(stored['provenance'])


def test_the_page_says_when_a_baseline_wins(tmp_path):
  page = report.write_report(tmp_path, content(model_hits=False)).read_text()
  assert 'A baseline ranks above RoleGen' in page and 'does not beat' in page
  page = report.write_report(tmp_path, content(model_hits=True)).read_text()
  assert 'A baseline ranks above' not in page and '<strong>beats</strong>' in page


def test_systems_have_plain_names_on_the_page_and_keys_in_the_json(tmp_path):
  names = {
    'RoleGen': 'RoleGen',
    'RoleGen_exposure_penalty': 'RoleGen, exposure penalty',
    'no_reasoner': 'no reasoner',
    'no_reasoner_exposure_penalty': 'no reasoner, exposure penalty',
    'item_knn': 'ItemKNN',
    'item_transitions': 'item transitions',
    'u2i': 'U2I',
  }
  everything = content()
  model, baseline = everything['systems'].values()
  (difference,) = everything['differences'].values()
  everything['systems'] = {name: model if name == 'RoleGen' else baseline for name in names}
  everything['differences'] = {name: difference for name in names if name != 'RoleGen'}
  everything['training'] += [
    row | dict(stage='ablations/no_reasoner') for row in everything['training']
  ]
  page = report.write_report(tmp_path, everything).read_text()
  stored = json.loads((tmp_path / 'report.json').read_text())
  assert list(stored['systems']) == list(names)
  assert list(stored['worlds']['systems']) == ['RoleGen', 'no_interventions']
  for key, name in names.items():
    assert f'<td>{name} <span class="kind">' in page
    assert key == name or key not in page
  assert '<td>no interventions</td>' in page and 'no_interventions' not in page
  assert '<h3>ablation: no reasoner</h3>' in page


def test_cold_targets_have_tables_on_the_page_and_in_print(tmp_path):
  n = 40
  cohort, cold = np.where(np.arange(n) < 30, 0, 3).astype(np.int8), np.arange(n) % 4 == 0
  pairs = Pairs(np.arange(n), np.arange(n), np.arange(n), np.ones(n, bool), cohort, n, cold)
  lists = {'RoleGen': np.where(cold, -1, np.arange(n))[:, None], 'recency': np.arange(n)[:, None]}
  config = EvaluationConfig(ks=(1, 10), bootstrap=20)
  by_name = {
    name: dict(kind=kind, metrics=evaluate(lists[name], pairs, config))
    for name, kind in (('RoleGen', 'model'), ('recency', 'baseline'))
  }
  differences = {'recency': compare(lists['RoleGen'], lists['recency'], pairs, config)}
  everything = content() | dict(systems=by_name, differences=differences)
  page = report.write_report(tmp_path, everything).read_text()
  assert '<h3>dormant cold <span class="kind">8 targets of 8 users' in page
  assert '<h3>all cold <span class="kind">10 targets of 10 users' in page
  stored = json.loads((tmp_path / 'report.json').read_text())
  assert stored['systems']['RoleGen']['metrics']['dormant cold']['HI@10']['mean'] == 0
  assert stored['differences']['recency']['all cold']['mean'] == -1
  printed = table(by_name, differences, [1, 10]).splitlines()
  at = next(i for i, line in enumerate(printed) if line.startswith('dormant cold (8 targets)'))
  assert printed[at + 1].split() == ['RoleGen', '0.00', '0.00']
  assert printed[at + 2].split()[:4] == ['recency', '100.00', '100.00', '-100.00']
  assert any(line.startswith('all cold (10 targets)') for line in printed)


def test_words_have_a_table_and_stand_beside_their_events(tmp_path):
  everything = content()
  everything['trajectories'][0]['sentences'] = dict(
    events=['looks around'] * 20, intents=['wants a scarf']
  )
  question = dict(question='text -> semantic ID', number=12, chance=0.01, align=0.625, loop=0.25)
  everything['alignment'] = [question | dict(items=kind) for kind in ('shown', 'held out')]
  page = report.write_report(tmp_path, everything).read_text()
  assert Tags(page).ids.count('alignment') == 1 and 'built-in method' not in page
  row = ('text -&gt; semantic ID', 'held out', '12', '62.5 %', '25.0 %', '1.0 %')
  assert ''.join(f'<td>{cell}</td>' for cell in row) in page
  assert page.count('looks around') == 20 and 'wants a scarf' in page


def test_missing_sections_are_left_out(tmp_path):
  bare = dict(title='Bare', provenance=PROVENANCE | {'simulated': False})
  page = report.write_report(tmp_path, bare).read_text()
  assert Tags(page).ids == ['headline'] and 'REAL LOG' in page


def test_there_is_no_report_without_provenance(tmp_path):
  provenance = {key: value for key, value in PROVENANCE.items() if key != 'commit'}
  with pytest.raises(ValueError, match='provenance.commit'):
    report.write_report(tmp_path, dict(title='x', provenance=provenance))
  assert list(tmp_path.iterdir()) == []


def test_nan_is_shown_as_a_dash(tmp_path):
  figures = {'r2': np.float32('nan'), 'n': np.int64(3)}
  report.write_report(tmp_path, dict(title='x', provenance=PROVENANCE, semantic_ids=figures))
  assert json.loads((tmp_path / 'report.json').read_text())['semantic_ids'] == {'r2': None, 'n': 3}
  assert '–' in (tmp_path / 'report.html').read_text()


def test_ks_beyond_the_catalogue_and_short_lists_are_noted():
  full, short = np.tile(np.arange(8), (4, 1)), np.tile(np.arange(8), (4, 1))
  short[0, 5:] = -1
  lists = dict(RoleGen=('model', short, {}), popularity=('baseline', full, {}))
  assert short_lists((1, 5), 8, lists) == []
  assert short_lists((1, 10, 50), 8, lists) == [
    'The catalogue has 8 items: no list has k = 10, 50 places, and none misses there.'
  ]
  assert short_lists((1, 8), 8, lists) == [
    'Lists of fewer than 8 items, which miss what they have no place for: RoleGen 25.0 %.'
  ]


def test_a_note_says_what_is_left_without_each_expert():
  right, wrong = (systems(model_hits)[0]['RoleGen'] for model_hits in (True, False))
  assert experts({'RoleGen': right, 'no_reasoner': wrong}, 'HI@1') == []
  (note,) = experts({'RoleGen': right, 'without_dense': wrong, 'without_history': right}, 'HI@1')
  assert note == (
    'Each expert left out, the weights of the others fitted again: HI@1 on dormant targets '
    '100.00 % with all of them, without dense 0.00 %, without history 100.00 %.'
  )
