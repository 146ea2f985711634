"""Training: losses, the steps that apply them, the state born sharded, and the host loop around a
stage with its checkpoints and metrics."""
