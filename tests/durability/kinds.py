"""The kinds of merges that accidents happen to, over parents of some ten megabytes that are quickly made."""

from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from chimerakit.events import Listener, ignore
from chimerakit.merge import Merged, merge_parents
from chimerakit.records import Plan
from chimerakit.runners.local import Threads
from chimerakit.stores import part
from tests import synthetic
from tests.merging import MIX, R1T, plan_of

SEGMENT = 1 << 20
"""Bytes of a job: small, so that there are many."""

CONFIG = synthetic.CONFIG | {
    "hidden_size": 512,
    "n_routed_experts": 8,
    "moe_intermediate_size": 256,
    "intermediate_size": 512,
    "vocab_size": 512,
}


class Kind(NamedTuple):
    """A merge of two parents."""

    storage: str
    """Of both parents."""
    rules: str
    output: str = ""
    threads: int = 1
    sha256: bool = False
    link: bool = False
    segment: int = SEGMENT

    def plan(self, parents: Path) -> Plan:
        """Its plan; the parents are in this folder."""
        pair = {name: parents / f"{name} {self.storage}" for name in ("v3", "r1")}
        return plan_of(pair, self.rules, output=self.output, segment_nbytes=self.segment)

    def merge(self, parents: Path, child: Path, *, listener: Listener = ignore) -> Merged:
        """Make the child, or go on making it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                part, "_DIRECT", part.PAGE
            )  # jobs are small, and shall write past the page cache all the same
            return merge_parents(
                self.plan(parents),
                child,
                runner=Threads(self.threads),
                sha256=self.sha256,
                link=self.link,
                listener=listener,
            )


KINDS = {
    "copy": Kind("fp8", R1T),
    "copy, by rule": Kind("fp8", R1T, "shards: by-rule", threads=2),
    "copy, linked": Kind("fp8", "- {take: r1, tensors: model.norm.weight}", link=True, threads=2),
    "copy, sha256": Kind("bf16", R1T, sha256=True, threads=2),
    "bf16 mix": Kind("bf16", MIX),
    "fp8 mix": Kind("fp8", MIX, threads=2),
    "fp8 to bf16": Kind("fp8", R1T, "dtype: bf16", threads=3),
    "bf16 mix to fp8": Kind("bf16", MIX, "dtype: fp8-block", threads=2),
}


def make_parents(root: Path, storage: str) -> None:
    """Two unequal parents of random finite weights; in v3, scales lie in other shards than their weights."""
    for seed, name in enumerate(("v3", "r1")):
        synthetic.write_checkpoint(
            root / f"{name} {storage}",
            random_tensors(seed, storage),
            synthetic.config_of(storage, CONFIG),
            shards=4 - seed,
            shuffle=8 if name == "v3" else None,
        )


def random_tensors(seed: int, storage: str) -> dict[str, synthetic.Array]:
    """Weights of random bits, all finite and of like size; norms are those of every other seed."""
    found: dict[str, synthetic.Array] = {}
    for name, shape, kind in synthetic.layout(CONFIG):
        chance = np.random.default_rng([len(found), 0 if "norm" in name else seed])
        if kind == "bias":
            found[name] = chance.random(shape, np.float32)
        elif kind == "linear" and storage == "fp8":
            codes = chance.integers(0, 127, shape, np.uint8) | chance.integers(0, 2, shape, np.uint8) << 7
            found[name] = codes.view(ml_dtypes.float8_e4m3fn)
            blocks = tuple(-(-size // 128) for size in shape)
            found[name + "_scale_inv"] = chance.random(blocks, np.float32) + np.float32(0.5)
        else:
            bits = chance.integers(0, 1 << 16, shape, np.uint16) & 0x81FF | 0x3C00
            found[name] = bits.view(ml_dtypes.bfloat16)
    return found
