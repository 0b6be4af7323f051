"""The recipe language: what it says, and how every mistake in it is answered."""

import itertools
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.errors import ChimerakitError, RecipeError
from chimerakit.recipe import (
    load_recipe,
    locate_parents,
    parse_recipe,
    recipe_from_data,
    recipe_from_flags,
    recipe_to_data,
    recipe_to_yaml,
    say_rule,
    shares_at,
)
from chimerakit.records import COMPONENTS, Component, Gradient, Output, Recipe, Rule, Span

HEAD = "parents: {v3: /models/V3, r1: /models/R1}\nbase: v3\n"


def rule_of(text: str, head: str = HEAD) -> Rule:
    """The one rule that a flow mapping says."""
    (rule,) = parse_recipe(f"{head}rules:\n  - {{{text}}}\n").rules
    return rule


def refusal(text: str) -> str:
    """What is said about a wrong recipe."""
    with pytest.raises(RecipeError) as e:
        parse_recipe(text)
    return str(e.value)


def refused_rule(text: str) -> str:
    return refusal(f"{HEAD}rules:\n  - {{{text}}}\n")


# -------------------------------------------------------------------------------------------- language


def test_published_recipe() -> None:
    """The recipe of R1T, as design.md writes it, is one rule that takes the routed experts."""
    text = """
    parents: {v3: deepseek-ai/DeepSeek-V3-0324, r1: deepseek-ai/DeepSeek-R1}    # folder, hub
    base: v3
    rules:
      - take: r1                          # whole
        components: routed_experts
    """
    assert parse_recipe(text) == Recipe(
        parents={"v3": "deepseek-ai/DeepSeek-V3-0324", "r1": "deepseek-ai/DeepSeek-R1"},
        base="v3",
        rules=(Rule(take="r1", components=("routed_experts",)),),
    )


def test_everything_at_once() -> None:
    """Every key of the language has its place in the records."""
    text = """
    parents: {v3: , r1: /R1}
    base: v3
    rules:
      - mix: {r1: 0.75}
        components: [shared_experts, routed_experts]
        layers: 3-30
        experts: [0, 8-15]
      - mix: {r1: {from: 0.2, to: 0.8}}
        tensors: "*.kv_b_proj.weight"
      - mix: {v3: 1, r1: 0.5}
        normalize: true
        mtp: true
      - mix: {v3: 1, r1: 1}
        normalize: false
        delta: 0.0015
        components: all
    output: {dtype: fp8-block, shards: by-rule, tokenizer: v3, chat_template: r1}
    """
    assert parse_recipe(text) == Recipe(
        parents={"v3": None, "r1": "/R1"},
        base="v3",
        rules=(
            Rule(
                mix={"r1": 0.75},
                components=("routed_experts", "shared_experts"),
                layers=(Span(3, 30),),
                experts=(Span(0, 0), Span(8, 15)),
            ),
            Rule(mix={"r1": Gradient(0.2, 0.8)}, tensors=("*.kv_b_proj.weight",)),
            Rule(mix={"v3": 1.0, "r1": 0.5}, normalize=True, mtp=True),
            Rule(mix={"v3": 1.0, "r1": 1.0}, normalize=False, delta=0.0015, components=COMPONENTS),
        ),
        output=Output(dtype="fp8-block", shards="by-rule", tokenizer="v3", chat_template="r1"),
    )


@pytest.mark.parametrize("rules", ["", "rules:", "rules: []", "rules: ~"])
def test_no_rules(rules: str) -> None:
    """A recipe without rules is the base."""
    assert parse_recipe(HEAD + rules).rules == ()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5", [(5, 5)]),
        ("'5'", [(5, 5)]),
        ("3-30", [(3, 30)]),
        ("3 - 30", [(3, 30)]),
        ("'3-30'", [(3, 30)]),
        ("last 4", [(-4, -1)]),
        ("[3, 8-10]", [(3, 3), (8, 10)]),
        ("'3, 8-10'", [(3, 3), (8, 10)]),
        ("[0-1, last 2]", [(0, 1), (-2, -1)]),
        ("7-7", [(7, 7)]),
        ("010", [(10, 10)]),
        ("0x10", [(16, 16)]),
        ("0o17", [(15, 15)]),
    ],
)
@pytest.mark.parametrize("key", ["layers", "experts"])
def test_spans(key: str, written: str, meant: list[tuple[int, int]]) -> None:
    """Layers and experts are numbers, ranges with both ends, the last few, or a list of these; YAML 1.2 reads numbers."""
    assert getattr(rule_of(f"take: r1, {key}: {written}"), key) == tuple(Span(*span) for span in meant)


@pytest.mark.parametrize(
    ("span", "meant"),
    [(Span(3, 5), [3, 4, 5]), (Span(2, 2), [2]), (Span(-4, -1), [6, 7, 8, 9]), (Span(-1, -1), [9])],
)
def test_span_within(span: Span, meant: list[int]) -> None:
    """A span means the numbers that Python's slices of ten numbers would hold, last one included."""
    assert list(span.within(10)) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("router", ("router",)),
        ("[router]", ("router",)),
        ("[router, embedding]", ("embedding", "router")),
        ("[router, router]", ("router",)),
        ("all", COMPONENTS),
        ("[all]", COMPONENTS),
    ],
)
def test_components(written: str, meant: tuple[str, ...]) -> None:
    """Components are one word, a list in any order, or all."""
    assert rule_of(f"take: r1, components: {written}").components == meant


def test_globs() -> None:
    """Globs are one pattern or a list of them, as they are."""
    assert rule_of("take: r1, tensors: '*.weight'").tensors == ("*.weight",)
    assert rule_of("take: r1, tensors: ['*.a', 'model.[0-9].b']").tensors == ("*.a", "model.[0-9].b")


@pytest.mark.parametrize(("written", "meant"), [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_mtp(written: str, meant: bool) -> None:
    """The mark is selected by the words that YAML 1.2 calls true and false."""
    assert rule_of(f"take: r1, mtp: {written}").mtp is meant


# -------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("wrong", "word", "near"),
    [
        ("parent: {a: A}", "unknown key 'parent'", "parents"),
        (HEAD + "rule: []", "unknown key 'rule'", "rules"),
        (HEAD + "ouput: {}", "unknown key 'ouput'", "output"),
        ("parents: {v3: A}\nbase: v4", "unknown parent 'v4'", "v3"),
        (HEAD + "rules: [{takes: r1, mtp: true}]", "unknown key 'takes'", "take"),
        (HEAD + "rules: [{take: r2, mtp: true}]", "unknown parent 'r2'", "r1"),
        (HEAD + "rules: [{mix: {r11: 0.5}, mtp: true}]", "unknown parent 'r11'", "r1"),
        (HEAD + "rules: [{take: r1, component: all}]", "unknown key 'component'", "components"),
        (HEAD + "rules: [{take: r1, layer: 3}]", "unknown key 'layer'", "layers"),
        (HEAD + "rules: [{take: r1, components: routed_expert}]", "component 'routed_expert'", "routed_experts"),
        (HEAD + "rules: [{take: r1, components: routed-experts}]", "'routed-experts'", "routed_experts"),
        (HEAD + "rules: [{take: r1, components: [norm, atention]}]", "component 'atention'", "attention"),
        (HEAD + "rules: [{mix: {r1: {form: 0, to: 1}}, mtp: true}]", "unknown key 'form'", "from"),
        (HEAD + "output: {dtype: bf61}", "unknown dtype 'bf61'", "bf16"),
        (HEAD + "output: {dtype: fp8_block}", "unknown dtype 'fp8_block'", "fp8-block"),
        (HEAD + "output: {shards: by_rule}", "unknown layout 'by_rule'", "by-rule"),
        (HEAD + "output: {tokeniser: v3}", "unknown key 'tokeniser'", "tokenizer"),
        (HEAD + "output: {tokenizer: r}", "unknown parent 'r'", "r1"),
        (HEAD + "output: {chat_template: v33}", "unknown parent 'v33'", "v3"),
    ],
)
def test_typos(wrong: str, word: str, near: str) -> None:
    """A wrong word is quoted, and the nearest right one is offered."""
    said = refusal(wrong)
    assert word in said
    assert f"to do:    did you mean {near!r}?" in said


def test_typo_without_a_near_word() -> None:
    """A word that resembles none is answered with all that would be right, and with no guess."""
    said = refusal(HEAD + "rules: [{take: r1, components: zzz}]")
    assert "recipe: rule 1: components: unknown component 'zzz'" in said
    assert "expected: " + ", ".join(COMPONENTS) in said
    assert "did you mean" not in said


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("mix: {r1: 0.5, v3: 0.4}, mtp: true", ["the shares do not sum to 1", "found:    0.9", "leave 'v3' out"]),
        ("mix: {v3: {from: 1, to: 0}, r1: {from: 0, to: 0.5}}, mtp: true", ["do not sum to 1", "found:    0.5"]),
        ("mix: {r1: 1.5}, mtp: true", ["needs every parent written out", "expected: v3, r1", "(with 1.5)"]),
        ("mix: {r1: -0.25}, mtp: true", ["a share below 0 or above 1", "(with -0.25)"]),
        ("mix: {r1: {from: 0.5, to: 1.25}}, mtp: true", ["a share below 0 or above 1", "(with 1.25)"]),
        ("mix: {r1: -0.5, v3: 0.5}, normalize: true, mtp: true", ["shares that sum to 0 can't be normalized"]),
        (
            "mix: {r1: {from: 0, to: 1}, v3: {from: 1, to: -3}}, normalize: true, mtp: true",
            ["shares that sum to 0 can't be normalized"],
        ),
        ("mix: {r1: {from: 1}}, mtp: true", ["a gradient needs both ends", "{from: 0.2, to: 0.8}"]),
        ("mix: {r1: '0.5'}, mtp: true", ["r1: a share must be a number", "such as 0.75", "'0.5'"]),
        ("mix: {r1: true}, mtp: true", ["a share must be a number", "True"]),
        ("mix: {r1: .inf}, mtp: true", ["a share must be a number", "inf"]),
        ("mix: {r1: .nan}, mtp: true", ["a share must be a number", "nan"]),
        ("mix: {r1: 1e7}, mtp: true", ["a share must be a number"]),
        ("mix: {r1: }, mtp: true", ["a share must be a number", "None"]),
        ("mix: r1, mtp: true", ["mix: is not what belongs here", "{PARENT: SHARE, ...}", "'r1'"]),
        ("mix: {}, mtp: true", ["mix: names no parents"]),
        ("mix: {r1: 0.5}, take: r1, mtp: true", ["needs either take or mix", "mix, take, mtp"]),
        ("components: all", ["needs either take or mix", "found:    components"]),
        ("take: , mtp: true", ["take: no parent is given", "expected: v3, r1"]),
        ("take: [r1], mtp: true", ["take: unknown parent ['r1']"]),
        ("take: r1", ["selects nothing", "components, layers, experts, tensors, mtp", "components: all"]),
        ("take: r1, components: , layers: ~", ["selects nothing"]),
        ("take: r1, components: []", ["components: is empty", "routed_experts"]),
        ("take: r1, components: [all, router]", ["unknown component 'all'"]),
        ("take: r1, layers: []", ["layers: is empty", "3-30"]),
        ("take: r1, experts: []", ["experts: is empty"]),
        ("take: r1, tensors: []", ["tensors: must be one pattern or a list of them", "[]"]),
        ("take: r1, tensors: ''", ["tensors: must be one pattern or a list of them"]),
        ("take: r1, tensors: [a, 5]", ["tensors: must be one pattern or a list of them", "['a', 5]"]),
        ("take: r1, layers: 30-3", ["layers: runs backwards", "expected: 3-30", "found:    30-3"]),
        ("take: r1, layers: -1", ["layers: is no range of numbers", "last 4", "found:    -1"]),
        ("take: r1, layers: last 0", ["is no range of numbers", "'last 0'"]),
        ("take: r1, layers: 3.0", ["is no range of numbers", "3.0"]),
        ("take: r1, experts: true", ["experts: is no range of numbers", "True"]),
        ("take: r1, layers: [[3]]", ["is no range of numbers", "[3]"]),
        ("take: r1, layers: first", ["is no range of numbers", "'first'"]),
        ("take: r1, layers: 9999999", ["is no range of numbers"]),
        ("take: r1, normalize: true, mtp: true", ["normalize belongs to mix"]),
        ("mix: {r1: 1}, normalize: 1, mtp: true", ["must be true or false", "found:    1"]),
        (
            "take: r1, delta: 0.0015, mtp: true",
            ["delta belongs to mix", "mix: {r1: 1} takes units whole where they differ"],
        ),
        ("take: r2, delta: 0.0015, mtp: true", ["take: unknown parent 'r2'"]),
        ("mix: {r1: 0.5}, delta: 0.0015", ["selects nothing"]),
        (
            "mix: {r1: 1}, delta: -0.1, mtp: true",
            ["delta: a delta must be a number from 0 on", "such as 0.0015", "-0.1"],
        ),
        ("mix: {r1: 1}, delta: '0.1', mtp: true", ["delta: a delta must be a number from 0 on", "found:    '0.1'"]),
        ("mix: {r1: 1}, delta: true, mtp: true", ["a delta must be a number from 0 on", "found:    True"]),
        ("mix: {r1: 1}, delta: .nan, mtp: true", ["a delta must be a number from 0 on", "found:    nan"]),
        ("mix: {r1: 1}, delta: .inf, mtp: true", ["a delta must be a number from 0 on", "found:    inf"]),
        ("mix: {r1: 1}, delta: 1e999, mtp: true", ["a delta must be a number from 0 on", "found:    inf"]),
        ("mix: {r1: 1}, delta: {from: 0, to: 1}, mtp: true", ["a delta must be a number from 0 on", "{'from': 0"]),
    ],
)
def test_mistakes_in_a_rule(rule: str, said: list[str]) -> None:
    """A rule that can't be meant is refused with its number, what was found, and what would be right."""
    text = refused_rule(rule)
    assert text.startswith("recipe: rule 1: ")
    for words in said:
        assert words in text


