"""Experiments: a file with get_config(arg) -> Config is one, and imports rolegen_jax.config only. fit_world.py is a tool: it
fits the presets of the simulated world. benchmarks/ holds committed results."""
