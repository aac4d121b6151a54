"""This process itself: its signals, threads and memory."""
