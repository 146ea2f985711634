"""Pretrained decoders in and out: what a family's files mean (families), their tensors by name (files), loading, exporting, and the
settings that a folder implies (settings)."""
