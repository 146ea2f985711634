"""What the reasoner said of a request: the events it gave roles, and its worlds.

Shapes: W worlds, M role events, I intents, P candidates of a world.
"""

from __future__ import annotations

from rolegen_jax.config import EVENT_NAMES, ROLE_NAMES
from rolegen_jax.serving.http.items import Items
from rolegen_jax.serving.http.programs import Worlds
from rolegen_jax.serving.http.schema import (
  Candidate,
  Happened,
  Intent,
  Intervention,
  Reasoned,
  World,
)
from rolegen_jax.serving.http.users import History

EXAMPLES = 5  # items that stand for an intent


def happened(history: History, items: Items) -> list[Happened]:
  """Return the rows of a history."""
  rows = zip(*(field.tolist() for field in history))
  return [Happened(items.ids[i], EVENT_NAMES[event], at, n) for i, event, at, n in rows]


def reasoned(history: History, worlds: Worlds, items: Items) -> Reasoned:
  """Return what was said of a history. worlds: of one user, by number."""
  w, slots = worlds.roles.shape
  n = min(len(history.item), slots)  # slots before the first event are empty
  latest = History(*(field[len(field) - n :] for field in history))
  examples = {code: items.examples(code, EXAMPLES) for code in set(worlds.intents.ravel().tolist())}
  return Reasoned(
    events=happened(latest, items),
    worlds=[
      World(
        intervention=_intervention(worlds, world, slots - n),
        intents=[
          Intent(code, examples[code]) for code in dict.fromkeys(worlds.intents[world].tolist())
        ],
        roles=[_role(role) for role in worlds.roles[world, slots - n :].tolist()],
        candidates=[
          Candidate(items.ids[number], log_prob)
          for number, log_prob in zip(
            worlds.candidates[world].tolist(), worlds.candidate_log_prob[world].tolist()
          )
          if number >= 0 and items.is_listed(number)  # kept worlds may name what is gone
        ],
      )
      for world in range(w)
    ],
  )


def _role(role: int) -> str | None:
  return ROLE_NAMES[role] if role >= 0 else None


def _intervention(worlds: Worlds, world: int, first: int) -> Intervention | None:
  """Return what is done in a world. first: the slot of the first event."""
  role_M, removed_M, code = (field[world] for field in worlds.interventions)
  for slot in range(first, len(role_M)):
    if removed_M[slot]:
      return Intervention('remove', event=slot - first)
    if role_M[slot] >= 0:
      return Intervention('role', event=slot - first, role=ROLE_NAMES[role_M[slot]])
  return Intervention('intent', code=int(code)) if code >= 0 else None
