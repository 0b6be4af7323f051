"""Receipts are taken for what they were made for: this recipe, these options and parents, jobs cut like this, these bytes."""

import json
import random
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chimerakit.errors import OutputError
from chimerakit.merge import Merged, merge_parents
from chimerakit.records import Plan
from chimerakit.runners.local import Threads
from tests import synthetic
from tests.effort import examples
from tests.merging import MIX, MIX_ALL, R1T, contents, interrupt, plan_of

pytestmark = pytest.mark.usefixtures("impatient")

CONFIG = synthetic.CONFIG | {"num_hidden_layers": 2, "hidden_size": 130, "n_routed_experts": 2}


class Wish(NamedTuple):
    """What somebody may want in an output folder."""

    rules: str = MIX
    output: str = ""
    r1: str = "r1"
    segment: int = 30_000
    sha256: bool = False
    allow_nonfinite: bool = False

    def plan(self, parents: Path) -> Plan:
        """Its plan."""
        pair = {"v3": parents / "v3", "r1": parents / self.r1}
        return plan_of(pair, self.rules, output=self.output, segment_nbytes=self.segment)

    def merge(self, parents: Path, child: Path, *, force: bool = False) -> Merged:
        """Make it."""
        return merge_parents(
            self.plan(parents),
            child,
            runner=Threads(1),
            force=force,
            sha256=self.sha256,
            allow_nonfinite=self.allow_nonfinite,
        )

    def begin(self, parents: Path, child: Path) -> set[int]:
        """Make some of it; returns the jobs that are done."""
        plan = self.plan(parents)
        return interrupt(plan, child, after=250_000, sha256=self.sha256, allow_nonfinite=self.allow_nonfinite)


WISHES = {
    "usual": Wish(),
    "another share": Wish(rules=MIX.replace("0.75", "0.7")),
    "more units": Wish(rules=MIX_ALL),
    "whole experts": Wish(rules=R1T),
    "another layout": Wish(output="shards: by-rule"),
    "another dtype": Wish(output="dtype: bf16"),
    "other weights": Wish(r1="sister"),
    "larger jobs": Wish(segment=60_000),
    "smaller jobs": Wish(segment=20_000),
    "with sha256": Wish(sha256=True),
    "with NaN": Wish(allow_nonfinite=True),
}
PAIRS = sorted(permutations(WISHES, 2))
DRAWN = random.Random(3).sample(PAIRS, examples(quick=3, ci=20, prove=len(PAIRS)))


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate(("v3", "r1", "sister")):
        tensors = synthetic.tensors_of(seed, "fp8", config=CONFIG)
        synthetic.write_checkpoint(root / name, tensors, synthetic.config_of("fp8", CONFIG), shards=2)
    return root


@pytest.fixture(scope="module")
def wholes(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Every wish's files, made without an accident."""
    found, root = {}, tmp_path_factory.mktemp("wholes")
    for name in sorted({name for pair in DRAWN for name in pair}):
        WISHES[name].merge(parents, root / name)
        found[name] = contents(root / name)
    return found


@pytest.mark.parametrize(("begun", "wanted"), DRAWN)
def test_what_was_begun_for_one_wish_is_not_used_for_another(
    begun: str, wanted: str, parents: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Refused without a change; with --force all of it is made anew."""
    child = tmp_path / "child"
    assert WISHES[begun].begin(parents, child)
    before = contents(child)
    with pytest.raises(OutputError, match="--force"):
        WISHES[wanted].merge(parents, child)
    assert contents(child) == before
    assert WISHES[wanted].merge(parents, child, force=True).jobs_reused == 0
    assert contents(child) == wholes[wanted]


@pytest.mark.parametrize(("begun", "wanted"), DRAWN)
def test_receipts_that_were_carried_over_are_not_taken(
    begun: str, wanted: str, parents: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Not even together with the bytes that they tell of: jobs of the same number run again."""
    carried = WISHES[begun].begin(parents, tmp_path / "other")
    done = WISHES[wanted].begin(parents, tmp_path / "child")
    for file in sorted((tmp_path / "other").rglob("*")):
        place = tmp_path / "child" / file.relative_to(tmp_path / "other")
        if file.is_file() and file.name != "plan.json" and place.exists():
            shutil.copyfile(file, place)
    assert WISHES[wanted].merge(parents, tmp_path / "child").jobs_reused <= len(done - carried)
    assert contents(tmp_path / "child") == wholes[wanted]


def spots(data: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON document."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [spot for key, value in list(items) for spot in ((data, key), *spots(value))]


def edit(file: Path, chance: random.Random) -> None:
    """Change or delete one thing in a JSON file."""
    data = json.loads(file.read_text())
    where, key = chance.choice(spots(data))
    old = where[key]
    if chance.random() < 0.2:
        del where[key]
    elif isinstance(old, str):
        where[key] = "0" + old[1:] if old[:1] != "0" else "1" + old[1:]
    elif isinstance(old, int | float):
        where[key] = old + chance.choice([1, -1, 0.001])
    else:
        where[key] = chance.choice([None, 0.02, {}, []])
    file.write_text(json.dumps(data))


@pytest.mark.parametrize("seed", range(examples(quick=2, ci=20, prove=300)))
def test_a_receipt_that_was_edited_is_not_taken(
    seed: int, parents: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Whatever was changed in it, the child and its manifest are as if it had never been."""
    chance = random.Random(seed)
    done = WISHES["usual"].begin(parents, tmp_path / "child")
    edit(tmp_path / f"child/.chimerakit/receipts/{chance.choice(sorted(done))}.json", chance)
    merged = WISHES["usual"].merge(parents, tmp_path / "child")
    assert merged.jobs_reused == len(done) - 1
    assert contents(tmp_path / "child") == wholes["usual"]


@pytest.mark.parametrize("seed", range(examples(quick=1, ci=10, prove=200)))
def test_bytes_that_do_not_fit_their_receipt_are_written_again(
    seed: int, parents: Path, wholes: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """A bit flipped anywhere in what an interrupted merge had written."""
    chance, child = random.Random(seed), tmp_path / "child"
    WISHES["usual"].begin(parents, child)
    file = chance.choice(sorted(child.glob("*.safetensors*")))
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    WISHES["usual"].merge(parents, child)
    assert contents(child) == wholes["usual"]
