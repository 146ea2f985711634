"""Compiled HLO, read as text: its loops, the collectives of every phase, and the bytes they send.

A phase is the first of `PHASES` in an operation's scope names (`jax.named_scope` in the step). An
instruction in a loop counts once per iteration: XLA:GPU writes `known_trip_count` beside each loop,
and a counted loop's condition compares with a constant. Where neither is found the loop counts
once, and the sum is a lower bound.

Of several TPU slices the module is that of one slice. What a slice exchanges with the others is
written as a `send` to the runtime that carries it over the data-center network, with the kind of
the collective and the slices that take part as attributes.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np

PHASES = ('rollout', 'execution', 'reflection')  # anything else, e.g. the optimizers, is `other`
KINDS = (
  'all-gather|all-reduce|reduce-scatter|ragged-all-to-all|all-to-all'
  '|collective-permute|collective-broadcast'
)
_COLLECTIVE = re.compile(rf'%?([\w.-]+) = (.*?) ({KINDS})(-start)?\(')
_BETWEEN_SLICES = re.compile(r'= \((.*?), u32\[\]\S*, token\[\]\) send\(.*_xla_megascale_transfer')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')  # {1,2,3,4}x{devices of a slice}
_KIND_OF_TRANSFER = {'ONE_TO_ONE': 'collective-permute'}  # others have the names of collectives
_CALLED = re.compile(
  r'(?:body|condition|calls|to_apply|true_computation|false_computation|called_computations)'
  r'=\{?%?([\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_TRIPS = re.compile(r'known_trip_count[^\d]*(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the program."""

  kind: str
  phase: str
  in_loop: bool
  times: int  # per run of the program
  sent: float  # bytes that one device sends, all times
  wide: bool  # a group reaches beyond one ICI or NVLink domain
  scope: str  # op_name


@dataclasses.dataclass(frozen=True)
class Loop:
  """A loop of the program."""

  scope: str
  trips: int | None
  collectives: list[str]  # kinds, also in what the body calls


@dataclasses.dataclass(frozen=True)
class _Call:
  """A computation that another one calls."""

  name: str
  trips: int | None
  is_loop: bool
  scope: str


class Module:
  """The computations of a module: their collectives, calls and loops."""

  def __init__(self, text: str):
    self._collective_lines: dict[str, list[str]] = {}
    self._calls: dict[str, list[_Call]] = collections.defaultdict(list)
    self._loops: list[tuple[str, str, int | None]] = []  # scope, body, trips
    self._entry = ''
    header = text.split('\n', 1)[0]
    counts = re.findall(r'\b(?:num_partitions|replica_count)=(\d+)', header)
    self.devices = math.prod(int(n) for n in counts)
    self._read(text)

  def _read(self, text: str) -> None:
    limits, current = _limits(text), ''
    for line in text.splitlines():
      header = re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line)
      if header:
        current = header[2]
        self._entry = current if header[1] else self._entry
        self._collective_lines[current] = []
      elif '=' in line and current:
        self._read_instruction(line, current, limits)

  def _read_instruction(self, line: str, computation: str, limits: dict[str, int]) -> None:
    called = _CALLED.findall(line)
    for names in _BRANCHES.findall(line):
      called += [name.strip(' %') for name in names.split(',')]
    body = re.search(r'body=%?([\w.-]+)', line) if ' while(' in line else None
    trips: int | None = 1
    if body:
      known, condition = _TRIPS.search(line), re.search(r'condition=%?([\w.-]+)', line)
      trips = int(known[1]) if known else limits.get(condition[1] if condition else '')
      self._loops.append((_scope(line), body[1], trips))
    for name in called:
      self._calls[computation].append(_Call(name, trips, bool(body), _scope(line)))
    if _COLLECTIVE.search(line) or _BETWEEN_SLICES.search(line):
      self._collective_lines[computation].append(line)

  def reached(self, start: str) -> set[str]:
    """Return the computations that `start` calls, directly or not, and itself."""
    seen: set[str] = set()
    stack = [start]
    while stack:
      name = stack.pop()
      if name not in seen:
        seen.add(name)
        stack += [call.name for call in self._calls[name]]
    return seen

  def loops(self) -> list[Loop]:
    """Return every loop."""
    return [Loop(scope, trips, self._kinds(body)) for scope, body, trips in self._loops]

  def _kinds(self, body: str) -> list[str]:
    lines = (line for name in self.reached(body) for line in self._collective_lines.get(name, ()))
    return [_traffic(line, '', 0, self.devices)[0] for line in lines]

  def collectives(self, domain: int = 0) -> list[Collective]:
    """Return every collective once, with how often it runs.

    `domain` consecutive devices share a fast interconnect; 0 = all. What goes to other slices is
    wide whatever it is.
    """
    times = collections.Counter({self._entry: 1})
    in_loops: set[str] = set()
    scopes = {self._entry: ''}

    def scope_in(scope: str, computation: str) -> str:
      """Fused instructions have no scope of their own: theirs is that of the caller."""
      caller = scopes[computation]
      return scope if phase(scope) != 'other' or not caller else caller

    for name in self._callers_first():
      for call in self._calls[name]:
        times[call.name] += times[name] * (call.trips or 1)
        scopes.setdefault(call.name, scope_in(call.scope, name))
        if call.is_loop or name in in_loops:
          in_loops.add(call.name)
    collectives = []
    for name, lines in self._collective_lines.items():
      for line in lines if times[name] else ():
        kind, sent, wide = _traffic(line, name, domain, self.devices)
        scope = scope_in(_scope(line), name)
        in_loop, total = name in in_loops, sent * times[name]
        collectives.append(Collective(kind, phase(scope), in_loop, times[name], total, wide, scope))
    return collectives

  def _callers_first(self) -> list[str]:
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
      if name not in seen:
        seen.add(name)
        for call in self._calls[name]:
          visit(call.name)
        order.append(name)

    visit(self._entry)
    return order[::-1]


