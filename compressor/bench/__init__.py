"""Measures services on this machine: their speed, memory and start, with clients of its own."""
