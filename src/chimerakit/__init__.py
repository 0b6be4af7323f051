"""chimerakit: build, prove and measure Chimera models. The public names, loaded when they are first used."""

from typing import TYPE_CHECKING

from chimerakit._version import __version__

if TYPE_CHECKING:
    from chimerakit.compare import compare_checkpoints, load_map, save_map
    from chimerakit.errors import ChimerakitError
    from chimerakit.explain import explain_child
    from chimerakit.formats import open_checkpoint
    from chimerakit.formats.imatrix import read_imatrix
    from chimerakit.imatrix import blend_imatrix
    from chimerakit.inspect import inspect_checkpoint
    from chimerakit.merge import merge_parents
    from chimerakit.plan import make_plan
    from chimerakit.recipe import load_recipe, parse_recipe
    from chimerakit.report import load_result, make_report
    from chimerakit.table import verify_table
    from chimerakit.verify import verify_child

_HOMES = {
    "ChimerakitError": "chimerakit.errors",
    "blend_imatrix": "chimerakit.imatrix",
    "compare_checkpoints": "chimerakit.compare",
    "explain_child": "chimerakit.explain",
    "inspect_checkpoint": "chimerakit.inspect",
    "load_map": "chimerakit.compare",
    "load_recipe": "chimerakit.recipe",
    "load_result": "chimerakit.report",
    "make_plan": "chimerakit.plan",
    "make_report": "chimerakit.report",
    "merge_parents": "chimerakit.merge",
    "open_checkpoint": "chimerakit.formats",
    "parse_recipe": "chimerakit.recipe",
    "read_imatrix": "chimerakit.formats.imatrix",
    "save_map": "chimerakit.compare",
    "verify_child": "chimerakit.verify",
    "verify_table": "chimerakit.table",
}

__all__ = [
    "ChimerakitError",
    "__version__",
    "blend_imatrix",
    "compare_checkpoints",
    "explain_child",
    "inspect_checkpoint",
    "load_map",
    "load_recipe",
    "load_result",
    "make_plan",
    "make_report",
    "merge_parents",
    "open_checkpoint",
    "parse_recipe",
    "read_imatrix",
    "save_map",
    "verify_child",
    "verify_table",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'chimerakit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
