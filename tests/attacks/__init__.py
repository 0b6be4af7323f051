"""Attacks by files: one file for each, which says what it tries and what stops it, in the manner of safetensors'.

attempt.py runs the command line on them in a process whose time and memory are measured.
"""
