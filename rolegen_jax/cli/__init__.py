"""The commands: one file each, flags and a call; `entry.py` holds what they share."""
