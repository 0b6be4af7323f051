"""The model of docs/scale.md: held against what was measured, and against cases that can be worked out by hand."""

import pytest
from benchmarks import scale
from benchmarks.scale import Place, Work, predict

PARTS = {"a": 2.0, "b": 1.0, scale.START: 0.5, scale.START_MIXING: 1.5, scale.JOB: 0.01}


def test_the_model_is_within_a_fifth_of_every_run() -> None:
    """Each whole run that was measured, by the parts that were measured in the same hour."""
    _, found = scale.results()
    runs = list(scale.runs_of(found))
    assert len(runs) >= 5
    for run in runs:
        assert abs(run.error) < 0.2, run


def test_the_page_is_current() -> None:
    """docs/scale.md is what the model and the newest results give."""
    assert scale.PAGE.read_text() == scale.page()


@pytest.mark.parametrize(
    ("place", "seconds", "limit"),
    [
        (Place("processors", 1, 2, float("inf"), float("inf")), 25, "processors"),
        (Place("one disk", 1, 10**9, 1, 2, is_one_disk=True), 10 + 5, "disk"),
        (Place("reading", 1, 10**9, 1, float("inf")), 10, "reading: the file system"),
        (Place("links", 4, 10**9, 100, float("inf"), link=0.25), 10, "reading: the machines' links"),
    ],
    ids=lambda value: value.name if isinstance(value, Place) else "",
)
def test_a_single_limit_takes_its_time(place: Place, seconds: float, limit: str) -> None:
    """10 GB are read and written, and 50 CPU seconds computed, all but one of them at no cost."""
    work = Work(10, 0 if "links" in place.name else 10, {"a": 20, "b": 10})
    found = predict(work, place, PARTS)
    assert found.seconds == pytest.approx(0.5 + seconds, rel=1e-3)
    assert found.limit == limit


def test_two_limits_take_more_than_one_and_less_than_both() -> None:
    """Overlap is neither whole nor none."""
    found = predict(Work(10, 10, {}), Place("two disks", 1, 1, 1, 1), PARTS)
    assert 0.5 + 10 < found.seconds < 0.5 + 20


def test_kernels_and_the_last_reading_come_on_top() -> None:
    """Nothing else goes on while kernels are loaded, or while one machine checks what all have done."""
    place = Place("two", 2, 1, 4, 4, link=1)
    assert predict(Work(0, 8, {}, is_mixing=True, read_alone=3), place, PARTS).seconds == pytest.approx(1.5 + 4 + 3)


def test_children_made_together_read_their_parents_once() -> None:
    """What no rule takes is written once, whatever their number."""
    one, nine = (scale.swept(count, 2, 10, "a") for count in (1, 9))
    assert one.read == nine.read == 14
    assert (one.written, nine.written) == (12, 28)
    assert nine.through["a"] == 9 * one.through["a"]
