"""Rows -> the table, and what was measured where."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.timing import Figure

Unit = Literal["x", "s", "MB", "GB/s", ""]
_PACKAGES = ("chimerakit", "numpy", "numba", "torch", "safetensors")


class Target(NamedTuple):
    """What a figure should be."""

    limit: float
    is_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.is_least else value <= self.limit


def at_most(limit: float) -> Target:
    return Target(limit)


def at_least(limit: float) -> Target:
    return Target(limit, is_least=True)


class Row(NamedTuple):
    """One line of the table: a figure, or only a note where nothing could be measured."""

    what: str
    figure: Figure | None
    unit: Unit = "x"
    target: Target | None = None
    note: str = ""


def say_row(row: Row) -> tuple[str, str, str, str, str]:
    """what, target, measured, range, note."""
    note = " ".join(row.note.split())
    if row.figure is None:
        return row.what, "", "", "", note
    goal = "" if row.target is None else ("≥ " if row.target.is_least else "≤ ") + _number(row.target.limit, row.unit)
    if row.target is not None and not row.target.is_met(row.figure.value):
        goal += " (missed)"
    low, high = (_number(one, row.unit) for one in row.figure[1:])
    return row.what, goal, _number(row.figure.value, row.unit), "" if low == high else f"{low} - {high}", note


def _number(value: float, unit: Unit) -> str:
    digits = 0 if unit == "MB" or value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}" + (f" {unit}" if unit not in ("x", "") else "")


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    lines = [("what", "target", "measured", "range", "note"), ("---",) * 5, *map(say_row, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def machine(folder: Path) -> dict[str, str]:
    """What ran this, and on which file system."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.split(":", 1)[1].strip() for line in info if line.startswith("model name")}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    found = subprocess.run(["df", "--output=fstype", str(folder)], capture_output=True, text=True, check=True)
    return {
        "processor": f"{', '.join(sorted(models)) or platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "file system": found.stdout.split()[-1],
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in _PACKAGES)]),
    }


def write_results(folder: Path, name: str, rows: Sequence[Row], facts: dict[str, str], command: str) -> Path:
    """NAME.md and NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = {"date": date, "command": command, **facts}
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    path = folder / f"{name}.md"
    path.write_text(f"# Benchmarks, {date[:10]}\n\n{said}\n\n{markdown(rows)}")
    content = {
        "facts": facts,
        "rows": [{**row._asdict(), "figure": row.figure and row.figure._asdict()} for row in rows],
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
