"""Packed training rows on disk for logs that do not fit in memory."""
