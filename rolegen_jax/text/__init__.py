"""Text as tokens of the one vocabulary."""
