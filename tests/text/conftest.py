"""Prompts, good answers to them, and a file for the answers."""

import pytest

from tests.text import asking


@pytest.fixture
def prompts():
  return asking.prompts()


@pytest.fixture
def good():
  return asking.good_answers()


@pytest.fixture
def answers(tmp_path):
  return tmp_path / 'answers.jsonl'
