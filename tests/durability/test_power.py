"""Loss of power: what stood on the disk at a moment, and nothing that was only in memory, can be gone on from.

The child's file system lies in one file on another that can clone files at once. A clone is the disk as it would be found
after the power is back: mounted, its journal replayed, the same call ends in the same bytes.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from chimerakit.output import is_finished
from tests.durability.disks import disk, make_image, mounted
from tests.durability.kinds import KINDS, make_parents
from tests.effort import examples
from tests.merging import contents

ROOT = Path(__file__).parents[2]
LOSSES = examples(quick=2, ci=4, prove=60)

UNLIKE = {"ext4": "", "xfs": ",nouuid"}
"""Options for mounting a clone of a disk that may be still there."""

CLONER = """
import fcntl, json, os, sys
from itertools import count
from pathlib import Path
from tests.durability.kinds import KINDS
from tests.durability.killer import is_system_call, watch, count_calls

FICLONE = 0x40049409
name, parents, child, image, clones, fractions = sys.argv[1:]
kind = KINDS[name]._replace(threads=1)

def clone(number):
    with open(image, "rb") as source, open(f"{clones}/{number}.img", "wb") as target:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())

total = count_calls(lambda: kind.merge(Path(parents), Path(child + ".first")))
moments = [int(total * f) for f in sorted(json.loads(fractions))]
calls = count()

def hook(_, event, function):
    if is_system_call(event, function):
        now = next(calls)
        if moments and now >= moments[0]:
            moments.pop(0)
            watch(None)
            clone(len(moments))
            watch(hook)

watch(hook)
kind.merge(Path(parents), Path(child))
watch(None)
for number in (*range(len(moments)), "end"):
    clone(number)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("copy", "ext4"), ("fp8 mix", "xfs")])
def test_a_child_survives_the_loss_of_power(name: str, kind: str, tmp_path: Path) -> None:
    """At moments drawn over the calls to the operating system, half of them over the last calls, which finish the child;
    one that looks finished is whole, and one whose merge has returned is finished."""
    make_parents(tmp_path, KINDS[name].storage)
    chance = random.Random(name)
    fractions = [chance.uniform(0.8 * (number % 2), 0.999) for number in range(LOSSES)]
    with disk(tmp_path / "below", "xfs", "4g", "-m", "reflink=1") as below:
        image = make_image(below / "child.img", kind, "400m")
        whole = tmp_path / "whole"
        KINDS[name].merge(tmp_path, whole)
        with mounted(below / "child", "-o", "loop", image) as place:
            command = [
                sys.executable,
                "-c",
                CLONER,
                name,
                tmp_path,
                place / "child",
                image,
                below,
                json.dumps(fractions),
            ]
            done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        for number in (*map(str, range(LOSSES)), "end"):
            with mounted(below / number, "-o", "loop" + UNLIKE[kind], below / f"{number}.img") as found:
                child = found / "child"
                assert is_finished(child) or number != "end"
                if is_finished(child):
                    assert {n: d for n, d in contents(child).items() if "/" not in n} == contents(whole)
                KINDS[name].merge(tmp_path, child)
                assert contents(child) == contents(whole)
