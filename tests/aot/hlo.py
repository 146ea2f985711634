"""Reading compiled HLO text: which loops it has, and which collectives run inside them."""

import collections
import re

COLLECTIVE = re.compile(
    r' (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)(?:-start)?\('
)
CALLED = re.compile(r'(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)')
BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


def loops(text: str) -> list[tuple[str, list[str]]]:
  """(op_name of the loop, the collectives that its body runs, also in what it calls) of every while loop."""
  own, calls, whiles, current = collections.defaultdict(list), collections.defaultdict(set), [], ''
  for line in text.splitlines():
    header = re.match(r'(?:ENTRY )?%?([\w.-]+) .*\{$', line)
    if header:
      current = header[1]
      continue
    called = CALLED.findall(line) + [name.strip(' %') for names in BRANCHES.findall(line) for name in names.split(',')]
    calls[current].update(called)
    if ' while(' in line:
      name = re.search(r'op_name="([^"]*)"', line)
      whiles.append((name[1] if name else '', re.search(r'body=%?([\w.-]+)', line)[1]))
    collective = COLLECTIVE.search(line)
    if collective:
      own[current].append(collective[1])

  def inside(body: str) -> list[str]:
    seen, todo = set(), [body]
    while todo:
      name = todo.pop()
      if name not in seen:
        seen.add(name)
        todo += calls[name]
    return [c for name in seen for c in own[name]]

  return [(name, inside(body)) for name, body in whiles]


def assert_rollout_loops_are_local(text: str):
  """No collective in any loop of the rollout; and the text is the right one: it has such loops, and collectives elsewhere."""
  found = loops(text)
  rollout = {name: inside for name, inside in found if '/rollout/' in name}
  assert any(re.search('/rollout/while/body/.*while$', name) for name in rollout), 'no loop over layers inside the decoding loop'
  assert not any(rollout.values()), f'collectives in the loops of the rollout: { {k: v for k, v in rollout.items() if v} }'
  assert any(inside for name, inside in found if '/reflection/' in name), 'no collective in a training loop: nothing was sharded?'
