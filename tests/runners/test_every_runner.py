"""One scenario on every runner: wherever jobs are done, the same bytes and the same findings come of them."""

from pathlib import Path

import pytest

from chimerakit.runners import Runner
from chimerakit.runners.local import Threads
from tests.durability.kinds import make_parents
from tests.runners.engines import Shipped, everything


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    make_parents(root, "fp8")
    return root


@pytest.fixture(scope="module")
def expected(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What one thread makes."""
    return everything(parents, tmp_path_factory.mktemp("one"), Threads(1))


@pytest.mark.parametrize("runner", [Threads(4), Shipped()], ids=["threads", "shipped"])
def test_every_runner_gives_the_same(
    runner: Runner, parents: Path, expected: dict[str, object], tmp_path: Path
) -> None:
    """Children byte for byte, manifest included, and whatever is found out about them, are those of one thread."""
    found = everything(parents, tmp_path, runner)
    assert found.keys() == expected.keys()
    for what, right in expected.items():
        assert found[what] == right, what


def test_the_scenario_is_a_real_one(expected: dict[str, object]) -> None:
    """It makes three children of many files, and everything that is looked at is found to hold."""
    files = expected["bytes"]
    assert isinstance(files, dict)
    assert sum(name.endswith("chimerakit.json") for name in files) == 3
    assert expected["verified"].ok  # type: ignore[attr-defined]
    assert expected["proven"].ok  # type: ignore[attr-defined]
    assert expected["table"].is_explained  # type: ignore[attr-defined]
    assert expected["explained"].is_explained  # type: ignore[attr-defined]
    assert expected["inspected"].ok  # type: ignore[attr-defined]
