"""Compiling ahead of time, for chips that are not there: topologies, the real programs, reading what the compiler made."""
