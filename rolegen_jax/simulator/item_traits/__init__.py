"""The item-trait simulator: what an item does is a trait of the item, and effects add up.

docs/simulator.md has the rules.
"""
