"""How much of the reader of weight files the tests of headers go through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_LEAST = 95.0
"""Percent of branches."""


@pytest.mark.slow
def test_nearly_every_branch_of_the_reader_is_taken(tmp_path: Path) -> None:
    """The quick tests of the format and of random headers take at least 95 % of the branches in the reader."""
    root = Path(__file__).parent.parent.parent

    def run(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "coverage", *arguments],
            cwd=root,
            env={**os.environ, "EFFORT": "quick", "COVERAGE_FILE": str(tmp_path / "data")},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    run(
        "run",
        "--branch",
        "--include=*/chimerakit/formats/safetensors.py,*/chimerakit/formats/strict_json.py",
        "-m",
        "pytest",
        "tests/formats",
        "tests/fuzzing/test_headers.py",
    )
    run("json", "-o", str(tmp_path / "report.json"))
    totals = json.loads((tmp_path / "report.json").read_text())["totals"]
    assert totals["num_branches"] > 20
    assert 100 * totals["covered_branches"] / totals["num_branches"] >= _LEAST
