"""Experiments: each file with get_config() -> Config is one and imports rolegen_jax.config only.
fit_simulator.py is a tool that fits the simulator's presets; benchmarks/ holds committed results.
"""
