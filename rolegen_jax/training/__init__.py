"""Training: state born sharded, the losses and the joint train step, and the host loop around it with data, metrics and checkpoints."""
