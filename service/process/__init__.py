"""This process and its container: threads, memory, logs."""
