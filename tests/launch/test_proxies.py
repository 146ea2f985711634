"""Proxies of the environment stand before no process of a job, and the doctor names them."""

import os
import re

import pytest

from launch import checks
from rolegen_jax.runtime import distributed
from tests.launch.test_processes import run_job

NOWHERE = 'http://127.0.0.1:9'  # the port discard: nothing listens there


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
  for name in (*distributed.PROXIES, 'no_proxy', 'NO_PROXY', 'no_grpc_proxy'):
    monkeypatch.delenv(name, raising=False)


def test_processes_find_each_other_past_a_proxy(tmp_path, monkeypatch):
  for name in distributed.PROXIES:
    monkeypatch.setenv(name, NOWHERE)
  monkeypatch.setenv('no_proxy', 'example.com')
  codes, output = run_job(tmp_path, 2, '--differ')
  assert codes == [2, 2] and output.count('config: process 1 (') == 2, output


@pytest.mark.parametrize('fails', [False, True])
def test_proxies_are_hidden_while_a_job_is_joined_and_back_afterwards(monkeypatch, fails):
  values = {'http_proxy': NOWHERE, 'HTTPS_PROXY': 'http://two', 'no_proxy': 'a', 'grpc_proxy': ''}
  for name, value in values.items():
    monkeypatch.setenv(name, value)
  before = dict(os.environ)
  try:
    with distributed.without_proxies():
      assert not [name for name in distributed.PROXIES if name in os.environ]
      assert os.environ['no_proxy'] == 'a'
      if fails:
        raise TimeoutError
  except TimeoutError:
    assert fails
  assert dict(os.environ) == before


@pytest.mark.parametrize(
  'name', ['http_proxy', 'https_proxy', 'all_proxy', 'grpc_proxy', 'HTTP_PROXY']
)
def test_the_doctor_warns_of_a_proxy_before_the_coordinator(monkeypatch, name):
  assert checks.proxy('localhost:1').state == checks.OK
  monkeypatch.setenv(name, NOWHERE)
  check = checks.proxy('node0.lan:8476')
  assert check.state == checks.WARNING
  assert check.detail == f'{name}: set, and no_proxy does not name the coordinator node0.lan'
  assert 'export no_proxy=node0.lan NO_PROXY=node0.lan on every host' in check.advice


@pytest.mark.parametrize(
  ('exempt', 'coordinator', 'state'),
  [
    ('localhost', 'localhost:8476', checks.OK),
    ('a.com, localhost ', 'localhost:8476', checks.OK),
    ('*', 'node0.lan:8476', checks.OK),
    ('.lan', 'node0.lan:8476', checks.OK),
    ('lan', 'node0.lan:8476', checks.OK),
    ('::1', '[::1]:8476', checks.OK),
    ('an', 'node0.lan:8476', checks.WARNING),
    ('node1.lan', 'node0.lan:8476', checks.WARNING),
  ],
)
@pytest.mark.parametrize('variable', ['no_proxy', 'NO_PROXY'])
def test_the_doctor_knows_what_no_proxy_exempts(monkeypatch, variable, exempt, coordinator, state):
  monkeypatch.setenv('https_proxy', NOWHERE)
  monkeypatch.setenv(variable, exempt)
  check = checks.proxy(coordinator)
  assert check.state == state, check
  if state == checks.WARNING:
    assert re.search(f'no_proxy={exempt},node0.lan NO_PROXY={exempt},node0.lan', check.advice)


def test_a_coordinator_with_an_ipv6_address():
  assert checks.port('[::1]:0').state == checks.FAILED
  assert checks.port('[::1]:8499').detail.startswith('[::1]:8499')
