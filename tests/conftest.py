"""What tests share: how hard hypothesis tries, and a disk that nobody waits for."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.effort import EFFORT, examples

settings.register_profile(
    EFFORT,
    max_examples=examples(quick=25, ci=100, prove=1000),
    deadline=None,
    derandomize=EFFORT != "prove",  # the same examples each time, so that a change is what turns a test red
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile(EFFORT)


@pytest.fixture(scope="module")
def impatient() -> Iterator[None]:
    """For tests in which nothing loses power, so that nothing need wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield
