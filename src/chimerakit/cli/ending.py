"""How a verb ends: what was found, and the exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn

import typer


def end(as_json: bool, view: Callable[[], object], table: Callable[[], None], *, ok: bool = True) -> NoReturn:
    """The end of a verb: what was found, as JSON where that is asked for or nobody watches; exit 0, or 1 if not ok."""
    from chimerakit.cli.show import print_json

    if as_json or not sys.stdout.isatty():
        print_json(view())
    else:
        table()
    raise typer.Exit(0 if ok else 1)
