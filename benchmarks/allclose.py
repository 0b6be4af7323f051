"""How people proved a child by hand: torch.allclose of every tensor with its parent's, in float32.

`python -m benchmarks.allclose CHILD V3 R1`. Kinder than the published loops, which compare with both parents and open a
file for every tensor: each tensor is compared only with the parent that it should be from, and files stay open.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from benchmarks.check import Folder, is_expert


def main() -> int:
    unequal = 0
    with ExitStack() as stack:
        child, v3, r1 = (Folder(Path(path), stack) for path in sys.argv[1:4])
        for name in child.names:
            mine, theirs = child.get(name), (r1 if is_expert(name) else v3).get(name)
            if mine is None or theirs is None:
                unequal += 1
            else:
                unequal += not torch.allclose(mine.to(torch.float32), theirs.to(torch.float32), atol=1e-5, rtol=1e-5)
        print(f"{len(child.names)} tensors, {unequal} unlike their parent's")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
