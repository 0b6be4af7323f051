"""The page in a real browser, where there is one: what is drawn, and what pointing at it says."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.browser import NAMES, Browser

from chimerakit.records import Role
from chimerakit.report import Named, make_report
from tests.report.results import EVIL, difference, explained, explanation_of, map_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="there is no Chromium here"),
]

KEY = "document.querySelectorAll('.plot')[{}].dispatchEvent(new KeyboardEvent('keydown', {{key: '{}'}}))"
READOUT = "document.querySelectorAll('.readout')[{}].textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A map of two layers of two experts, and an explanation in which names are attacks."""
    units = [
        difference(f"{layer}.{n}", Role("routed_experts", layer, n), (1 + 2 * layer + n) / 1000)
        for layer in range(2)
        for n in range(2)
    ]
    evil = explained(EVIL, "attention", 0, {}, verdict="unexplained", why=EVIL)
    results = [Named("m.npz", map_of(units)), Named(EVIL, explanation_of([evil], parents=(EVIL, "r1"), child=EVIL))]
    path = tmp_path / "page.html"
    path.write_text(make_report(results))
    return path


def test_every_chart_is_drawn_within_the_window(browser: Browser, page: Path) -> None:
    """On a desk and on a phone, light and dark; nothing makes the page wider than the window."""
    for width in (1280, 390):
        browser.open(page, width=width, dark=width == 390)
        figures, drawn = "document.querySelectorAll('figure').length", "document.querySelectorAll('.plot > svg').length"
        assert browser.ask(figures) == browser.ask(drawn) == 4
        assert browser.ask("document.documentElement.scrollWidth") <= width
        background = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 22, 26)" if width == 390 else "rgb(255, 255, 255)")


def test_keys_reach_every_value(browser: Browser, page: Path) -> None:
    """The first key goes to the first cell, arrows go on from there and stop at the ends."""
    browser.open(page, width=800)
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        browser.ask(KEY.format(1, key))
    assert browser.ask(READOUT.format(1)) == "expert 1, layer 1: RMS 0.004"
    browser.ask("document.querySelectorAll('figure')[1].querySelectorAll('.switch button')[3].click()")
    browser.ask(KEY.format(1, "ArrowRight"))
    assert browser.ask(READOUT.format(1)) == "expert 0, layer 0: changed bytes 50 %"


def test_touching_a_cell_shows_its_value(browser: Browser, page: Path) -> None:
    """The cell under the finger."""
    browser.open(page, width=390)
    browser.ask(
        "(() => { const plot = document.querySelectorAll('.plot')[1], box = plot.querySelector('image').getBoundingClientRect();"
        "plot.dispatchEvent(new PointerEvent('pointerdown', {clientX: box.right - 3, clientY: box.top + 3})); })()"
    )
    assert browser.ask(READOUT.format(1)) == "expert 0, layer 1: RMS 0.003"


def test_attacks_in_names_run_nothing(browser: Browser, page: Path) -> None:
    """They are text, in the page and in what pointing at a chart says."""
    browser.open(page, width=800)
    browser.ask(KEY.format(3, "ArrowRight"))
    assert "<img src=x onerror=alert(1)>" in browser.ask(READOUT.format(3))
    assert browser.ask("document.images.length") == 0


def test_the_button_turns_light_to_dark_and_back(browser: Browser, page: Path) -> None:
    """For as long as the page is open; nothing is stored."""
    browser.open(page, width=800)
    shown = []
    for _ in range(3):
        shown.append(browser.ask("getComputedStyle(document.body).backgroundColor"))
        browser.ask("document.getElementById('theme').click()")
    assert shown == ["rgb(255, 255, 255)", "rgb(20, 22, 26)", "rgb(255, 255, 255)"]


def test_it_prints(browser: Browser, page: Path) -> None:
    """As a PDF of some pages."""
    browser.open(page, width=800)
    assert browser.pdf().startswith(b"%PDF-")