def loops(text: str) -> list[Loop]:
  """Return every loop of a module's text."""
  return Module(text).loops()


def phase(scope: str) -> str:
  """Return the phase of a scope."""
  parts = re.split(r'[/()]', scope)
  return next((name for name in PHASES if name in parts), 'other')


def _scope(line: str) -> str:
  match = re.search(r'op_name="([^"]*)"', line)
  return match[1] if match else ''


def _match(line: str) -> re.Match[str]:
  match = _COLLECTIVE.search(line)
  assert match, line
  return match


def _limits(text: str) -> dict[str, int]:
  """Return the trip counts of loops from 0 by 1, by the name of their condition.

  It is the constant that the counter is compared with.
  """
  limits: dict[str, int] = {}
  current = ''
  constants: dict[str, int] = {}
  for line in text.splitlines():
    header = re.match(r'(?:ENTRY )?%?([\w.-]+) .*\{$', line)
    if header:
      current, constants = header[1], {}
    constant = re.search(r'%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)', line)
    if constant:
      constants[constant[1]] = int(constant[2])
    compare = re.search(r'ROOT .* compare\(.*?, (?:s32\[\]\S* )?%?([\w.-]+)\), direction=LT', line)
    if compare and compare[1] in constants:
      limits[current] = constants[compare[1]]
  return limits


def _bytes(shape: str) -> list[float]:
  """Return the bytes of every array of a shape."""
  sizes = []
  for kind, dims in _ARRAY.findall(re.sub(r'\{[^}]*\}', '', shape)):
    digits = re.search(r'\d+', kind)
    bits = int(digits[0]) if digits and kind != 'pred' else 8
    sizes.append(math.prod(int(d) for d in dims.split(',') if d) * bits / 8)
  return sizes


def groups(line: str) -> list[list[int]] | None:
  """Return the device numbers of each group of a collective.

  None = all devices, or pairs of a permute.
  """
  listed = re.search(r'replica_groups=\{(\{.*?\})\}', line)
  if listed:
    return [_ints(group) for group in re.findall(r'\{([\d,]*)\}', listed[1])]
  iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line)
  if not iota:
    return None
  shape = _ints(iota[2])
  devices = np.arange(math.prod(shape)).reshape(shape)
  devices = devices.transpose(_ints(iota[3])) if iota[3] else devices
  return devices.reshape(_ints(iota[1])[0], -1).tolist()


def _ints(text: str) -> list[int]:
  return [int(part) for part in text.split(',') if part]


def _traffic(line: str, computation: str, domain: int, devices: int) -> tuple[str, float, bool]:
  """Return (kind, bytes that a device sends in one run, is it wide) of a collective."""
  between_slices = _BETWEEN_SLICES.search(line)
  if between_slices:
    return (*_transfer(line, between_slices[1]), True)
  _, shape, kind, start = _match(line).groups()
  sizes = _bytes(shape)
  members = groups(line)
  pairs = re.search(r'source_target_pairs=\{(\{.*?\})\}', line)
  if pairs:
    members = [_ints(pair) for pair in re.findall(r'\{([\d,]*)\}', pairs[1])]
  n = len(members[0]) if members else devices  # none named: all are one group
  total = sum(sizes)
  if start and kind in ('all-gather', 'collective-permute'):  # (operands, results, contexts)
    total = max(sizes) if len(sizes) <= 4 else total / 2
  sent = _sent(kind, total, n)
  # XLA:TPU writes a reduce-scatter as an all-reduce that is cut.
  if kind == 'all-reduce' and 'all-reduce-scatter' in computation:
    sent /= 2
  reach = members or [list(range(devices))]
  wide = domain > 0 and any(len({device // domain for device in group}) > 1 for group in reach)
  return kind, sent, wide


def _sent(kind: str, result: float, n: int) -> float:
  """Return the bytes that each of `n` members sends for a result of so many bytes.

  Ring algorithms (Thakur et al. 2005): an all-gather sends its result less its own part, an
  all-reduce twice that.
  """
  share = (n - 1) / n
  return {
    'all-gather': result * share,
    'all-reduce': 2 * result * share,
    'reduce-scatter': result * (n - 1),
    'collective-permute': result,
  }.get(kind, result * share)


def _transfer(line: str, operand: str) -> tuple[str, float]:
  """Return (kind, bytes that a device sends in one run) of what goes to other slices.

  operand: the shape that is sent; a device's part of what its slice holds.
  """
  name = _TRANSFER.findall(line)[0]
  kind = _KIND_OF_TRANSFER.get(name, name.lower().replace('_', '-'))
  listed = _SLICES.search(line)
  ranges = (
    [[int(end) for end in part.split(':')] for part in listed[1].split(',')] if listed else []
  )
  n = sum(1 + ends[-1] - ends[0] for ends in ranges) or 2  # unnamed: it sends at least half
  size = sum(_bytes(operand))
  return kind, _sent(kind, {'all-gather': size * n, 'reduce-scatter': size / n}.get(kind, size), n)
