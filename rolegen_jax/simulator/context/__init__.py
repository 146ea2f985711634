"""The context simulator: what an event does depends on who meets it, when, and after what.

docs/context_simulator.md has the rules.
"""
