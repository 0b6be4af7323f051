"""Docs that can be wrong are held to the code."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from chimerakit.cli.reference import reference, verbs
from chimerakit.recipe import load_recipe, read_ranges
from chimerakit.records import Component

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


def test_the_command_line_page_is_current() -> None:
    """docs/cli.md is what `make docs` makes."""
    assert (ROOT / "docs" / "cli.md").read_text() == reference()


def test_every_verb_stands_in_the_readme() -> None:
    """A verb that the README does not show is a verb that nobody finds."""
    readme = (ROOT / "README.md").read_text()
    assert [verb for verb in verbs() if f"chimerakit {verb}" not in readme] == []


def test_every_component_stands_in_the_glossary() -> None:
    """The words of recipes are explained."""
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    assert [word for word in get_args(Component) if word not in glossary] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_recipes_in_pages_parse(page: Path) -> None:
    """Every yaml block with parents is a recipe that the parser takes."""
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        if "parents:" in block:
            assert read_ranges(yaml.safe_load(block)).candidates()
        else:
            yaml.safe_load(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links point at files that are there."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda file: file.name)
def test_ready_recipes_parse_and_say_what_they_reproduce(file: Path) -> None:
    """Every file in recipes/ is a recipe, and its first line a sentence."""
    load_recipe(file)
    assert re.fullmatch(r"# .{20,}", file.read_text().splitlines()[0])


def test_the_tree_in_the_design_is_the_tree() -> None:
    """Every module and folder of the package stands in docs/design.md, and nothing else does."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = text.split("src/chimerakit/\n")[1].split("tests/")[0]
    said = {line.split()[0].rstrip("/") for line in block.splitlines() if re.match(r"  \S", line)}
    source = ROOT / "src" / "chimerakit"
    real = {p.name for p in source.iterdir() if p.name not in ("__pycache__", "_version.py", "__main__.py", "py.typed")}
    assert said | {"card.py"} == real
