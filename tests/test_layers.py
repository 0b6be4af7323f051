"""Who may import whom, and who may do what: read from the source, and tried in fresh interpreters."""

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import chimerakit
from chimerakit.formats import open_checkpoint
from chimerakit.plan import make_jobs, make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.stores import local
from tests import synthetic

ROOMS = (
    {"cli", "__main__"},
    {"demo"},
    {"report"},
    {"sweep"},
    {"evaluate"},
    {"verify", "table", "explain", "compare", "inspect", "deltas", "imatrix"},
    {"scan"},
    {"portions"},
    {"merge"},
    {"child", "card"},
    {"receipts"},
    {"output"},
    {"manifest"},
    {"execute", "sinks", "runners"},
    {"plan"},
    {"recipe"},
    {"anatomy"},
    {"formats", "numerics"},
    {"stores"},
    {"records", "events"},
    {"dtypes"},
    {"errors", "words", "defaults", "_version"},
)
"""From the roof down. Who is in a room may import from it and from those below."""

SOURCE = Path(chimerakit.__file__).parent
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path != SOURCE / "__init__.py"  # imports nothing until a name is asked for; tried below
}


def room_of(module: str) -> int:
    """How far below the roof a module is."""
    for depth, room in enumerate(ROOMS):
        if module.split(".")[0] in room:
            return depth
    raise AssertionError(f"{module} has no room: give it one in ROOMS and in the design")


@cache
def imports(module: str, *, outside_functions: bool = False) -> frozenset[str]:
    """Full names of all modules that a module imports, also inside functions and for type checkers only.

    Those for type checkers run never, but a hint is knowledge, too: it may only point down as well.
    """
    return frozenset(_imports(module, outside_functions=outside_functions))


def _imports(module: str, *, outside_functions: bool) -> Iterator[str]:
    waiting: list[ast.AST] = [ast.parse(FILES[module].read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = name.removeprefix("chimerakit.") in FILES
                yield name if is_module else str(node.module)
        if outside_functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if outside_functions and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)


def test_the_source_is_found() -> None:
    """The rules below are about real files and see their imports: known ones are among them."""
    assert {"errors", "plan", "plan.select", "formats.safetensors", "cli"} <= set(FILES)
    assert {"chimerakit.errors", "chimerakit.stores.local", "msgspec"} <= imports("formats.safetensors")
    assert "chimerakit.numerics.mix" in imports("execute")
    assert "chimerakit.numerics.mix" not in imports("execute", outside_functions=True)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    """A module imports only from its own room and from lower ones."""
    for name in imports(module):
        package, _, rest = name.partition(".")
        if package == "chimerakit" and rest:
            assert room_of(rest) >= room_of(module), f"{module} imports {rest}, which is above it"


@pytest.mark.parametrize("module", [m for m in FILES if m.split(".")[0] not in ("cli", "__main__")])
def test_only_the_root_is_imported_from_within(module: str) -> None:
    """Nobody below the command line imports the package's own front door, which would import everything again."""
    assert "chimerakit" not in imports(module)


ONLY = {
    "ray": ("runners.ray",),
    "typer": ("cli",),
    "click": ("cli",),
    "rich": ("cli",),
    "numba": ("numerics",),
    "llvmlite": ("numerics",),
    "ml_dtypes": ("numerics",),
    "torch": ("evaluate",),
    "transformers": ("evaluate",),
    "xllamacpp": ("evaluate",),
    "httpx2": ("evaluate.backends.server",),
    "gguf": ("numerics",),
    "libgguf": ("numerics",),
    "safetensors": (),  # formats/ reads and writes by itself; the tests compare
    "yaml": ("recipe", "card"),
    "jinja2": ("report",),
    "markupsafe": ("report",),
    "xxhash": ("stores",),
}


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_in_its_room_only(package: str) -> None:
    """Each outside package has the one place that may know it."""
    users = {m for m in FILES if any(name.split(".")[0] == package for name in imports(m))}
    allowed = {m for m in FILES for room in ONLY[package] if m == room or m.startswith(room + ".")}
    assert users <= allowed


@pytest.mark.parametrize("module", [m for m in FILES if not m.startswith("numerics")])
def test_heavy_packages_are_imported_inside_functions(module: str) -> None:
    """Whatever is slow to load or may be missing is loaded when it is used, not when a module is."""
    found = {name.split(".")[0] for name in imports(module, outside_functions=True)}
    assert found.isdisjoint({"numpy", "numba", "ml_dtypes", "torch", "transformers", "ray", "jinja2", "markupsafe"})


@cache
def calls(module: str) -> frozenset[str]:
    """What a module calls, raises or names of the terminal and the way out."""
    nodes = ast.walk(ast.parse(FILES[module].read_text()))
    return frozenset(ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute))


