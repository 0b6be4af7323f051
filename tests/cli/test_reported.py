"""`chimerakit report`: from saved results to a page, and the refusals."""

from pathlib import Path

import pytest

from chimerakit.compare import save_map
from chimerakit.records import Role
from tests import synthetic
from tests.cli.test_app import parse, run, run_on_terminal
from tests.merging import R1T, merge
from tests.report.results import Page, difference, map_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved map."""
    path = tmp_path_factory.mktemp("made") / "map.npz"
    save_map(map_of([difference("norm", Role("norm", 0), 0.5)]), path)
    return path


@pytest.mark.slow
def test_three_results_become_one_page(tmp_path: Path) -> None:
    """What the verbs save, as the documentation says it: sections in the order given; JSON in a pipe says what was written."""
    parents = {name: synthetic.make(tmp_path / name, seed, "fp8") for seed, name in enumerate(("v3", "r1"))}
    merge(parents, R1T, tmp_path / "child")
    flags = [f"--parent={name}={path}" for name, path in parents.items()]
    results = [tmp_path / "explanation.json", tmp_path / "map.npz", tmp_path / "inspection.json"]
    results[0].write_text(run("explain", tmp_path / "child", *flags, "--json", "--detail", "-q").stdout)
    assert run("compare", parents["v3"], parents["r1"], "-o", results[1], "-q").returncode == 0
    results[2].write_text(run("inspect", tmp_path / "child", "--json", "--detail", "--values", "-q").stdout)
    done = run("report", *results, "-o", tmp_path / "x.html")
    assert (done.returncode, done.stderr) == (0, "")
    data = (tmp_path / "x.html").read_bytes()
    assert parse(done) == {"page": str(tmp_path / "x.html"), "nbytes": len(data), "results": list(map(str, results))}
    page = Page(data.decode())
    assert page.count("section") == 3
    assert page.count("figure") == len(page.charts) == 3 + 3 + 3
    assert "take: r1, components: routed_experts" in page.text


def test_on_a_terminal_it_says_where_the_page_is(tmp_path: Path, saved: Path) -> None:
    """In one line."""
    code, text = run_on_terminal("report", saved, "-o", tmp_path / "x.html")
    assert code == 0
    assert text.strip().endswith("; open it in a browser")
    assert (tmp_path / "x.html").is_file()


def test_without_a_result_it_says_how_to_save_one(tmp_path: Path) -> None:
    """Exit 2, with the commands."""
    done = run("report", "-o", tmp_path / "x.html")
    assert done.returncode == 2
    assert (
        "error: report: takes saved results\n  to do:    save one:\nchimerakit compare A B -o map.npz\n" in done.stderr
    )


def test_a_page_that_is_there_is_not_written_over(tmp_path: Path, saved: Path) -> None:
    """Exit 2 before anything is read."""
    (tmp_path / "x.html").write_text("mine")
    done = run("report", tmp_path / "none.npz", "-o", tmp_path / "x.html")
    assert done.returncode == 2
    assert "x.html: is there already" in done.stderr
    assert (tmp_path / "x.html").read_text() == "mine"


def test_of_damaged_results_no_page_is_made(tmp_path: Path, saved: Path) -> None:
    """One error with the file's name; nothing is written."""
    (tmp_path / "torn.json").write_text('{"what": "explanation", "format": 1')
    done = run("report", saved, tmp_path / "torn.json", "-o", tmp_path / "x.html")
    assert done.returncode == 2
    assert "torn.json: this is no saved result, or a damaged one" in done.stderr
    assert not (tmp_path / "x.html").exists()
