"""Serve compressed GPT-2 artefacts over HTTP: what they are, how small, how good, and what they write.

The event loop speaks HTTP; one engine thread computes. Letters as in `compressor`.
"""
