"""What tests share: how hard hypothesis tries, a disk and threads that nobody waits for."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.effort import EFFORT, examples

# Matrices are so small that BLAS threads only wait for each other. It looks when numpy is loaded, so that processes that
# tests start are not told.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("OPENBLAS_NUM_THREADS", "1")
    import numpy as np  # noqa: F401

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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests with torch on tensors so small that its threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
