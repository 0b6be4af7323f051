"""Whether a child is right, with safetensors and torch only: `python -m benchmarks.check CHILD V3 R1 SHARE`.

Routed experts must be R1's (share 1) or the float32 mix of docs/numerics.md, all else V3's. Prints one line; exit code 1
if a tensor is missing or has other bytes. Mixed experts are sampled, all other tensors compared whole.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tests import naive

_SAMPLES = 24


class Folder:
    """Tensors of a checkpoint, by name."""

    def __init__(self, path: Path, stack: ExitStack):
        opened = [stack.enter_context(safe_open(file, "pt")) for file in sorted(path.glob("*.safetensors"))]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - no dict
        self.names = tuple(self._files)

    def get(self, name: str) -> torch.Tensor | None:
        return self._files[name].get_tensor(name) if name in self._files else None


def is_expert(name: str) -> bool:
    return ".mlp.experts." in name


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> str:
    if a is None or b is None:
        return "missing"
    if a.dtype != b.dtype:
        return f"{str(b.dtype).removeprefix('torch.')} stored as {str(a.dtype).removeprefix('torch.')}"
    return "right" if a.shape == b.shape and a.view(torch.uint8).equal(b.view(torch.uint8)) else "wrong"


def mixed(v3: Folder, r1: Folder, name: str, share: float) -> tuple[torch.Tensor, ...]:
    """The mix by the rule: a weight, with its scales if it is FP8."""
    scale = name + "_scale_inv"
    parts: list[list[Any]] = [[f.get(n) for n in (name, scale) if n in f.names] for f in (v3, r1)]
    total = naive.term(1 - share, *parts[0]) + naive.term(share, *parts[1])
    return naive.to_blocks(total, False, torch.float32) if len(parts[0]) == 2 else (total.bfloat16(),)


def error(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    """RMS difference relative to the RMS wanted."""
    if found is None:
        return 1.0
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def main() -> int:
    paths, share = [Path(word) for word in sys.argv[1:4]], float(sys.argv[4])
    outcomes: Counter[str] = Counter()
    errors: list[float] = []
    with ExitStack() as stack:
        child, v3, r1 = (Folder(path, stack) for path in paths)
        experts = [n for n in v3.names if is_expert(n) and not n.endswith("_scale_inv")]
        for name in v3.names:
            if not is_expert(name) or share == 1:
                outcomes[same(child.get(name), (r1 if is_expert(name) else v3).get(name))] += 1
        if share != 1:
            for name in experts[:: max(1, len(experts) // _SAMPLES)]:
                made = mixed(v3, r1, name, share)
                outcomes[same(child.get(name), made[0])] += 1
                errors.append(error(child.get(name), made[0]))
                if len(made) == 2:
                    outcomes[same(child.get(name + "_scale_inv"), made[1])] += 1
        extra = set(child.names) - set(v3.names)
        said = [f"{len(child.names)} of {len(v3.names)} tensors"] + [f"{extra} more"] * bool(extra)
        what = "compared" if share == 1 else f"compared ({len(errors)} mixed ones sampled)"
        said.append(f"{what}: " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
        if max(errors, default=0.0) > 0:
            said.append(f"mixed ones within {max(errors):.1e} (relative RMS)")
        print("; ".join(said))
    return 0 if set(outcomes) == {"right"} and not extra else 1


if __name__ == "__main__":
    sys.exit(main())
