"""Models: the shared transformer stack, the reasoner, the backbone, and the functional boundary to plain parameters."""
