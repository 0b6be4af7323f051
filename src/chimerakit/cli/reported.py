"""Saved results -> a page in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chimerakit.cli.flags import check_new
from chimerakit.errors import RecipeError, printable
from chimerakit.report import HOW_TO, load_result, make_report
from chimerakit.stores.part import write_file
from chimerakit.words import say_nbytes


def check_request(results: Sequence[Path], output: Path) -> None:
    """Refuse before work begins: nothing to show, or no place for the page."""
    if not results:
        raise RecipeError("takes saved results", where="report", do=f"save one:\n{HOW_TO}")
    check_new(output, "choose another name for the page")


def save_page(results: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write the page of these results, in this order; what was written."""
    page = make_report([load_result(result) for result in results]).encode()
    write_file(output, page)
    return {"page": str(output), "nbytes": len(page), "results": [str(result) for result in results]}


def print_page(view: dict[str, Any]) -> None:
    """Where the page is."""
    print(printable(f"{view['page']}: {say_nbytes(view['nbytes'])}; open it in a browser"))
