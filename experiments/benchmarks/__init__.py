"""Benchmarks: each command measures both sides in one run and writes a JSON file of its name here, with provenance. `draw.py`
makes the pictures of docs/performance.md from those files."""
