"""The child's config, index, tokenizer, template and other files."""

import json
from pathlib import Path
from typing import Any

import pytest

from chimerakit.errors import PlanError
from chimerakit.formats import open_checkpoint
from chimerakit.plan import make_plan
from chimerakit.records import Checkpoint, FileRow, Plan
from tests import synthetic
from tests.plan.models import INDEX, checkpoint, model, plan_of, recipe_of

BLOCKS = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
TOKENIZER = "tokenizer_config.json"
JINJA = "chat_template.jinja"


def files_of(plan: Plan) -> dict[str, FileRow]:
    """The plan's other files by name."""
    found = {row.name: row for row in plan.files}
    assert len(found) == len(plan.files)
    return found


def content(row: FileRow) -> dict[str, Any]:
    """The JSON of an edited file."""
    assert row.text is not None
    assert row.nbytes == len(row.text.encode())
    found = json.loads(row.text)
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("storage", ["bf16", "fp8", "ue8m0"])
def test_kept_config(storage: str) -> None:
    """`dtype: keep` copies config.json as it is, and as the last file."""
    row = plan_of(base=model(storage)).files[-1]
    assert row == FileRow("config.json", 100, parent="v3", source="config.json")


@pytest.mark.parametrize(
    ("storage", "dtype", "torch_dtype", "quantization", "edit"),
    [
        ("fp8", "bf16", "bfloat16", None, "quantization_config removed"),
        ("fp8", "f16", "float16", None, "torch_dtype: float16; quantization_config removed"),
        ("ue8m0", "f32", "float32", None, "torch_dtype: float32; quantization_config removed"),
        ("bf16", "f32", "float32", None, "torch_dtype: float32"),
        ("bf16", "fp8-block", "bfloat16", BLOCKS, "quantization_config added"),
    ],
)
def test_config(storage: str, dtype: str, torch_dtype: str, quantization: object, edit: str) -> None:
    """config.json says the dtype and the quantization that the child has, and all else as before, in its order."""
    base = model(storage)
    row = plan_of(base=base, output={"dtype": dtype}).files[-1]
    assert (row.name, row.edit, row.parent) == ("config.json", edit, None)
    found = content(row)
    assert found.pop("quantization_config", None) == quantization
    expected = {k: v for k, v in base.config.items() if k != "quantization_config"} | {"torch_dtype": torch_dtype}
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize(("storage", "dtype"), [("bf16", "bf16"), ("fp8", "fp8-block"), ("ue8m0", "fp8-block")])
def test_config_that_holds_already(storage: str, dtype: str) -> None:
    """A dtype that the base has already leaves config.json as it is."""
    assert plan_of(base=model(storage), output={"dtype": dtype}).files[-1].edit is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"dtype": "bfloat16"}, {"dtype": "float32"}), ({}, {"torch_dtype": "float32"})],
)
def test_config_key_of_the_dtype(config: dict[str, str], expected: dict[str, str]) -> None:
    """The key that the base has for its dtype is kept, `dtype` of newer transformers too; without one, torch_dtype is added."""
    plain = {k: v for k, v in synthetic.CONFIG.items() if k != "torch_dtype"} | config
    entries = [("model.norm.weight", "BF16", (200,))]
    row = plan_of(base=checkpoint(entries, plain, shards=1), output={"dtype": "f32"}).files[-1]
    assert {k: v for k, v in content(row).items() if "dtype" in k} == expected


# ----------------------------------------------------------------------------------------------- index


def test_kept_index() -> None:
    """While every tensor stays where it was, the base's index is copied."""
    row = files_of(plan_of({"take": "r1", "components": "all"}, base=model(), r1=model(shuffle=1)))[INDEX]
    assert row == FileRow(INDEX, 1000, parent="v3", source=INDEX)


