"""Continuous batching: who generates next, and with what."""
