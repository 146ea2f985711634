"""Reading compiled HLO text: which loops it has, which collectives run in which phase, and how many bytes they send.

A phase is the first of `PHASES` in an operation's scope names (`jax.named_scope` in the step). An instruction in a loop counts
once per iteration: XLA:GPU writes `known_trip_count` beside each loop, and a counted loop's condition compares with a constant;
where neither is found the loop counts once, and the sum is a lower bound.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

PHASES = ('rollout', 'execution', 'reflection')  # anything else, e.g. the optimizers, is `other`
KINDS = 'all-gather|all-reduce|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute|collective-broadcast'
_COLLECTIVE = re.compile(rf'%?([\w.-]+) = (.*?) ({KINDS})(-start)?\(')
_CALLED = re.compile(
  r'(?:body|condition|calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_TRIPS = re.compile(r'known_trip_count[^\d]*(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  kind: str
  phase: str
  in_loop: bool
  times: int  # per run of the program
  sent: float  # bytes that one device sends, all times
  wide: bool  # a group reaches beyond one ICI or NVLink domain
  scope: str  # op_name


@dataclasses.dataclass(frozen=True)
class Loop:
  scope: str
  trips: int | None
  collectives: list[str]  # kinds, also in what the body calls


class Module:
  """Computations of a module: own collectives, calls, loops."""

  def __init__(self, text: str):
    self.lines, self.calls, self.whiles, self.entry, current = (
      {},
      collections.defaultdict(list),
      [],
      '',
      '',
    )
    limits = _limits(text)
    self.devices = math.prod(
      int(n)
      for n in re.findall(r'\b(?:num_partitions|replica_count)=(\d+)', text.split('\n', 1)[0])
    )
    for line in text.splitlines():
      header = re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line)
      if header:
        current = header[2]
        self.entry = current if header[1] else self.entry
        self.lines[current] = []
        continue
      if '=' not in line or not current:
        continue
      called = _CALLED.findall(line) + [
        name.strip(' %') for names in _BRANCHES.findall(line) for name in names.split(',')
      ]
      body = re.search(r'body=%?([\w.-]+)', line) if ' while(' in line else None
      trips = 1
      if body:
        known, condition = _TRIPS.search(line), re.search(r'condition=%?([\w.-]+)', line)
        trips = int(known[1]) if known else limits.get(condition[1] if condition else '')
        self.whiles.append((_scope(line), body[1], trips))
      for name in called:
        self.calls[current].append((name, trips, bool(body), _scope(line)))
      if _COLLECTIVE.search(line):
        self.lines[current].append(line)

  def reached(self, start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
      name = todo.pop()
      if name not in seen:
        seen.add(name)
        todo += [called for called, *_ in self.calls[name]]
    return seen

  def loops(self) -> list[Loop]:
    kinds = lambda body: [
      _COLLECTIVE.search(line)[3]
      for name in self.reached(body)
      for line in self.lines.get(name, ())
    ]
    return [Loop(scope, trips, kinds(body)) for scope, body, trips in self.whiles]

  def collectives(self, domain: int = 0) -> list[Collective]:
    """Every collective once, with how often it runs. `domain`: consecutive devices that share fast links; 0 = all."""
    times, looped, scopes = collections.Counter({self.entry: 1}), set(), {self.entry: ''}
    within = lambda scope, name: (
      scope if phase(scope) != 'other' or not scopes[name] else scopes[name]
    )  # fused ones have no name of their own
    for name in self._order():
      for called, trips, loop, scope in self.calls[name]:
        times[called] += times[name] * (trips or 1)
        scopes.setdefault(called, within(scope, name))
        if loop or name in looped:
          looped.add(called)
    found = []
    for name, lines in self.lines.items():
      for line in lines:
        if times[name]:
          found.append(
            _collective(
              line,
              within(_scope(line), name),
              name,
              times[name],
              name in looped,
              domain,
              self.devices,
            )
          )
    return found

  def _order(self) -> list[str]:
    """Callers before callees."""
    order, seen = [], set()

    def visit(name):
      if name not in seen:
        seen.add(name)
        for called, *_ in self.calls[name]:
          visit(called)
        order.append(name)

    visit(self.entry)
    return order[::-1]


def loops(text: str) -> list[Loop]:
  return Module(text).loops()


def phase(scope: str) -> str:
  parts = re.split(r'[/()]', scope)
  return next((p for p in PHASES if p in parts), 'other')


def _scope(line: str) -> str:
  found = re.search(r'op_name="([^"]*)"', line)
  return found[1] if found else ''


def _limits(text: str) -> dict[str, int]:
  """Trip counts of loops from 0 by 1, by the name of their condition: the constant that the counter is compared with."""
  found, current, constants = {}, '', {}
  for line in text.splitlines():
    header = re.match(r'(?:ENTRY )?%?([\w.-]+) .*\{$', line)
    if header:
      current, constants = header[1], {}
    constant = re.search(r'%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)', line)
    if constant:
      constants[constant[1]] = int(constant[2])
    compare = re.search(r'ROOT .* compare\(.*?, (?:s32\[\]\S* )?%?([\w.-]+)\), direction=LT', line)
    if compare and compare[1] in constants:
      found[current] = constants[compare[1]]
  return found


def _bytes(shape: str) -> list[float]:
  bits = lambda kind: 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
  return [
    math.prod(int(d) for d in dims.split(',') if d) * bits(kind) / 8
    for kind, dims in _ARRAY.findall(re.sub(r'\{[^}]*\}', '', shape))
  ]


def groups(line: str) -> list[list[int]] | None:
  """Device numbers of each group of a collective; None = all devices, or pairs of a permute."""
  listed = re.search(r'replica_groups=\{(\{.*?\})\}', line)
  if listed:
    return [[int(x) for x in g.split(',') if x] for g in re.findall(r'\{([\d,]*)\}', listed[1])]
  iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line)
  if not iota:
    return None
  import numpy as np

  ints = lambda text: [int(x) for x in text.split(',')]
  devices = np.arange(math.prod(ints(iota[2]))).reshape(ints(iota[2]))
  devices = devices.transpose(ints(iota[3])) if iota[3] else devices
  return devices.reshape(ints(iota[1])[0], -1).tolist()


def _collective(
  line: str, scope: str, computation: str, times: int, in_loop: bool, domain: int, devices: int
) -> Collective:
  _, shape, kind, start = _COLLECTIVE.search(line).groups()
  sizes = _bytes(shape)
  found = groups(line)
  pairs = re.search(r'source_target_pairs=\{(\{.*?\})\}', line)
  if pairs:
    found = [[int(x) for x in p.split(',')] for p in re.findall(r'\{([\d,]*)\}', pairs[1])]
  n = len(found[0]) if found else devices  # none named: all are one group
  total = sum(sizes)
  if start and kind in ('all-gather', 'collective-permute'):  # (operands, results, contexts)
    total = max(sizes) if len(sizes) <= 4 else total / 2
  # Ring algorithms (Thakur et al. 2005): an all-gather sends its result less its own part, an all-reduce twice that.
  share = (n - 1) / n
  sent = {
    'all-gather': total * share,
    'all-reduce': 2 * total * share,
    'reduce-scatter': total * (n - 1),
    'collective-permute': total,
  }.get(kind, total * share)
  if (
    kind == 'all-reduce' and 'all-reduce-scatter' in computation
  ):  # XLA:TPU writes a reduce-scatter as an all-reduce that is cut
    sent /= 2
  wide = bool(domain and any(len({d // domain for d in g}) > 1 for g in found or [range(devices)]))
  return Collective(kind, phase(scope), in_loop, times, sent * times, wide, scope)