def test_second_rule_is_named() -> None:
    """The message says which rule is wrong, counted from 1."""
    assert "recipe: rule 2: " in refusal(HEAD + "rules: [{take: r1, mtp: true}, {take: r1}]")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["recipe: is not what belongs here", "a recipe with parents, base and rules", "found:    None"]),
        ("# only a comment", ["is not what belongs here", "None"]),
        ("- take: r1", ["is not what belongs here", "found:    [{'take': 'r1'}]"]),
        ("hello", ["is not what belongs here", "found:    'hello'"]),
        ("base: v3", ["parents: is not what belongs here", "{NAME: PATH, ...}"]),
        ("parents: {}\nbase: v3", ["names no parents"]),
        ("parents: [v3]\nbase: v3", ["parents: is not what belongs here", "['v3']"]),
        ("parents: {v3: 5}\nbase: v3", ["the path of 'v3' must be text", "found:    5"]),
        ("parents: {'a b': A}\nbase: v3", ["a parent's name is a short word", "'a b'"]),
        ("parents: {a/b: A}\nbase: v3", ["a parent's name is a short word", "'a/b'"]),
        ("parents: {3: A}\nbase: 3", ["a key must be a word", "found:    3", "put it in quotes"]),
        ("parents: {v3: A}", ["base: no parent is given", "expected: v3"]),
        (HEAD + "rules: {take: r1}", ["rules must be a list", "- take: ..."]),
        (HEAD + "rules: {}", ["rules must be a list"]),
        (HEAD + "rules: false", ["rules must be a list"]),
        (HEAD + "rules: [take]", ["rule 1: is not what belongs here", "take or mix, with what it selects", "'take'"]),
        (HEAD + "output: bf16", ["output: is not what belongs here", "{dtype: ..., shards: ..."]),
        (HEAD + "output: {tokenizer: }", ["output: tokenizer: no parent is given"]),
    ],
)
def test_mistakes_elsewhere(text: str, said: list[str]) -> None:
    """A text that is no recipe is refused with what belongs there."""
    message = refusal(text)
    for words in said:
        assert words in message


