"""Structure-aware fuzzing: inputs that are nearly right, each from one seed, and what must be true of all of them.

trees.py       JSON and YAML trees that can say a key twice, and random changes of them
headers.py     safetensors files          test_headers.py      beside the reference reader
gguf.py        GGUF files                 test_gguf.py         beside llama.cpp's reader and gguf-py's
recipes.py     recipes                    test_recipes.py      a stable recipe, or one clear error
manifests.py   manifests of a real child  test_manifests.py    findings, or one clear error

Generators are plain functions of `random.Random(seed)`: hypothesis would take a day for a million inputs. A failure
notes its seed and input; `make(seed)` of the generator gives the input again.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.effort import EFFORT, examples

LEAST_ACCEPTED = 0.2
"""Of all inputs: fuzzing with noise that the first check refuses would prove nothing about the others."""


def seeds(*, quick: int, ci: int, prove: int) -> range:
    """Seeds for the effort that was asked for: the same ones each time, but for proofs, which look at new ones."""
    first = random.SystemRandom().randrange(1 << 48) if EFFORT == "prove" else 0
    return range(first, first + examples(quick=quick, ci=ci, prove=prove))


@contextmanager
def reproducible(seed: int, content: object) -> Iterator[None]:
    """What goes wrong inside is told with its seed and input."""
    try:
        yield
    except Exception as e:
        e.add_note(f"seed {seed}: {content!r}")
        raise


def is_clear(message: str) -> bool:
    """Whether a refusal is one that a person can read: a few lines, no novel, nothing that moves the cursor."""
    lines = message.split("\n")
    return bool(lines[0]) and len(lines) <= 6 and len(message) < 1500 and all(map(str.isprintable, lines))