@pytest.mark.parametrize("output", [{"dtype": "bf16"}, {"shards": "by-rule"}, {"dtype": "f32", "shards": "by-rule"}])
def test_new_index(output: dict[str, str]) -> None:
    """A new index names every tensor's file, sorted, and the bytes of them all."""
    plan = plan_of({"take": "r1", "components": "router"}, base=model("fp8"), r1=model("fp8"), output=output)
    row = files_of(plan)[INDEX]
    assert row.edit == "made for the child's files"
    tensors = [t for r in plan.rows for t in r.outputs]
    assert content(row) == {
        "metadata": {"total_size": sum(t.nbytes for t in tensors)},
        "weight_map": {t.name: t.file for t in tensors},
    }
    assert list(content(row)["weight_map"]) == sorted(t.name for t in tensors)


def test_single_file_has_no_index() -> None:
    """A child of one file has an index only if its base has one."""
    assert INDEX not in files_of(plan_of(base=model(shards=1)))
    assert INDEX in files_of(plan_of(base=model(), output={"shards": "by-rule"}))
    assert INDEX in files_of(
        plan_of({"take": "r1", "components": "router"}, base=model(shards=1), r1=model(), output={"shards": "by-rule"})
    )


# ----------------------------------------------------------------------------------- tokenizer, template

BASE_FILES = {"config.json": 100, "tokenizer.json": 50, TOKENIZER: 40, "vocab.json": 30}
THEIR_FILES = {"config.json": 100, "tokenizer.json": 55, TOKENIZER: 45, "merges.txt": 20}


def with_template(files: dict[str, int], *, in_file: bool, in_config: str | None) -> Checkpoint:
    """A model whose template is a file, a value in tokenizer_config.json, both, or missing."""
    config = {"bos_token": "<s>"} if in_config is None else {"bos_token": "<s>", "chat_template": in_config}
    texts = {TOKENIZER: json.dumps(config)} | ({JINJA: "{{ file }}"} if in_file else {})
    return model(files=files | ({JINJA: 10} if in_file else {}), texts=texts)


def test_other_parents_tokenizer() -> None:
    """Another parent's tokenizer comes with its template and in place of every tokenizer file of the base."""
    base = with_template(BASE_FILES, in_file=True, in_config=None)
    other = with_template(THEIR_FILES, in_file=False, in_config="theirs")
    files = files_of(plan_of(base=base, r1=other, output={"tokenizer": "r1"}))
    assert {n: (row.parent, row.source, row.nbytes, row.edit) for n, row in files.items() if n != INDEX} == {
        "config.json": ("v3", "config.json", 100, None),
        "tokenizer.json": ("r1", "tokenizer.json", 55, None),
        TOKENIZER: ("r1", TOKENIZER, 45, None),
        "merges.txt": ("r1", "merges.txt", 20, None),
    }


@pytest.mark.parametrize("theirs_in_file", [True, False])
@pytest.mark.parametrize("ours_in_file", [True, False])
def test_other_parents_template(ours_in_file: bool, theirs_in_file: bool) -> None:
    """Another parent's template replaces the base's, be either a file or a value; the child has it in one place only."""
    base = with_template(BASE_FILES, in_file=ours_in_file, in_config=None if ours_in_file else "ours")
    other = with_template(THEIR_FILES, in_file=theirs_in_file, in_config=None if theirs_in_file else "theirs")
    files = files_of(plan_of(base=base, r1=other, output={"chat_template": "r1"}))
    assert {files[n].parent for n in ("tokenizer.json", "vocab.json")} == {"v3"}
    assert "merges.txt" not in files
    if theirs_in_file:
        assert files[JINJA] == FileRow(JINJA, 10, parent="r1", source=JINJA)
        if ours_in_file:
            assert files[TOKENIZER] == FileRow(TOKENIZER, 40, parent="v3", source=TOKENIZER)
        else:
            assert content(files[TOKENIZER]) == {"bos_token": "<s>"}
            assert files[TOKENIZER].edit == "chat_template removed (it is a file now)"
    else:
        assert JINJA not in files
        assert content(files[TOKENIZER]) == {"bos_token": "<s>", "chat_template": "theirs"}
        assert files[TOKENIZER].edit == "chat_template of 'r1'"