# ---------------------------------------------------------------------------------------- YAML's traps


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "base: r1", ["recipe, line 3: ", "the key 'base' stands twice"]),
        (HEAD + "rules:\n- mix: {r1: 0.5, 'r1': 0.6}\n  mtp: true", ["line 4: ", "the key 'r1' stands twice"]),
        (HEAD + "rules:\n- take: r1\n  tensors: *.weight", ["line 5: ", 'put it in quotes: tensors: "*.weight"']),
        (HEAD + "rules:\n- take: r1\n  tensors: *weight", ["line 5: ", "put a glob in quotes"]),
        (HEAD + "rules: &all\n- take: r1", ["line 3: ", "anchors (&) and aliases (*) are not used in recipes"]),
        (HEAD + "<<: {output: {}}", ["unknown key '<<'"]),
        (HEAD + "rules:\n- take: r1\n  layers: 3:59", ["found:    '3:59'", "write 3-59; both ends are included"]),
        (HEAD + "rules:\n- take: r1\n  mtp: yes", ["mtp: must be true or false", "found:    'yes'"]),
        (HEAD + "rules:\n- take: r1\n  mtp: on", ["mtp: must be true or false", "found:    'on'"]),
        (HEAD + "rules:\n- take: r1\n  mtp: no", ["mtp: must be true or false", "found:    'no'"]),
        (HEAD + "rules:\n- mix: {r1: 3:59}\n  mtp: true", ["a share must be a number", "'3:59'"]),
        (HEAD + "rules:\n\t- take: r1", ["line 4: ", "found character '\\t' that cannot start any token"]),
        (HEAD + "rules: !!python/object/apply:os.system [ls]", ["line 3: ", "tags (!) are not used in recipes"]),
        (HEAD + "rules: !!map [a, b]", ["tags (!) are not used"]),
        (HEAD + "rules: !!timestamp x", ["tags (!) are not used"]),
        (HEAD + "rules: !!bool maybe", ["tags (!) are not used"]),
        (HEAD + "rules: !mine [a]", ["tags (!) are not used"]),
        (HEAD + "? [a]\n: b", ["line 3: ", "a key must be a word"]),
        (HEAD + "a: b: c", ["line 3: ", "mapping values are not allowed here"]),
        (HEAD + "rules: [", ["is not a valid recipe text"]),
        (HEAD + "---\n" + HEAD, ["line 3: ", "found another document"]),
        (HEAD + "rules: " + "[" * 50_000, ["is not a valid recipe text", "recursion"]),
        (HEAD + "rules: " + "{a: " * 5_000, ["is not a valid recipe text", "recursion"]),
        (HEAD + "\x00", ["is not a valid recipe text", "special characters are not allowed"]),
        (HEAD + "rules: " + "9" * 5000, ["line 3: is not a valid recipe text", "a number of 5000 digits"]),
        (HEAD + "rules: 0x" + "f" * 5000, ["line 3: is not a valid recipe text", "a number of 5002 digits"]),
        (HEAD + 'rules: "\\ud83d\\ude00"', ["line 3: is not a valid recipe text", "half of a surrogate pair"]),
        (HEAD + "#" * (1 << 20), ["is too long for a recipe", "characters"]),
    ],
)
def test_traps_are_refused(text: str, said: list[str]) -> None:
    """What YAML would misread, or carry out, is refused with its line and what to write in its place."""
    message = refusal(text)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-3", 0.001), ("1E-3", 0.001), (".5", 0.5), ("1.", 1.0), ("0", 0.0), ("+0.25", 0.25), ("5e-1", 0.5)],
)
def test_numbers(written: str, meant: float) -> None:
    """Every usual way to write a number is a number, `1e-3` too."""
    assert rule_of(f"mix: {{r1: {written}}}, mtp: true").mix == {"r1": meant}
    assert rule_of(f"mix: {{r1: 1}}, delta: {written}, mtp: true").delta == meant


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n", "3:59", "1_000", "2024-01-01"])
def test_words_stay_words(word: str) -> None:
    """Words that YAML 1.1 takes for truth values, times and numbers are words."""
    assert parse_recipe(f"parents: {{v3: {word}}}\nbase: v3").parents == {"v3": word}


def test_byte_order_mark() -> None:
    """A byte order mark, which some editors write, does no harm."""
    assert parse_recipe("\ufeff" + HEAD) == parse_recipe(HEAD)


# ----------------------------------------------------------------------------------------------- files


def test_load_recipe(tmp_path: Path) -> None:
    """A file is read as its text is."""
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD)
    assert load_recipe(path) == load_recipe(str(path)) == parse_recipe(HEAD)


def test_wrong_files(tmp_path: Path) -> None:
    """A file that is missing, a folder, not UTF-8, too long or wrong is refused by its path."""
    path = tmp_path / "recipe.yaml"
    for content, said in (
        (None, "there is no such recipe"),
        ("parents: {ä: A}".encode("latin-1"), "is not UTF-8 text (byte 10)"),
        (HEAD.encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (b"#" * ((1 << 20) + 1), "is too long for a recipe\n  found:    1048577 bytes"),
        (HEAD.encode() + b"rules: 5", "rules must be a list"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RecipeError) as e:
            load_recipe(path)
        assert str(e.value).startswith(f"{path}: {said}")
    with pytest.raises(RecipeError, match="there is no such recipe"):
        load_recipe(tmp_path)


# ------------------------------------------------------------------------------------------ round trip

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,6}", fullmatch=True) | st.sampled_from(
    ["1e5", "0o7", "0x1f", "010", "no", "y", "null", "3.5", "12e03", "true", "2024-01-01", "1e-3"]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=12)
