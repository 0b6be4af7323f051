"""What is said of routers, as figures of what is kept."""

import math
from typing import Any

import msgspec
import pytest

from chimerakit.compare import Choices, RouterDifference

CHOICES = Choices(tokens=10, top_k=2, shared=15, same=6, loads_a=(9, 8, 2, 1), loads_b=(9, 4, 5, 2))


def router_of(**figures: Any) -> RouterDifference:
    found = RouterDifference(layer=3, gate="g", cosines=(0.5, None, -0.5, 1.0), norm_changes=())
    return msgspec.structs.replace(found, **figures)


def test_choices_have_shares_of_experts_and_of_tokens() -> None:
    """15 of 20 experts chosen by both, 6 of 10 tokens alike, and the second expert's load falls by 4."""
    assert (CHOICES.overlap, CHOICES.same_tokens, CHOICES.most_shifted) == (0.75, 0.6, 1)


def test_figures_are_of_the_experts_that_have_them() -> None:
    """None is no zero."""
    found = router_of(norm_changes=(0.1, None, -0.3, 0.0), bias_changes=(3.0, -4.0, None, 0.0))
    assert (found.least_cosine, found.median_cosine) == (-0.5, 0.5)
    assert (found.largest_norm_change, found.largest_bias_change) == (0.3, 4.0)
    assert found.bias_rms == pytest.approx(math.sqrt(25 / 3))


def test_there_are_no_figures_of_nothing() -> None:
    """A gate of zeros, or no bias, has none."""
    found = router_of(cosines=(None, None), norm_changes=(None, None))
    assert {found.least_cosine, found.median_cosine, found.largest_norm_change} == {None}
    assert {found.largest_bias_change, found.bias_rms} == {None}
