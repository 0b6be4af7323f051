"""Defaults that the library and the command line share. The command line shows them in its help and loads nothing for that."""

MAX_TOKENS = 4096
"""Output tokens of an answer at most: room for reasoning."""
