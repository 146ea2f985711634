"""The page of explanations: real items have no names, simulated ones have their titles."""

import polars as pl

from experiments.benchmarks.explanations import ITEMS, USERS, evidence, table

LETTER = dict(event='view', days_ago=1.5, role='ANCHOR', nats=0.25)


def _row(user: str, rank: int, item: int, why: str, carried: list[int]) -> dict:
  events = [dict(item_id=i, **LETTER) for i in carried]
  return dict(user_id=user, rank=rank, item_id=item, why=why, carried_by=events)


def test_a_public_item_is_a_letter_everywhere() -> None:
  why = 'world 2 (without the view of 4711) +0.3; seen before; carried by view of 4711 2 d ago'
  shown = table(
    pl.DataFrame([_row('u', 1, 815, why, [4711]), _row('u', 2, 4711, why, [815])]), None
  )
  assert '4711' not in shown and '815' not in shown
  first, second = shown.splitlines()[2:]
  assert '1. A' in first and 'view of B, 1.5 d ago, ANCHOR +0.25' in first
  assert 'world 2 (without the view) +0.3; seen before' in first
  forced = why.replace('without the view of 4711', 'the view of 4711 as ANCHOR')
  assert 'world 2 (the view as ANCHOR) +0.3' in evidence(dict(why=forced))
  assert '2. B' in second and 'view of A' in second


def test_a_simulated_item_has_its_title_and_users_are_spread() -> None:
  rows = [_row(f'u{u}', rank, u, 'history +1.0', []) for u in range(9) for rank in (1, 2, 3)]
  frame = pl.DataFrame(rows, schema_overrides=dict(carried_by=pl.List(pl.Struct(EVENT))))
  lines = table(frame, {u: f'title {u}' for u in range(9)}).splitlines()[2:]
  assert len(lines) == USERS * ITEMS
  assert [line.split('|')[2].strip() for line in lines[::ITEMS]] == [
    '1. title 0',
    '1. title 3',
    '1. title 6',
  ]
  assert all('no single event' in line for line in lines)


EVENT = dict(
  item_id=pl.Int64, event=pl.String, days_ago=pl.Float64, role=pl.String, nats=pl.Float64
)
