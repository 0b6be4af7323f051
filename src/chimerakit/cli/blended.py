"""Blended importance matrices -> lines on a terminal, or JSON."""

from pathlib import Path
from typing import Any

from chimerakit.cli.show import MOST_SHOWN
from chimerakit.errors import printable
from chimerakit.imatrix import Blended
from chimerakit.words import say_many


def imatrix_view(found: Blended, output: Path) -> dict[str, Any]:
    """What was written, as data."""
    return {
        "imatrix": str(output),
        "entries": len(found.imatrix.entries),
        "by_parents": found.by_parents,
        "missing": found.missing,
        "unseen": found.unseen,
        "datasets": found.imatrix.datasets,
    }


def print_imatrix(found: Blended, output: Path) -> None:
    """Whose entries the tensors have."""
    print(printable(f"{output}: importance of {say_many(len(found.imatrix.entries), 'tensor')}"))
    for parents, count in found.by_parents.items():
        print(printable(f"  {count:,} of {parents}"))
    if found.unseen:
        rows = say_many(sum(found.unseen.values()), "row")
        where = say_many(len(found.unseen), "tensor")
        print(
            f"note: {rows} of {where} (experts) saw no token of their own parents' text; they have what the others saw"
        )
    for name in found.missing[:MOST_SHOWN]:
        print(printable(f"note: no parent has an entry of {name}"))
    if len(found.missing) > MOST_SHOWN:
        print(f"note: nor of {len(found.missing) - MOST_SHOWN:,} more")
