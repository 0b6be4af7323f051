"""Intervals: against scipy's bootstrap, and against what is known."""

import numpy as np
import pytest
import scipy.stats

from chimerakit.evaluate import statistics
from chimerakit.evaluate.statistics import Bootstrap


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("kind", ["shares", "tokens"])
def test_the_interval_of_a_mean_is_scipys(count: int, kind: str) -> None:
    """By the same method, percentiles; both are drawn, so a little noise is left."""
    rng = np.random.default_rng(count)
    values = rng.integers(0, 2, count).astype(float) if kind == "shares" else rng.lognormal(4, 1, count)
    found = Bootstrap(count).mean(list(values))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.05 * width)


def test_the_interval_of_a_ratio_is_scipys() -> None:
    """Of means of pairs, drawn together."""
    rng = np.random.default_rng(3)
    below = rng.lognormal(4, 0.5, 100)
    above = below * rng.uniform(0.4, 0.8, 100)
    found = Bootstrap(100).ratio(list(above), list(below))
    assert found is not None
    theirs = scipy.stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        n_resamples=20_000,
        method="percentile",
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.05 * width)


def test_pairing_makes_differences_sharp() -> None:
    """What is common to both sides of a pair is in no difference."""
    rng = np.random.default_rng(5)
    theirs = rng.lognormal(4, 1, 300)
    mine = theirs - 10 + rng.normal(0, 1, 300)
    paired = Bootstrap(300).mean(list(mine - theirs))
    assert paired.low < -10 + 0.3
    assert paired.high > -10 - 0.3
    assert paired.high - paired.low < 0.5
    alone = Bootstrap(300).mean(list(mine))
    assert alone.high - alone.low > 5


def test_intervals_hold_what_they_say() -> None:
    """Of 400 experiments with 60 problems each, about 95 % of the intervals have the true mean in them."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        found = Bootstrap(60, resamples=500).mean(list(rng.binomial(1, 0.7, 60).astype(float)))
        hits += found.low <= 0.7 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_the_same_answers_give_the_same_interval() -> None:
    """Draws have a seed; how they are cut into pieces does not matter."""
    values = [float(n % 3) for n in range(1000)]
    kept = Bootstrap(1000).mean(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_KEPT", 0)
        patch.setattr(statistics, "_PIECE", 7001)
        again = Bootstrap(1000).mean(values)
    for name in ("value", "low", "high"):
        assert getattr(again, name) == pytest.approx(getattr(kept, name), abs=1e-12)


def test_what_can_not_be_known_is_none() -> None:
    """No ratio to nothing; a mean that never varies has no width."""
    assert Bootstrap(3).ratio([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) is None
    found = Bootstrap(3).mean([1.0, 1.0, 1.0])
    assert (found.value, found.low, found.high) == (1, 1, 1)
    with pytest.raises(ValueError, match="no problems"):
        Bootstrap(0)
