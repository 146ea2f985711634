"""Counts over training events: how contact with an item shifts interest (`interest_shift`), which
coarse codes it excites (`excitation`), and which items follow it (`item_transitions`). Imports the
core and `data`."""
