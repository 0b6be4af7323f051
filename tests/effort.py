"""How hard the tests try: a little by default, more with CI set, for an hour or so with `make prove` (EFFORT=prove)."""

import os

EFFORT = os.environ.get("EFFORT") or ("ci" if os.environ.get("CI") else "quick")


def examples(*, quick: int, ci: int, prove: int) -> int:
    """A number of examples for the effort that was asked for."""
    return {"quick": quick, "ci": ci, "prove": prove}[EFFORT]
