"""Reasoning: the FR-CoT layout, rollouts, worlds, hindsight roles and feedback, as
pure functions of arrays; and `RoleGen`, which ties both models together."""
