"""Training: state born sharded, the losses and THE step, and the host loop around it with data, metrics and checkpoints."""
