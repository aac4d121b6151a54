"""Experiments as small files of differences, and their committed results."""
