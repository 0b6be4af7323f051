"""`chimerakit explain`: exit codes, JSON in a pipe, a table and a recipe on a terminal, wrong requests."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from chimerakit.cli.explained import parse_share, print_explanation
from chimerakit.errors import RecipeError
from chimerakit.explain import Explanation, explain_child
from chimerakit.formats import open_checkpoint
from tests import synthetic
from tests.cli.test_app import flags, parse, run, run_on_terminal
from tests.merging import MIX, R1T, merge


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two parents, and two children of theirs."""
    root = tmp_path_factory.mktemp("family")
    parents = {name: synthetic.make(root / name, seed, "fp8") for seed, name in enumerate(("v3", "r1"), 1)}
    merge(parents, R1T, root / "r1t")
    merge(parents, MIX, root / "mixed")
    return parents


def explained(family: dict[str, Path], child: str, **options: float) -> Explanation:
    root = family["v3"].parent
    return explain_child(root / child, {name: open_checkpoint(path) for name, path in family.items()}, **options)  # type: ignore[arg-type]


def shown(capsys: pytest.CaptureFixture[str], found: Explanation) -> str:
    """What a terminal shows; runs of spaces are one."""
    print_explanation(found, detail=False)
    return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


def test_in_a_pipe_it_is_json_and_exit_0(family: dict[str, Path]) -> None:
    """The recipe as data, and how many units of each component are made in which way."""
    done = run("explain", family["v3"].parent / "r1t", *flags(family), "-q")
    assert (done.returncode, done.stderr) == (0, "")
    view = parse(done)
    assert view["is_explained"]
    assert view["recipe"]["rules"] == [{"take": "r1", "components": "routed_experts"}]
    assert view["components"]["routed_experts"] == {"= r1": 36}
    assert view["units"] == []
    assert view["sample"] is None


def test_the_recipe_that_it_writes_makes_the_child(family: dict[str, Path], tmp_path: Path) -> None:
    """As a file for `chimerakit merge`, which proves itself against the child."""
    recipe, root = tmp_path / "recipe.yaml", family["v3"].parent
    code, said = run_on_terminal("explain", root / "mixed", *flags(family), "-o", recipe)
    assert code == 0
    assert "0.25 v3 + 0.75 r1" in said
    assert yaml.safe_load(recipe.read_text())["rules"] == [{"mix": {"r1": 0.75}, "components": "routed_experts"}]
    assert run("merge", recipe, *flags(family), "-o", tmp_path / "again", "-q").returncode == 0
    assert not run("explain", root / "mixed", *flags(family), "-o", recipe, "-q").stdout
    assert recipe.stat().st_size > 0


def test_a_recipe_file_that_is_there_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "recipe.yaml").write_text("mine")
    done = run("explain", family["v3"].parent / "r1t", *flags(family), "-o", tmp_path / "recipe.yaml", "-q")
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_a_unit_that_nothing_explains_is_exit_1(family: dict[str, Path], tmp_path: Path) -> None:
    """It is named, with how far the nearest mix is."""
    merge(family, R1T, tmp_path / "child")
    file = tmp_path / "child" / "model-00002-of-000003.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".experts." in name and name.endswith(".weight"))
    tensors[name] = torch.randn(tensors[name].shape).to(tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    done = run("explain", tmp_path / "child", *flags(family), "-q")
    assert done.returncode == 1
    (unit,) = parse(done)["units"]
    assert unit["unit"] == name
    assert unit["why"].startswith("the nearest mix, ")


def test_a_sample_says_that_it_is_one(family: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """How much was looked at, and what that is worth."""
    found = explained(family, "mixed", sample=0.25)
    assert found.sample is not None
    assert f"a sample: {found.sample.units} of 99 units" in shown(capsys, found)
    done = run("explain", family["v3"].parent / "mixed", *flags(family), "--sample", "25%", "-q")
    assert done.returncode == 0
    assert parse(done)["sample"]["units"] == found.sample.units


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.01", 0.01), ("100%", 1.0), ("12.5%", 0.125)])
def test_a_share_may_be_a_percentage(text: str, share: float) -> None:
    """Or a number from 0 to 1."""
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "%", "0", "0%", "-1%", "101%", "2", "nan", "inf", "a few"])
def test_what_is_no_share_is_refused(text: str) -> None:
    """With what would be one."""
    with pytest.raises(RecipeError, match=r"more than 0 and at most all, as 1% or 0\.01"):
        parse_share(text)


def test_an_estimate_is_shown_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And with the arithmetic that it seems to be."""
    parents = {name: synthetic.make(tmp_path / name, seed, shards=1) for seed, name in enumerate(("v3", "r1"), 1)}
    a, b = (load_file(path / "model.safetensors") for path in parents.values())
    child = {n: x * 0.25 + b[n] * 0.75 if ".experts." in n else x for n, x in a.items()}
    for file in parents["v3"].iterdir():
        (tmp_path / "child").mkdir(exist_ok=True)
        (tmp_path / "child" / file.name).write_bytes(file.read_bytes())
    save_file(child, tmp_path / "child" / "model.safetensors", metadata={"format": "pt"})
    found = explain_child(tmp_path / "child", {name: open_checkpoint(path) for name, path in parents.items()})
    said = shown(capsys, found)
    assert "about 0.25 v3 + 0.75 r1" in said
    (line,) = (line for line in said.splitlines() if line.startswith("estimate: "))
    assert line.startswith("estimate: 36 units of rule 1: 0.2")
    assert line.endswith("another program made them (sums rounded to BF16)")