@pytest.mark.parametrize("module", [m for m in FILES if m.split(".")[0] not in ("cli", "__main__")])
def test_only_the_command_line_prints_or_exits(module: str) -> None:
    """The library tells by records and refuses by errors: it writes to no terminal and ends no process."""
    forbidden = {"print", "input", "exit", "quit", "SystemExit", "sys.exit", "os._exit", "sys.stdout", "sys.stderr"}
    assert forbidden.isdisjoint(calls(module))


@pytest.mark.parametrize("module", [m for m in FILES if not m.startswith("stores")])
def test_only_stores_opens_files_by_number(module: str) -> None:
    """Bytes are read and written through stores/, so that remote stores can take its place.

    child.py opens a folder to lock it; what it locks is no file of weights.
    """
    forbidden = {"open", "os.pread", "os.preadv", "os.pwrite", "os.read", "os.write", "io.open", "mmap.mmap"}
    found = forbidden.intersection(calls(module))
    assert not found
    assert "os.open" not in calls(module) or module == "child"


# ------------------------------------------------------------------------------------- planning is pure


def test_planning_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parents open, plan and jobs are made without any file but the family tables being opened."""
    parents = {
        "v3": open_checkpoint(synthetic.make(tmp_path / "v3", 0, "fp8")),
        "r1": open_checkpoint(synthetic.make(tmp_path / "r1", 1, "fp8", shuffle=5)),
    }
    rules = "[{take: r1, components: routed_experts}, {mix: {r1: 0.5}, components: attention}]"
    recipe = parse_recipe(f"parents: {{v3: , r1: }}\nbase: v3\nrules: {rules}\noutput: {{chat_template: r1}}\n")

    def fail(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"planning opens {arguments}")

    def guarded(path: Path, *arguments: Any, **options: Any) -> Any:
        assert "families" in path.parts, f"planning opens {path}"
        return path_open(path, *arguments, **options)

    path_open = Path.open
    for name in ("__init__", "read", "read_into", "pieces"):
        monkeypatch.setattr(local.Reader, name, fail)
    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr(Path, "open", guarded)
    plan = make_plan(recipe, parents)
    assert len(make_jobs(plan, tmp_path / "child")) >= 1
    assert {row.kind for row in plan.rows} == {"copy", "mix"}
    assert not (tmp_path / "child").exists()


# ------------------------------------------------------------------------------------- what gets loaded


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_next_to_nothing() -> None:
    """`import chimerakit` loads no package but itself."""
    found = loaded_by("import chimerakit")
    assert "chimerakit" in found
    assert found.isdisjoint({"numpy", "numba", "typer", "rich", "yaml", "torch", "msgspec", "xxhash", "ml_dtypes"})


@pytest.mark.parametrize(
    "statement",
    [
        "import chimerakit.plan, chimerakit.execute, chimerakit.merge",
        "import chimerakit.verify, chimerakit.table",
        "from chimerakit import load_recipe, make_plan, merge_parents, open_checkpoint, verify_child, verify_table",
    ],
)
def test_planning_and_copying_load_no_kernels(statement: str) -> None:
    """The modules that plan, copy and check load neither kernels nor a terminal, until a unit has to be mixed."""
    found = loaded_by(statement)
    assert {"chimerakit", "msgspec"} <= found
    assert found.isdisjoint({"numpy", "numba", "torch", "transformers", "ml_dtypes", "typer", "rich"})


# --------------------------------------------------------------------------------------- public names


def test_public_names_are_sorted_and_there() -> None:
    """`__all__` is sorted, has no name twice, and each of them resolves."""
    assert chimerakit.__all__ == sorted(set(chimerakit.__all__))
    for name in chimerakit.__all__:
        assert getattr(chimerakit, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that is not public is refused as Python does it."""
    with pytest.raises(AttributeError, match="module 'chimerakit' has no attribute 'merge_everything'"):
        chimerakit.merge_everything  # noqa: B018


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """With every module imported, public names still are what they were: a module sets its name on the package."""
    for found in pkgutil.walk_packages(chimerakit.__path__, "chimerakit."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    modules = {name for name in chimerakit.__all__ if type(getattr(chimerakit, name)) is type(chimerakit)}
    assert not modules
