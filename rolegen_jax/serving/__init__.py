"""Serving: ranked items for users of a trained run, in batches over all devices and hosts."""
