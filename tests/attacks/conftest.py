"""What the attacks share: a process that makes attempts, and files that hold what it shall fall for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.fuzzing.conftest import memory as memory


@pytest.fixture(scope="session")
def attempt() -> Iterator[Attacker]:
    """Runs the command line and measures it."""
    attacker = Attacker()
    yield attacker
    attacker.close()


@pytest.fixture
def file(memory: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where one weight file goes, gone after the test: some are large."""
    path = memory / f"{request.node.name.partition('[')[0]}.safetensors"
    yield path
    path.unlink(missing_ok=True)