PATHS = st.none() | TEXTS | st.sampled_from(["1e3", "~", "*.x", "&a", "3:59", "yes", "/a b", "c: d", "# e", "0o7"])
SPANS = st.lists(
    st.builds(lambda a, n: Span(a, a + n), st.integers(0, 500), st.integers(0, 200))
    | st.integers(1, 60).map(lambda n: Span(-n, -1)),
    min_size=1,
    max_size=3,
).map(tuple)
COMPONENT_SETS = st.sets(st.sampled_from(COMPONENTS), min_size=1).map(
    lambda words: tuple(c for c in COMPONENTS if c in words)
)
SHARES = st.floats(0, 1) | st.sampled_from([0.75, 1e-7, 1 / 3])


@st.composite
def mixes(draw: st.DrawFn, parents: list[str], base: str) -> dict[str, Any]:
    """mix, normalize and delta of a rule, in any of the ways that are right."""
    delta = draw(
        st.sampled_from([{}, {}, {"delta": 0.0}, {"delta": 1e-05}]) | st.builds(dict, delta=st.floats(0, 1e300))
    )
    way = draw(st.sampled_from(["rest", "normalize", "as is"]))
    if way == "rest":
        others = draw(st.lists(st.sampled_from([p for p in parents if p != base] or [base]), unique=True, min_size=1))
        share = st.floats(0, 1 / len(others))
        mix: dict[str, float | Gradient] = {
            p: 1.0 if p == base else draw(share | st.builds(Gradient, share, share)) for p in others
        }
        return {"mix": mix, **delta}
    share = st.floats(0.001, 9) if way == "normalize" else st.floats(-9, 9)
    return {
        "mix": {p: draw(share | st.builds(Gradient, share, share)) for p in parents},
        "normalize": way == "normalize",
        **delta,
    }


@st.composite
def rules(draw: st.DrawFn, parents: list[str], base: str) -> Rule:
    what = draw(st.sampled_from(parents).map(lambda p: {"take": p}) | mixes(parents, base))
    selectors: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "components": COMPONENT_SETS,
                "layers": SPANS,
                "experts": SPANS,
                "tensors": st.lists(TEXTS, min_size=1, max_size=2).map(tuple),
                "mtp": st.booleans(),
            },
        )
    )
    return Rule(**what, **(selectors or {"components": COMPONENTS}))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    parents: dict[str, str | None] = draw(st.dictionaries(NAMES, PATHS, min_size=1, max_size=4))
    base = draw(st.sampled_from(sorted(parents)))
    return Recipe(
        parents=parents,
        base=base,
        rules=tuple(draw(st.lists(rules(sorted(parents), base), max_size=3))),
        output=Output(
            dtype=draw(st.sampled_from(["keep", "bf16", "f16", "f32", "fp8-block"])),
            shards=draw(st.sampled_from(["base", "by-rule"])),
            tokenizer=draw(st.none() | st.sampled_from(sorted(parents))),
            chat_template=draw(st.none() | st.sampled_from(sorted(parents))),
        ),
    )


@given(recipes())
def test_round_trip(recipe: Recipe) -> None:
    """Written out as data and as text, every recipe reads back as itself, the order of parents and shares kept."""
    for again in (recipe_from_data(recipe_to_data(recipe)), parse_recipe(recipe_to_yaml(recipe))):
        assert again == recipe
        assert list(again.parents) == list(recipe.parents)
        assert [list(r.mix or ()) for r in again.rules] == [list(r.mix or ()) for r in recipe.rules]


@given(recipes())
def test_say_rule(recipe: Recipe) -> None:
    """A rule's one line is the rule in the recipe's own language."""
    for rule in recipe.rules:
        line = say_rule(rule)
        assert "\n" not in line
        head = recipe_to_yaml(Recipe(recipe.parents, recipe.base))
        assert parse_recipe(f"{head}rules: [{{{line}}}]").rules == (rule,)


