"""Reasoning: the FR-CoT layout, rollouts, counterfactual worlds, hindsight roles, feedback. Pure functions of arrays."""
