"""Ahead-of-time compilation: the real programs, for chips that are not here."""