@given(st.text(max_size=80) | st.text("{}[]:-,*&!'\"# \n\trules01.", max_size=60).map(lambda t: HEAD + t))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the parser fail in another way than with a message."""
    try:
        parse_recipe(text)
    except ChimerakitError as e:
        assert str(e)  # noqa: PT017 - either outcome is right


# -------------------------------------------------------------------------------------------- mergekit


def mergekit_answer(text: str) -> Recipe:
    """The recipe that a refusal of a mergekit configuration shows."""
    message = refusal(text)
    assert "recipe: is a mergekit configuration" in message
    head, shown = message.split("the recipe that says the same:\n")
    assert head.endswith("to do:    ")
    return parse_recipe(shown)


def test_mergekit_linear() -> None:
    """A linear merge is answered with its weights, divided by their sum as mergekit does, and its dtype."""
    recipe = mergekit_answer("""
    merge_method: linear
    models:
      - model: org/A
        parameters: {weight: 1.0}
      - model: org/B
        parameters: {weight: 0.3}
    dtype: bfloat16
    """)
    assert recipe == Recipe(
        parents={"m1": "org/A", "m2": "org/B"},
        base="m1",
        rules=(Rule(mix={"m1": 1.0, "m2": 0.3}, normalize=True, components=COMPONENTS),),
        output=Output(dtype="bf16"),
    )


def test_mergekit_without_normalizing() -> None:
    """`normalize: false`, a weight for all models and base_model are kept."""
    recipe = mergekit_answer("""
    merge_method: linear
    base_model: B
    parameters: {weight: 0.5, normalize: false}
    models: [{model: A}, {model: B}]
    """)
    assert recipe == Recipe(
        parents={"m1": "A", "m2": "B"},
        base="m2",
        rules=(Rule(mix={"m1": 0.5, "m2": 0.5}, normalize=False, components=COMPONENTS),),
    )


def test_mergekit_filters() -> None:
    """A filter on tensor names is a glob; the value without filter is for all others."""
    recipe = mergekit_answer("""
    merge_method: linear
    models:
      - model: A
        parameters: {weight: [{filter: mlp, value: 0.25}, {value: 1}]}
      - model: B
        parameters: {weight: [{filter: mlp, value: 0.75}, {filter: "*", value: 0}]}
    """)
    assert recipe.rules == (
        Rule(mix={"m1": 0.25, "m2": 0.75}, normalize=True, tensors=("*mlp*",)),
        Rule(mix={"m1": 1.0, "m2": 0.0}, normalize=True, components=COMPONENTS),
    )


def test_mergekit_gradient() -> None:
    """A gradient is one over the layers; what has no layer gets the value of its end, as in mergekit."""
    recipe = mergekit_answer("""
    merge_method: linear
    models:
      - {model: A, parameters: {weight: [0.25, 1]}}
      - {model: B, parameters: {weight: 1}}
    """)
    assert recipe.rules == (
        Rule(mix={"m1": Gradient(0.25, 1), "m2": 1.0}, normalize=True, tensors=("*.layers.*",)),
        Rule(mix={"m1": 0.25, "m2": 1.0}, normalize=True, components=("embedding",)),
        Rule(mix={"m1": 1.0, "m2": 1.0}, normalize=True, components=COMPONENTS),
    )


def test_mergekit_passthrough() -> None:
    """One model passed through is one parent taken whole."""
    recipe = mergekit_answer("{merge_method: passthrough, models: [{model: A}], dtype: float16}")
    assert recipe == Recipe({"m1": "A"}, "m1", (Rule(take="m1", components=COMPONENTS),), Output(dtype="f16"))


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("{merge_method: slerp, base_model: A, models: [{model: A}, {model: B}], parameters: {t: 0.5}}", "slerp"),
        ("{merge_method: ties, base_model: A, models: [{model: B, parameters: {density: 0.5}}]}", "ties"),
        (
            "{merge_method: passthrough, slices: [{sources: [{model: A, layer_range: [0, 8]}]}, "
            "{sources: [{model: B, layer_range: [4, 12]}]}]}",
            "passthrough",
        ),
        ("{merge_method: passthrough, models: [{model: A}, {model: B}]}", "passthrough"),
        ("{merge_method: passthrough, models: [{model: A, parameters: {scale: 0.5}}]}", "passthrough"),
        ("{merge_method: linear, slices: [{sources: []}]}", "linear"),
        ("{merge_method: linear, models: [{model: A, parameters: {weight: [0, 0.5, 1]}}]}", "linear"),
        ("{merge_method: linear, models: [{model: A, parameters: {weight: [{filter: mlp, value: 1}]}}]}", "linear"),
        ("{merge_method: linear, models: [{model: {path: A}}]}", "linear"),
        ("{merge_method: linear, models: [{}]}", "linear"),
        ("{merge_method: linear, models: 5}", "linear"),
        ("{merge_method: [linear], models: [{model: A}]}", "['linear']"),
        ("{base_model: A, experts: [{source_model: B}]}", "None"),
    ],
)
def test_mergekit_without_an_equal(text: str, method: str) -> None:
    """What no rule says exactly is recognised, and no rule is made up for it."""
    message = refusal(text)
    assert "recipe: is a mergekit configuration" in message
    assert f"found:    merge_method: {method}" in message
    assert "no rule says exactly this" in message


# ----------------------------------------------------------------------------------------------- flags


def test_flags() -> None:
    """Flags say a recipe: rules that take, rules that mix, base and dtype."""
    recipe = recipe_from_flags(
        ["v3", "r1"], "v3", ["r1:routed_experts,router"], ["r1:attention=0.75", "r1:all=1e-1"], "bf16"
    )
    assert recipe == Recipe(
        parents={"v3": None, "r1": None},
        base="v3",
        rules=(
            Rule(take="r1", components=("router", "routed_experts")),
            Rule(mix={"r1": 0.75}, components=("attention",)),
            Rule(mix={"r1": 0.1}, components=COMPONENTS),
        ),
        output=Output(dtype="bf16"),
    )


def test_flags_one_parent() -> None:
    """The only parent is the base."""
    assert recipe_from_flags(["v3"], None, [], [], None) == Recipe({"v3": None}, "v3")


@pytest.mark.parametrize(
    ("base", "takes", "mixes", "dtype", "said"),
    [
        (None, [], [], None, ["command line: which parent is the base?", "--base NAME"]),
        ("v4", [], [], None, ["command line: base: unknown parent 'v4'", "did you mean 'v3'?"]),
        ("v3", ["r1"], [], None, ["--take r1: can't be read", "expected: --take r1:routed_experts"]),
        ("v3", [":router"], [], None, ["--take :router: can't be read"]),
        ("v3", ["r1:"], [], None, ["--take r1:: can't be read"]),
        ("v3", ["r1:router=1"], [], None, ["--take r1:router=1: can't be read"]),
        ("v3", ["r2:router"], [], None, ["rule 1: take: unknown parent 'r2'", "did you mean 'r1'?"]),
        ("v3", ["r1:routers"], [], None, ["unknown component 'routers'", "did you mean 'router'?"]),
        ("v3", [], ["r1:router"], None, ["--mix r1:router: can't be read", "--mix r1:routed_experts=0.75"]),
        ("v3", [], ["r1:router=half"], None, ["--mix r1:router=half: the share is no number"]),
        ("v3", [], ["r1:router=nan"], None, ["a share must be a number", "nan"]),
        ("v3", [], ["r1:router=1.5"], None, ["a share below 0 or above 1"]),
        ("v3", [], [], "int8", ["output: dtype: unknown dtype 'int8'"]),
    ],
)
def test_flag_mistakes(
    base: str | None, takes: list[str], mixes: list[str], dtype: str | None, said: list[str]
) -> None:
    """A flag that can't be read is quoted with an example that can."""
    with pytest.raises(RecipeError) as e:
        recipe_from_flags(["v3", "r1"], base, takes, mixes, dtype)
    for words in said:
        assert words in str(e.value)


