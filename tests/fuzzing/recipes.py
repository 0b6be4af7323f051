"""Recipes: texts from the whole grammar in all styles of YAML, and such with something wrong, each from one seed."""

import re
from random import Random
from typing import Any

from chimerakit.records import COMPONENTS
from tests.fuzzing.trees import Node, Pairs, change_bytes, change_tree, holders_of, text_of, tree_of

_PLACES = (None, "/models/v3", "../v3", "tngtech/R1T", "org/name@rev", "~/x", "a b", "é")
_GLOBS = ("*.weight", "model.layers.*", "lm_head.weight", "*[0-9]*", "a?b", "*", "[!a]*", "1e3", "null", "3:59", "- x")
_SPANS = (0, 7, "3-30", "5 - 9", "last 4", "0", "1,3-4", [1, "3-4"], ["last 1"], "000012", "0-999999")
_YAML_ODD = ("&a 1", "*a", "!!python/object/apply:os.system [id]", "!!int '3'", "!x y", "<<", "? a", "|\n  x", ">-\n  y", "0x1F",
             "0o17", "017", "1_000", "3:59", "yes", "no", "~", ".inf", ".nan", "-.inf", "1e-3", "+1", "2026-11-22", "@a", "`a`",
             "%a", "0x" + "f" * 5000, "9" * 5000, "1e99999", "'", "a: b: c", "last 999999999", "0-1000000000000000000",
             "NULL", "\u0085", "\u2028", "last  4", "१-२", "[", "]", "{a: b", "#")  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(?: [0-9]+)?")
_WORDS = ("true", "false", "null")


def plain(seed: int) -> tuple[dict[str, Any], str]:
    """A recipe as data, and the same as text."""
    random = Random(seed)
    data = _data(random)
    return data, _text(random, tree_of(data))


def make(seed: int) -> str:
    """A text that may be no recipe at all."""
    random = Random(seed)
    tree = tree_of(_data(random))
    kinds = [] if random.random() < 0.2 else [random.randrange(8) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    for kind in kinds:
        if kind < 4:
            change_tree(random, tree)
        elif kind < 6:
            _put_odd(random, tree)
    text = _text(random, tree)
    for kind in kinds:
        if kind >= 6:
            text = change_bytes(random, text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    return text


def _put_odd(random: Random, tree: Node) -> None:
    """Something that only YAML can say, as a value or a key."""
    holder, odd = random.choice(holders_of(tree) or [[""]]), random.choice(_YAML_ODD)
    if isinstance(holder, list):
        holder[random.randrange(len(holder))] = odd
        return
    at = random.randrange(len(holder.items))
    key, value = holder.items[at]
    holder.items[at] = (odd, value) if random.random() < 0.2 else (key, odd)


# ------------------------------------------------------------------------------------------------- data


def _data(random: Random) -> dict[str, Any]:
    names = random.sample(("v3", "r1", "0528", "a.b", "V3_1", "true"), random.choice((1, 2, 2, 3)))
    data: dict[str, Any] = {"parents": {name: random.choice(_PLACES) for name in names}, "base": random.choice(names)}
    if random.random() < 0.9:
        data["rules"] = [_rule(random, names, data["base"]) for _ in range(random.randrange(4))]
    if random.random() < 0.4:
        keys = {
            "dtype": ("keep", "bf16", "fp8-block"),
            "shards": ("base", "by-rule"),
            "tokenizer": names,
            "chat_template": names,
        }
        data["output"] = {key: random.choice(keys[key]) for key in random.sample(list(keys), random.randrange(4))}
    return data


def _rule(random: Random, names: list[str], base: str) -> dict[str, Any]:
    others = [name for name in names if name != base]
    rule: dict[str, Any] = {}
    if not others or random.random() < 0.5:
        rule["take"] = random.choice(names)
    else:
        share = random.choice((0, 1, 0.5, 0.25, 1e-3, {"from": 0.25, "to": 0.75}, {"to": 1, "from": 0}))
        rule["mix"] = {random.choice(others): share}
        if random.random() < 0.3:
            rule["mix"], rule["normalize"] = {name: random.choice((-2, 0.5, 3)) for name in names}, False
        if random.random() < 0.3:
            rule["delta"] = random.choice((0, 0.0015, 1e-5, 2))
    choices = {
        "components": ("all", *COMPONENTS, random.sample(COMPONENTS, 2)),
        "layers": _SPANS,
        "experts": _SPANS,
        "tensors": (*_GLOBS, random.sample(_GLOBS, 2)),
        "mtp": (True, False),
    }
    for key in random.sample(list(choices), random.choice((1, 1, 2, 3))):
        rule[key] = random.choice(choices[key])
    return rule


# ------------------------------------------------------------------------------------------------- text


def _text(random: Random, tree: Node) -> str:
    """In block style, flow style, or both."""
    head = random.choice(("", "", "", "# a comment\n", "---\n", "\ufeff", "%YAML 1.2\n---\n"))
    if random.random() < 0.2:
        return head + text_of(tree, ", ", ": ")
    return head + _block(random, tree, 0).removeprefix("\n") + random.choice(("\n", "\n", "", "\n...\n", "  # end"))


def _block(random: Random, node: Node, depth: int) -> str:
    pad = "\n" + " " * depth
    if isinstance(node, str):
        return " " + _literal(random, node)
    if random.random() < 0.25 * depth or not (node.items if isinstance(node, Pairs) else node):
        return " " + text_of(node, ", ", ": ")
    if isinstance(node, Pairs):
        return "".join(f"{pad}{_literal(random, key)}:{_block(random, value, depth + 2)}" for key, value in node.items)
    return "".join(f"{pad}-{_block(random, item, depth + 2)}" for item in node)


def _literal(random: Random, literal: str) -> str:
    """A string plain or in single quotes now and then, where that says the same."""
    inner = literal[1:-1]
    if not literal.startswith('"') or "\\" in inner or not inner.isprintable():
        return literal
    if _PLAIN.fullmatch(inner) and inner not in _WORDS and random.random() < 0.7:
        return inner
    return "'" + inner.replace("'", "''") + "'" if random.random() < 0.5 else literal
