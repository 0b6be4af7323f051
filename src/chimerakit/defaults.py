"""Defaults that the library and the command line share. Its help shows them, so nothing is loaded for them."""

MAX_TOKENS = 4096
"""Output tokens of an answer at most: room for reasoning."""