# --------------------------------------------------------------------------------------------- parents


def located(
    parents: Mapping[str, str | None], given_: Mapping[str, Path], folder: Path
) -> tuple[Recipe, dict[str, Path]]:
    return locate_parents(Recipe(dict(parents), next(iter(parents))), given_, folder)


def test_paths_from_the_recipes_folder(tmp_path: Path) -> None:
    """Relative paths are meant from the recipe's folder, absolute ones stay, and neither stays in the recipe."""
    (tmp_path / "near" / "V3").mkdir(parents=True)
    (tmp_path / "R1").mkdir()
    recipe, paths = located({"v3": "V3", "r1": str(tmp_path / "R1")}, {}, tmp_path / "near")
    assert paths == {"v3": tmp_path / "near" / "V3", "r1": tmp_path / "R1"}
    assert recipe.parents == {"v3": None, "r1": None}


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "V3").mkdir()
    assert located({"v3": "~/V3"}, {}, Path("elsewhere"))[1] == {"v3": tmp_path / "V3"}


def test_command_line_wins(tmp_path: Path) -> None:
    """A path on the command line is taken in place of the recipe's, in the recipe's order."""
    (tmp_path / "V3").mkdir()
    recipe, paths = located({"v3": "V3", "r1": None}, {"r1": Path("x"), "v3": Path("y")}, tmp_path)
    assert list(paths.items()) == [("v3", Path("y")), ("r1", Path("x"))]
    assert recipe.parents == {"v3": None, "r1": None}


def test_hub_name_stays_when_overridden(tmp_path: Path) -> None:
    """A hub name says what a parent is, so it stays in the recipe when the command line says where it lies."""
    hub = {"v3": "deepseek-ai/DeepSeek-V3-0324", "r1": "deepseek-ai/DeepSeek-R1@main", "old": "/gone/V2"}
    recipe, _ = located(hub, dict.fromkeys(hub, tmp_path), tmp_path)
    assert recipe.parents == hub | {"old": None}


def test_folder_that_looks_like_a_hub_name(tmp_path: Path) -> None:
    """What is a folder here is a folder, whatever its name looks like."""
    (tmp_path / "org" / "model").mkdir(parents=True)
    recipe, paths = located({"v3": "org/model"}, {}, tmp_path)
    assert (recipe.parents, paths) == ({"v3": None}, {"v3": tmp_path / "org" / "model"})
    assert located({"v3": "org/model"}, {"v3": Path("x")}, tmp_path)[0].parents == {"v3": None}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "deepseek-ai/DeepSeek-R1",
            "the parent 'r1' is 'deepseek-ai/DeepSeek-R1', which is no folder here; parents on a hub can't be read yet",
        ),
        ("/no/such/folder", "/no/such/folder: no such file or folder"),
        ("~nobody-of-this-name/R1", "~nobody-of-this-name/R1: no such file or folder"),
        ("s3://bucket/R1", "no such file or folder"),
        ("x" * 5000, "no such file or folder"),
        ("nul\x00", "no such file or folder"),
        (None, "nothing said"),
    ],
)
def test_parents_that_are_nowhere(written: str | None, said: str, tmp_path: Path) -> None:
    """A parent that can't be found, a hub name too, is answered with the flag that says where it is."""
    with pytest.raises(RecipeError) as e:
        located({"r1": written}, {}, tmp_path)
    assert said in str(e.value)
    assert "--parent r1=PATH" in str(e.value)


def test_unknown_parent_on_the_command_line(tmp_path: Path) -> None:
    """A path for a parent that the recipe does not name is refused with the names that it has."""
    with pytest.raises(RecipeError, match=re.escape("--parent: unknown parent 'r11'")) as e:
        located({"v3": None, "r1": None}, {"r11": tmp_path}, tmp_path)
    assert "expected: v3, r1" in str(e.value)
    assert "did you mean 'r1'?" in str(e.value)


# ---------------------------------------------------------------------------------------------- shares

THREE = Recipe({"r1": None, "v3": None, "x": None}, "v3")


