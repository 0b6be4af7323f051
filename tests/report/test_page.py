"""The page: one file that needs nothing else, in which no name of a file becomes markup."""

import re
import sys
from pathlib import Path

import pytest

from chimerakit.compare import DifferenceMap, save_map
from chimerakit.errors import MissingExtraError, ResultError
from chimerakit.records import COMPONENTS, Role
from chimerakit.report import Named, make_report
from tests.merging import run_python
from tests.report.results import EVIL, IDENTITY, Page, difference, explained, explanation_of, map_of, router

LAYERS, EXPERTS = 61, 256


def full_size_map() -> DifferenceMap:
    """61 layers and the MTP layer of 256 experts and of everything else, no two alike."""
    units = [
        difference(
            f"{layer}.{n}", Role("routed_experts", layer, n, mtp=layer == LAYERS), 1e-4 + 7e-7 * (layer * EXPERTS + n)
        )
        for layer in range(LAYERS + 1)
        for n in range(EXPERTS)
    ]
    units += [
        difference(f"{layer}.{component}", Role(component, layer), 1e-3 + 1e-5 * layer)
        for layer in range(LAYERS)
        for component in COMPONENTS
        if component != "routed_experts"
    ]
    cosines = tuple(1 - 1e-6 * n for n in range(EXPERTS))
    routers = tuple(router(layer, cosines, bias_changes=cosines) for layer in range(LAYERS + 1))
    return map_of(units, routers=routers)


def test_a_page_of_the_real_size_is_small() -> None:
    """61 x 256 cells in seven figures, in less than half of a MB."""
    page = make_report([Named("map.npz", full_size_map())])
    assert len(page.encode()) < 500_000
    chart = next(c for c in Page(page).charts if c.get("down") == "expert")
    assert (len(chart["rows"]), len(chart["columns"])) == (EXPERTS, LAYERS + 1)


@pytest.fixture(scope="module")
def evil_page() -> str:
    """A page of results in which every text is an attack."""
    units = [
        explained(EVIL, "attention", 0, {EVIL: 0.5, "r1": 0.5}),
        explained("x", "norm", 1, {}, verdict="unexplained", why=EVIL),
    ]
    recipe = {"parents": {"v3": None, "r1": None}, "base": "v3", "rules": [{"take": "r1", "tensors": EVIL}]}
    fields = {"child": EVIL, "parents": (EVIL, "r1"), "recipe": recipe, "missing": {EVIL: (EVIL,)}, "unlike": (EVIL,)}
    found = explanation_of(units, undetermined=(EVIL,), differences={EVIL: (EVIL,)}, **fields)
    gaps = map_of(
        [difference(EVIL, Role("norm", 0), 1.0, nonfinite=1)], problems={EVIL: EVIL}, only_in={"a": (EVIL,), "b": ()}
    )
    return make_report([Named(EVIL, found), Named(EVIL, gaps)])


def test_names_are_no_markup(evil_page: str) -> None:
    """Wherever they stand, also in the data of charts: the page has the elements that it has without them."""
    page = Page(evil_page)
    assert page.count("img") == 0
    assert page.count("script") == 1 + page.count("figure")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "onerror=alert(1)>" in page.text  # it is there, to be read
    assert "onerror=alert(1)>" in str(page.charts)
    assert evil_page.count("</script") == page.count("script")


def test_nothing_writes_to_a_reader_s_screen(evil_page: str) -> None:
    """Control characters and marks that turn text around are shown as escapes."""
    assert "\x1b" not in evil_page
    assert "\u202e" not in evil_page
    assert "\\u202e" in evil_page


def test_a_page_refers_to_nothing_outside(evil_page: str) -> None:
    """No address, no file, no import; a policy in the page forbids them all, and scripts but this one."""
    page = Page(evil_page)
    assert not re.search(
        r"(https?|ftp|wss?)://|@import|url\(|import\(|fetch\(|XMLHttp|localStorage|sendBeacon", evil_page
    )
    links = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href", "srcset", "data", "action")]
    assert links == ["#section-1", "#section-2"]
    policy = next(a["content"] or "" for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_the_policy_lets_this_script_run() -> None:
    """Its digest is that of the script as it stands in the page."""
    import base64
    import hashlib

    page = make_report([Named("m.npz", map_of([]))])
    script = page.rsplit("<script>", 1)[1].split("</script>", 1)[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    """In another process, too, with other hashes."""
    found = map_of([difference(f"{n}", Role("norm", n), 0.1 * n) for n in range(9)])
    save_map(found, tmp_path / "m.npz")
    code = "import sys; from chimerakit.report import *; sys.stdout.write(make_report([load_result(sys.argv[1])]))"
    assert run_python(code, tmp_path / "m.npz", PYTHONHASHSEED="1").stdout == make_report([Named("m.npz", found)])


def test_sections_stand_in_the_order_given() -> None:
    """With links to each."""
    first, second = Named("a.npz", map_of([])), Named("b.json", explanation_of([]))
    names = r"(a\.npz|b\.json), of chimerakit"
    assert re.findall(names, make_report([first, second])) == ["a.npz", "b.json"]
    assert re.findall(names, make_report([second, first])) == ["b.json", "a.npz"]
    assert "<nav" not in make_report([first])


def test_without_a_script_tables_and_recipes_are_there() -> None:
    """Numbers, rules and findings stand in the page itself."""
    text = Page(make_report([Named("x.json", explanation_of([explained("q", "attention", 0, {"v3": 1.0})]))])).text
    assert "v3 is the base" in text
    assert "attention 1 100 B = v3" in text


def test_too_many_cells_are_refused() -> None:
    """A file that names a thousand experts in a thousand layers, once each, does not fill memory."""
    units = [difference(str(n), Role("routed_experts", n, n), 1.0) for n in range(1000)]
    with pytest.raises(ResultError, match=r"at most 262,144 cells\n  found:    1,000 rows x 1,000 layers"):
        make_report([Named("m.npz", map_of(units))])


def test_without_jinja2_there_is_a_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        MissingExtraError, match=r"'jinja2' is needed for this\n  to do:    pip install 'chimerakit\[report\]'"
    ):
        make_report([Named("m.npz", map_of([]))])


def test_what_was_looked_at_is_told_by_its_digest() -> None:
    """Another checkpoint under the same name is seen to be another."""
    import msgspec

    other = msgspec.structs.replace(IDENTITY, fingerprint={"model.norm.weight": "ee"})
    one, two = (
        Page(make_report([Named("m", found)])).text
        for found in (map_of([]), msgspec.structs.replace(map_of([]), b=other))
    )
    digests = [re.findall(r"identity ([0-9a-f]{32})", text) for text in (one, two)]
    assert digests[0][0] == digests[0][1] == digests[1][0] != digests[1][1]
