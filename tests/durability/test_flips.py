"""One flipped bit, anywhere in any file of a child, is noticed by `verify`."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chimerakit.errors import ChimerakitError
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import MANIFEST
from chimerakit.records import Checkpoint
from chimerakit.runners.local import Threads
from chimerakit.verify import verify_child
from tests import synthetic
from tests.effort import examples
from tests.merging import contents, merge

pytestmark = pytest.mark.usefixtures("impatient")

FLIPS = examples(quick=3, ci=12, prove=400)
"""For each file, and for each part of a weight file."""
RULES = "- {take: r1, components: routed_experts}\n- {mix: {r1: 0.75}, components: [shared_experts, norm]}"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parents and a child of theirs."""
    root = tmp_path_factory.mktemp("family")
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed, "fp8", config=synthetic.SMALL, mtp=False)
        synthetic.write_checkpoint(
            root / name, tensors, synthetic.config_of("fp8", synthetic.SMALL, mtp=False), shards=2
        )
    (root / "v3/figures").mkdir()
    (root / "v3/figures/one.svg").write_text("<svg/>")
    merge({name: root / name for name in ("v3", "r1")}, RULES, root / "child")
    return root


@pytest.fixture(scope="module")
def parents(family: Path) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(family / name) for name in ("v3", "r1")}


def is_proven(child: Path, parents: dict[str, Checkpoint] | None) -> bool:
    """Whether `verify` exits with 0."""
    try:
        return verify_child(child, parents, runner=Threads(1)).ok
    except ChimerakitError:
        return False


def parts_of(name: str, data: bytes) -> Iterator[tuple[str, range]]:
    """Places in a file: of weights, the header's length, its text, the padding after it, the tensors, their last bytes."""
    if not name.endswith(".safetensors"):
        yield name, range(len(data))
        return
    end = 8 + int.from_bytes(data[:8], "little")
    text = 8 + len(data[8:end].rstrip(b" "))
    places = {"length": (0, 8), "header": (8, text), "padding": (text, end), "tensors": (end, len(data))}
    yield from ((f"{name} {part}", range(*ends)) for part, ends in places.items() if ends[0] < ends[1])
    yield f"{name} end", range(len(data) - 16, len(data))


def flips(family: Path, seed: str) -> Iterator[tuple[Path, int, int]]:
    """(file, byte, bit) drawn for each place of each file but the manifest."""
    chance = random.Random(seed)
    for name, data in contents(family / "child").items():
        for _, places in parts_of(name, data) if name != MANIFEST else ():
            for _ in range(FLIPS):
                yield family / "child" / name, chance.choice(places), chance.randrange(8)


def is_noticed(file: Path, byte: int, bit: int, parents: dict[str, Checkpoint] | None, family: Path) -> bool:
    """Flip a bit, verify, and flip it back."""
    before = file.read_bytes()
    data = bytearray(before)
    data[byte] ^= 1 << bit
    try:
        file.write_bytes(data)
        return not is_proven(family / "child", parents)
    finally:
        file.write_bytes(before)


def test_padding_is_among_the_places(family: Path) -> None:
    """The places that are tried are there: a shard has all five, other files are one each."""
    found = {
        place.split()[-1] for name, data in contents(family / "child").items() for place, _ in parts_of(name, data)
    }
    assert {"length", "header", "padding", "tensors", "end", "config.json", "figures/one.svg"} <= found
    assert is_proven(family / "child", None)


def test_a_flipped_bit_is_noticed_without_parents(family: Path) -> None:
    """In weights, headers, padding, config, index, tokenizer, card, licence."""
    missed = [flip for flip in flips(family, "alone") if not is_noticed(*flip, None, family)]
    assert missed == []


@pytest.mark.slow
def test_a_flipped_bit_is_noticed_with_parents(family: Path, parents: dict[str, Checkpoint]) -> None:
    """A proof against the parents is no weaker than one against the manifest."""
    missed = [flip for flip in flips(family, "parents") if not is_noticed(*flip, parents, family)]
    assert missed == []


@pytest.mark.slow
def test_a_flipped_bit_in_the_manifest_is_noticed_with_parents(family: Path, parents: dict[str, Checkpoint]) -> None:
    """Anywhere but in the version that wrote it, which is free."""
    file = family / "child" / MANIFEST
    data = file.read_bytes()
    version = json.dumps(json.loads(data)["chimerakit"]).encode()
    free = data.index(version, data.index(b'"chimerakit"') + 1) + 1
    chance, missed = random.Random("manifest"), []
    for _ in range(20 * FLIPS):
        byte, bit = chance.randrange(len(data)), chance.randrange(8)
        if not free <= byte < free + len(version) - 2 and not is_noticed(file, byte, bit, parents, family):
            missed.append((byte, bit, data[byte - 20 : byte + 20]))
    assert missed == []
