"""mergekit-yaml, run by the Python of its own environment: `python -P benchmarks/peer.py [--raw-names] CONFIG OUT`.

--raw-names is the work-around that makes it merge DeepSeek checkpoints at all: without the layout that it infers from
transformers (where experts are fused tensors, which no file holds), it falls back to the names in the files.
"""

import sys

from mergekit.architecture import auto
from mergekit.scripts.run_yaml import main


def no_transformers(*_: object, **__: object) -> tuple[None, None, None, None]:
    return None, None, None, None


if __name__ == "__main__":
    if "--raw-names" in sys.argv:
        sys.argv.remove("--raw-names")
        auto.get_transformers_info = no_transformers
    main()
