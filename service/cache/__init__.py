"""Contracted rows, products and answers, in this process and in Redis."""
