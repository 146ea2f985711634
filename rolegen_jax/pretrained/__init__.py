"""Pretrained decoders in and out: what a family's files mean (families), tensors by name (files),
loading into shards (load), a whole folder and the settings it implies (folder), and export."""
