"""Counts how fuzzed calls ended, and says how to run a case again."""

import collections

import mutate
import pytest


@pytest.fixture(autouse=True)
def way_to_run_it_again(request):
  """Print the command; pytest shows it where the case fails."""
  print(f"again: python -m pytest '{request.node.nodeid}'")


@pytest.fixture
def attempt(request):
  """`mutate.attempt`, counted."""

  def counted(call):
    outcome = mutate.attempt(call)
    request.node.user_properties.append(('fuzz', 'refused' if outcome.refusal else 'read'))
    return outcome

  return counted


def pytest_terminal_summary(terminalreporter):
  """Say for each test how many calls were refused and how many read."""
  counts = collections.Counter()
  for report in terminalreporter.getreports('passed'):
    if report.when == 'call':
      test = report.nodeid.partition('[')[0].rpartition('/')[2]
      counts.update((test, ended) for name, ended in report.user_properties if name == 'fuzz')
  for (test, ended), count in sorted(counts.items()):
    terminalreporter.write_line(f'fuzz: {test}: {count} {ended}')