def test_template_in_both_places() -> None:
    """A parent with both has the file's template, which is what transformers reads."""
    other = with_template(THEIR_FILES, in_file=True, in_config="value")
    base = with_template(BASE_FILES, in_file=False, in_config="ours")
    files = files_of(plan_of(base=base, r1=other, output={"chat_template": "r1"}))
    assert (files[JINJA].parent, content(files[TOKENIZER])) == ("r1", {"bos_token": "<s>"})


def test_their_tokenizer_with_the_bases_template() -> None:
    """Tokenizer and template may come from different parents."""
    base = with_template(BASE_FILES, in_file=True, in_config=None)
    other = with_template(THEIR_FILES, in_file=False, in_config="theirs")
    files = files_of(plan_of(base=base, r1=other, output={"tokenizer": "r1", "chat_template": "v3"}))
    assert (files["tokenizer.json"].parent, files[JINJA].parent) == ("r1", "v3")
    assert content(files[TOKENIZER]) == {"bos_token": "<s>"}


@pytest.mark.parametrize(
    "output", [{"tokenizer": "v3"}, {"chat_template": "v3"}, {"tokenizer": "v3", "chat_template": "v3"}]
)
def test_the_bases_own(output: dict[str, str]) -> None:
    """Naming the base changes nothing."""
    base = with_template(BASE_FILES, in_file=True, in_config=None)
    assert plan_of(base=base, r1=model(), output=output).files == plan_of(base=base, r1=model()).files


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"tokenizer": "r1"}, "output: tokenizer: 'r1' has no tokenizer files"),
        ({"chat_template": "r1"}, "output: chat_template: 'r1' has no chat template"),
    ],
)
def test_parent_without_them(output: dict[str, str], said: str) -> None:
    """A parent that has no tokenizer or template can't give it."""
    with pytest.raises(PlanError) as e:
        plan_of(base=with_template(BASE_FILES, in_file=True, in_config=None), r1=model(), output=output)
    assert e.value.problems == (said,)


@pytest.mark.parametrize("text", ["[1]", "{", '"x"'])
def test_tokenizer_config_that_is_no_object(text: str) -> None:
    """A tokenizer_config.json that holds no object is refused: nothing can be put into it, and nothing got out."""
    other = model(files={TOKENIZER: 5}, texts={TOKENIZER: text})
    with pytest.raises(PlanError, match=r"a tokenizer_config\.json can't be read"):
        plan_of(base=model(), r1=other, output={"chat_template": "r1"})


# ----------------------------------------------------------------------------------------- other files


def test_files_on_disk(tmp_path: Path) -> None:
    """Licence, code and files in folders follow the base; README, manifest, hidden files and other weights do not."""
    base = synthetic.make(tmp_path / "base", 1)
    other = synthetic.make(tmp_path / "other", 2)
    for name in ("inference/model.py", "configuration_deepseek.py", "figures/a.png", "NOTICE"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    for name in (
        "chimerakit.json",
        ".gitattributes",
        "pytorch_model.bin",
        "original/consolidated.pth",
        "model-x.safetensors",
    ):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    (other / "only_there.txt").write_text("x")
    plan = make_plan(recipe_of(), {"v3": open_checkpoint(base), "r1": open_checkpoint(other)})
    assert [row.name for row in plan.files] == [
        "LICENSE",
        "NOTICE",
        "configuration_deepseek.py",
        "figures/a.png",
        "generation_config.json",
        "inference/model.py",
        "tokenizer.json",
        "tokenizer_config.json",
        INDEX,
        "config.json",
    ]
    assert {(row.parent, row.source == row.name, row.edit) for row in plan.files} == {("v3", True, None)}
    assert all(row.nbytes == (base / row.name).stat().st_size for row in plan.files)
    assert (
        "'v3' has files that are no part of its checkpoint and are not copied: "
        "model-x.safetensors, original/consolidated.pth, pytorch_model.bin" in plan.notes
    )
