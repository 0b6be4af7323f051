"""Models answer problems, and what they did is measured: accuracy, output tokens, reasoning traces.

records.py     everything that is passed along
tasks.py       files of problems -> Task
backends/      engines that answer: transformers, llama.cpp, any OpenAI-compatible server
answers.py     answers on disk, appended as they come
identity.py    whose answers they are
traces.py      text -> reasoning trace and what follows, and what is odd (pure)
scorers.py     text -> the answer in it, right or wrong (pure)
score.py       what an engine gave back -> what it shows (pure)
statistics.py  means with intervals, by the bootstrap (pure)
summary.py     answers -> Measurement; two models -> Difference (pure)
wording.py     a tokenizer and a chat template without weights: the tokens that all models read
reading.py     models read texts: how likely they are, what routers receive
routers.py     what routers do with it
run.py         models and tasks -> Evaluation: what is missing is asked
"""

from chimerakit.evaluate.run import Options, Subject, evaluate_models
from chimerakit.evaluate.tasks import load_task

__all__ = ["Options", "Subject", "evaluate_models", "load_task"]
