"""Serving: ranked items for users of a trained run (recommend), which of them are shown (slate),
and a catalogue that changes meanwhile (hot_swap)."""
