"""The process around a run: distributed start-up, heartbeats, progress, provenance, compilation."""