@pytest.mark.parametrize(
    ("rule", "layer", "num_layers", "shares"),
    [
        (Rule(take="r1"), 3, 9, {"r1": 1.0}),
        (Rule(mix={"r1": 0.75}), None, 9, {"v3": 0.25, "r1": 0.75}),
        (Rule(mix={"x": 0.5, "r1": 0.25}), 0, 9, {"v3": 0.25, "x": 0.5, "r1": 0.25}),
        (Rule(mix={"x": 0.5, "v3": 0.25, "r1": 0.25}), 0, 9, {"v3": 0.25, "x": 0.5, "r1": 0.25}),
        (Rule(mix={"x": 0.75, "r1": 0.25}), 0, 9, {"x": 0.75, "r1": 0.25}),
        (Rule(mix={"x": 0.1, "r1": 0.9}), 0, 9, {"x": 0.1, "r1": 0.9}),
        (Rule(mix={"r1": 0.0, "x": 0.5}), 0, 9, {"v3": 0.5, "x": 0.5}),
        (Rule(mix={"r1": 1.0}), 0, 9, {"r1": 1.0}),
        (Rule(mix={"r1": 0.0}), 0, 9, {"v3": 1.0}),
        (Rule(mix={"r1": 0.0}, normalize=False), 0, 9, {}),
        (Rule(mix={"v3": 2.0, "r1": 6.0}, normalize=True), 0, 9, {"v3": 0.25, "r1": 0.75}),
        (Rule(mix={"r1": 0.3}, normalize=True), 0, 9, {"r1": 1.0}),
        (Rule(mix={"v3": 1.0, "r1": 1.0}, normalize=False), 0, 9, {"v3": 1.0, "r1": 1.0}),
        (Rule(mix={"v3": 2.0, "r1": -1.0, "x": 0.0}), 0, 9, {"v3": 2.0, "r1": -1.0}),
        (Rule(mix={"r1": Gradient(0, 1)}), 0, 5, {"v3": 1.0}),
        (Rule(mix={"r1": Gradient(0, 1)}), 1, 5, {"v3": 0.75, "r1": 0.25}),
        (Rule(mix={"r1": Gradient(0, 1)}), 4, 5, {"r1": 1.0}),
        (Rule(mix={"r1": Gradient(0.2, 0.8)}), 4, 5, {"v3": 0.2, "r1": 0.8}),
        (Rule(mix={"r1": Gradient(0, 1)}), 5, 5, {"r1": 1.0}),  # an MTP layer
        (Rule(mix={"r1": Gradient(0.25, 1)}), 0, 1, {"v3": 0.75, "r1": 0.25}),
        (Rule(mix={"r1": Gradient(0.25, 1)}), 1, 1, {"v3": 0.75, "r1": 0.25}),
        (Rule(mix={"v3": 1.0, "r1": Gradient(0, 1)}, normalize=True), 4, 5, {"v3": 0.5, "r1": 0.5}),
    ],
)
def test_shares(rule: Rule, layer: int | None, num_layers: int, shares: dict[str, float]) -> None:
    """Shares come base first, then as written; the base has the rest, zeros are gone, MTP layers have the last value."""
    assert list(shares_at(rule, THREE, layer, num_layers).items()) == list(shares.items())


@given(st.lists(st.integers(0, 20), min_size=1, max_size=3).filter(lambda p: sum(p) <= 20), st.integers(0, 9))
def test_the_base_gets_exactly_the_rest(parts: list[int], layer: int) -> None:
    """The base's share is the rest that decimals have on paper, and none where they sum to 1."""
    others = dict(zip(["a", "b", "c"], (p / 20 for p in parts), strict=False))
    recipe = Recipe({"v3": None, **dict.fromkeys(others)}, "v3")
    found = shares_at(Rule(mix=dict(others)), recipe, layer, 10)
    rest = 1 - sum((Fraction(p, 20) for p in parts), Fraction(0))
    assert found.get("v3", 0.0) == float(rest)


def test_decimals_that_sum_to_one_are_no_more_than_one() -> None:
    """No list of decimals that sums to 1 on paper is refused for a speck of float arithmetic."""
    head = "parents: {v3: , a: , b: , c: , d: }\nbase: v3\n"
    for parts in itertools.product(range(1, 20), repeat=3):
        if sum(parts) < 20:
            shares = [p / 20 for p in (*parts, 20 - sum(parts))]
            mix = dict(zip("abcd", shares, strict=True))
            data: dict[str, Any] = {"parents": dict.fromkeys(["v3", *mix]), "base": "v3"}
            recipe = recipe_from_data(data | {"rules": [{"mix": mix, "components": "all"}]})
            assert shares_at(recipe.rules[0], recipe, 0, 1) == mix
    assert rule_of("mix: {a: 0.05, b: 0.55, c: 0.3, d: 0.1}, mtp: true", head).mix is not None


@given(st.floats(-2, 3), st.floats(-2, 3), st.integers(2, 61))
def test_gradient(start: float, stop: float, num_layers: int) -> None:
    """A gradient has exactly its ends at the first and last layer, and a straight line between them."""
    gradient = Gradient(start, stop)
    assert gradient.at(0, num_layers) == start
    assert gradient.at(num_layers - 1, num_layers) == gradient.at(num_layers + 1, num_layers) == stop
    for layer in range(num_layers):
        exact = Fraction(start) + (Fraction(stop) - Fraction(start)) * Fraction(layer, num_layers - 1)
        assert math.isclose(gradient.at(layer, num_layers), float(exact), rel_tol=1e-12, abs_tol=1e-12)


def test_component_words() -> None:
    """The words for components are those of the glossary."""
    expected: list[Component] = ["embedding", "head", "norm", "attention", "dense_mlp"]
    assert list(COMPONENTS) == [*expected, "router", "routed_experts", "shared_experts", "other"]
