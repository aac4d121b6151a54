"""Continuous batching: which request generates next, and with what."""
