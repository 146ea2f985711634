"""Training experiments: each file has get_config(arg) -> Config. Configs only: imports rolegen_jax.config and nothing else."""
