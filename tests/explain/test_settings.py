"""How a child is stored and laid out and whose files it has, found by few plans."""

from pathlib import Path
from typing import Any

import pytest

from chimerakit.explain import settings
from chimerakit.formats import open_checkpoint
from chimerakit.plan import make_plan
from chimerakit.records import Checkpoint, Output
from chimerakit.stores.digest import digest_file
from tests import synthetic
from tests.merging import R1T, merge, plan_of

pytestmark = pytest.mark.usefixtures("impatient")

Family = dict[str, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Two parents, each with a tokenizer and a chat template of its own."""
    root = tmp_path_factory.mktemp("pair")
    parents = {name: synthetic.make(root / name, seed) for seed, name in enumerate(("v3", "r1"), 1)}
    for name, path in parents.items():
        (path / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
        (path / "chat_template.jinja").write_text(f"the template of {name}")
    return parents


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Output]:
    """The settings of every plan that is made while looking for them."""
    made = list[Output]()

    def counted(recipe: Any, *arguments: Any) -> Any:
        made.append(recipe.output)
        return make_plan(recipe, *arguments)

    monkeypatch.setattr(settings, "make_plan", counted)
    return made


def digest(path: Path) -> str:
    """The digest of a file beside the weights."""
    return digest_file(path).xxh3


def opened(parents: Family) -> dict[str, Checkpoint]:
    """The parents as records."""
    return {name: open_checkpoint(path) for name, path in parents.items()}


@pytest.mark.parametrize(
    ("output", "num_plans"),
    [
        ("", 1),
        ("dtype: f32", 4),
        ("shards: by-rule", 2),
        ("tokenizer: r1", 2),
        ("chat_template: r1", 2),
        ("tokenizer: r1, chat_template: v3", 2),
        ("dtype: f32, shards: by-rule, tokenizer: r1, chat_template: v3", 6),
    ],
)
def test_settings_are_found_by_few_plans(
    pair: Family, planned: list[Output], output: str, num_plans: int, tmp_path: Path
) -> None:
    """The child's own settings are found; no setting is planned twice, and whose tokenizer it is takes no plan to try."""
    merge(pair, R1T, tmp_path / "child", output=output)
    recipe, wanted = plan_of(pair, R1T).recipe, plan_of(pair, R1T, output=output)
    plan, unlike = settings.find_plan(recipe, open_checkpoint(tmp_path / "child"), opened(pair), {}, digest)
    assert not unlike
    assert (plan.rows, plan.shards, plan.files) == (wanted.rows, wanted.shards, wanted.files)
    assert plan.recipe.output == wanted.recipe.output
    assert len(planned) == len(set(planned)) == num_plans


def test_files_that_no_setting_gives_are_named(pair: Family, planned: list[Output], tmp_path: Path) -> None:
    """A tokenizer that is no parent's is told, and costs no plans."""
    merge(pair, R1T, tmp_path / "child", output="chat_template: r1")
    (tmp_path / "child" / "tokenizer.json").write_text('{"of": "me"}')
    recipe = plan_of(pair, R1T).recipe
    plan, unlike = settings.find_plan(recipe, open_checkpoint(tmp_path / "child"), opened(pair), {}, digest)
    assert unlike == ["tokenizer.json: no parent's; the recipe gives another one, or none"]
    assert plan.recipe.output == Output(chat_template="r1")
    assert len(planned) == 2
