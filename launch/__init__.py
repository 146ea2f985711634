"""Launching on a laptop, SLURM, TPU VMs and GKE. Never imports jax."""
