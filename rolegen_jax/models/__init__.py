"""Models: the shared transformer stack, the reasoner, the backbone, and the boundary between
modules and plain parameters."""
