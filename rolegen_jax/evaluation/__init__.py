"""Evaluation: metrics, baselines, diversity, agreement with known truths, and the report."""
