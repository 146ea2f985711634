import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rolegen_jax.config import EvaluationConfig
from rolegen_jax.evaluation import report
from rolegen_jax.evaluation.agreement import effect_agreement, role_agreement
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


def systems(model_hits: bool):
  """Two systems on 40 occasions, one always right and one never."""
  n = 40
  pairs = Pairs(np.arange(n), np.arange(n), np.ones(n, bool), np.arange(n, dtype=np.int8) % 2, n)
  right, wrong = np.arange(n)[:, None], np.full((n, 1), n)
  lists = {
    'RoleGen': right if model_hits else wrong,
    'recency <7 d>': wrong if model_hits else right,
  }
  config, codes = (
    EvaluationConfig(bootstrap=20),
    np.stack([np.arange(n + 1) % 5, np.arange(n + 1)], 1),
  )
  made = {
    name: dict(
      kind=kind,
      metrics=evaluate(lists[name], pairs, config, codes),
      settings={'tau': 604800.0},
      diversity=list_diversity(lists[name], codes, np.ones(n + 1)),
    )
    for name, kind in (('RoleGen', 'model'), ('recency <7 d>', 'baseline'))
  }
  return made, {'recency <7 d>': compare(lists['RoleGen'], lists['recency <7 d>'], pairs, config)}


def content(model_hits: bool = True) -> dict:
  made, differences = systems(model_hits)
  rng = np.random.default_rng(0)
  roles = rng.integers(0, 8, 50)
  interval = {k: Interval(0.1 * k, 0.05 * k, 0.2 * k, 9, 9) for k in (1, 2)}
  deletion = {
    'by effects': dict(drop=interval, minus_random=interval),
    'random': dict(drop=interval),
  }
  return dict(
    title='A test',
    provenance=PROVENANCE,
    systems=made,
    differences=differences,
    notes=['A note.'],
    training=[dict(stage='loop', step=s, loss=1.0 / (s + 1), reward=float(s)) for s in range(5)],
    roles=dict(
      shares={'hindsight': {'TRIGGER': 1.0}, 'predicted': {'EXPLORE': 1.0}},
      agreement=role_agreement(roles, roles),
      effects=effect_agreement(rng.normal(size=20), rng.normal(size=20)),
      deletion=deletion,
    ),
    worlds=world_diversity(
      rng.integers(0, 9, (3, 2, 4)), np.stack([np.arange(9) % 3, np.arange(9)], 1), np.ones(9)
    )
    | dict(
      systems={
        name: dict(
          jaccard=0.5,
          union_size=7.0,
          hits=dict(all=Interval(hit, 0.1, 0.4, 9, 9)),
          difference=dict(all=Interval(0.3 - hit, 0.0, 0.2, 9, 9)),
        )
        for name, hit in (('RoleGen', 0.3), ('no_counterfactual', 0.2))
      }
    ),
    semantic_ids={'items': 1200, 'perplexity': {'level 0': 3.5}},
    trajectories=[
      dict(
        user='u1',
        cohort='D2',
        target='scarf',
        rank=2,
        k=10,
        events=[
          dict(when=f'day {d}', item=f'item {d} <b>', event='view', role='TRIGGER')
          for d in range(20)
        ],
        worlds=[
          dict(name='Factual', event=-1, change='', candidates=['scarf', 'hat']),
          dict(name='World 1', event=19, change='remove event 20', candidates=['hat']),
          dict(name='World 2', event=0, change='remove event 1', candidates=['hat']),
        ],
      )
    ],
  )


class Tags(HTMLParser):
  """Ids of sections, and a check that tags close in order."""

  VOID = ('meta', 'br', 'path', 'use', 'link', 'input', 'img')

  def __init__(self, text):
    super().__init__()
    self.ids, self.open = [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag in ('section', 'header'):
      self.ids.append(dict(attributes)['id'])
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag


def test_all_sections_and_nothing_from_outside(tmp_path):
  page = report.write_report(tmp_path, content()).read_text()
  tags = Tags(page)
  assert tuple(tags.ids) == SECTIONS and tags.open == []
  assert not re.search(r'https?://|src=|@import|url\((?!#)', page), (
    'the page must not ask for anything'
  )
  assert re.findall(r'href="(?!#|data:)[^"]*"', page) == []
  assert 'SIMULATED DATA' in page and 'recency &lt;7 d&gt;' in page and '<b>' not in page
  assert (
    '6 earlier events not drawn' in page
    and '(event not drawn)' in page
    and page.count('class="hitmark"') == 1
  )
  ids = re.findall(r' id="([^"]+)"', page)
  assert len(ids) == len(set(ids)), 'plots on one page must not share ids'
  assert page.count('<svg') == 8
  stored = json.loads((tmp_path / 'report.json').read_text())
  assert stored['systems']['RoleGen']['metrics']['dormant']['HI@10']['mean'] == 1.0
  assert {'config_digest', 'commit'} <= set(stored['provenance'])


def test_a_winning_floor_is_said_plainly(tmp_path):
  page = report.write_report(tmp_path, content(model_hits=False)).read_text()
  assert 'A baseline stands above RoleGen' in page and 'does not beat' in page
  page = report.write_report(tmp_path, content(model_hits=True)).read_text()
  assert 'A baseline stands above' not in page and '<strong>beats</strong>' in page


def test_words_stand_in_their_table_and_beside_their_events(tmp_path):
  made = content()
  made['trajectories'][0]['sentences'] = dict(
    events=['looks around'] * 20, intents=['wants a scarf']
  )
  asked = [
    dict(
      question='text -> semantic ID', items=which, number=12, chance=0.01, align=0.625, loop=0.25
    )
    for which in ('shown', 'held out')
  ]
  page = report.write_report(tmp_path, made | dict(alignment=asked)).read_text()
  assert Tags(page).ids.count('alignment') == 1 and 'built-in method' not in page
  cells = ('text -&gt; semantic ID', 'held out', '12', '62.5 %', '25.0 %', '1.0 %')
  assert ''.join(f'<td>{cell}</td>' for cell in cells) in page
  assert page.count('looks around') == 20 and 'wants a scarf' in page


def test_missing_sections_are_left_out(tmp_path):
  page = report.write_report(
    tmp_path, dict(title='Bare', provenance=PROVENANCE | {'simulated': False})
  ).read_text()
  assert Tags(page).ids == ['headline'] and 'REAL LOG' in page


def test_without_provenance_there_is_no_report(tmp_path):
  with pytest.raises(ValueError, match='provenance.commit'):
    report.write_report(
      tmp_path, dict(title='x', provenance={k: v for k, v in PROVENANCE.items() if k != 'commit'})
    )
  assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_no_number(tmp_path):
  report.write_report(
    tmp_path,
    dict(
      title='x', provenance=PROVENANCE, semantic_ids={'r2': np.float32('nan'), 'n': np.int64(3)}
    ),
  )
  assert json.loads((tmp_path / 'report.json').read_text())['semantic_ids'] == {'r2': None, 'n': 3}
  assert '–' in (tmp_path / 'report.html').read_text()
