"""A recipe with ranges -> children -> measurements.

sharing.py   which files of several children are equal, and what of them is new on the disk (pure)
build.py     plans -> children: what they have in common is made once
"""
