"""A run from log to report: the stages in reading order, and how each one is cached."""
