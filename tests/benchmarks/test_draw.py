"""Every result that is there is drawn, one that is not is said, and a picture too large to be committed is an error."""

import json

import pytest

from experiments.benchmarks import draw
from rolegen_jax.config import ConfigError

SUMMARY = dict(median_s=0.5, quartiles_s=[0.4, 0.7], seconds=[0.4, 0.5, 0.7])


def test_what_is_there_is_drawn(tmp_path, monkeypatch):
  found = dict(targets=dict(help_s=1.0), help={'launch.run': dict(wall_s=SUMMARY, cpu_s=SUMMARY)})
  (tmp_path / 'startup.json').write_text(json.dumps(found))
  lines = draw.draw(tmp_path, tmp_path / 'docs' / 'performance')
  assert [path.name for path in (tmp_path / 'docs' / 'performance').iterdir()] == ['startup.png']
  assert any(line.startswith('startup: ') and line.endswith('startup.png') for line in lines)
  assert 'growth: no growth.json; python -m experiments.benchmarks.growth makes it' in lines
  monkeypatch.setattr(draw, 'LIMIT', 1000)
  with pytest.raises(ConfigError, match='startup.png: .* bytes; must be at most 1000'):
    draw.draw(tmp_path, tmp_path)
