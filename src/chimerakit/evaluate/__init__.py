"""Models answer problems, and what they did is measured: accuracy, output tokens, reasoning traces.

problems.py   JSONL -> problems
backends.py   a model that answers: in-process transformers
score.py      one answer -> what it shows (pure)
measure.py    a model and problems -> Measurement
"""
