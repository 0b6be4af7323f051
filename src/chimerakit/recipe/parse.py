"""Parsed YAML or JSON -> Recipe: every key, word and number checked, the nearest right word offered."""

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_args

from chimerakit.errors import RecipeError
from chimerakit.recipe.shares import check_shares
from chimerakit.records import COMPONENTS, Component, Gradient, Output, Recipe, Rule, Span
from chimerakit.words import parse_nbytes

_SELECTORS = ("components", "layers", "experts", "tensors", "mtp")
_RULE_KEYS = ("take", "mix", "normalize", "delta", *_SELECTORS)
_TOP_KEYS = ("parents", "base", "rules", "output")
OUTPUT_KEYS = ("dtype", "shards", "split_max_size", "tokenizer", "chat_template")
_MAX_SHARE = 1_000_000
# Far beyond any recipe; without them a small text could keep a plan of 100,000 tensors busy for hours.
_MAX_PARENTS = 64
_MAX_RULES = 256
_MAX_ITEMS = 1000
_MAX_GLOBS = 1000
_MAX_GLOB = 1000
"""Characters."""
_DTYPES = get_args(Output.__annotations__["dtype"])
_SHARDS = get_args(Output.__annotations__["shards"])


def recipe_from_data(data: Any, where: object = "recipe") -> Recipe:
    """The recipe that parsed YAML or JSON says."""
    top = _mapping(data, where, "a recipe with parents, base and rules")
    _known_keys(top, _TOP_KEYS, where)
    parents = _parents(top.get("parents"), where)
    base = check_parent(top.get("base"), parents, f"{where}: base")
    rules = [] if top.get("rules") is None else top["rules"]
    if not isinstance(rules, list):
        raise RecipeError("rules must be a list", where=where, expected="- take: ...", found=_short(rules))
    _at_most(_MAX_RULES, "rules", len(rules), where)
    recipe = Recipe(
        parents=parents,
        base=base,
        rules=tuple(_rule(r, parents, base, f"{where}: rule {i}") for i, r in enumerate(rules, 1)),
        output=_output(top.get("output"), parents, f"{where}: output"),
    )
    _at_most(_MAX_GLOBS, "patterns in all rules", sum(len(rule.tensors or ()) for rule in recipe.rules), where)
    return recipe


def _parents(data: Any, where: object) -> dict[str, str | None]:
    found = _mapping(data, f"{where}: parents", "{NAME: PATH, ...}")
    if not found:
        raise RecipeError("names no parents", where=where, expected="parents: {NAME: PATH, ...}")
    _at_most(_MAX_PARENTS, "parents", len(found), where)
    for name, path in found.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise RecipeError("a parent's name is a short word", where=f"{where}: parents", found=_short(name))
        if path is not None and not isinstance(path, str):
            raise RecipeError(f"the path of {name!r} must be text", where=f"{where}: parents", found=_short(path))
    return found


def _rule(data: Any, parents: Mapping[str, Any], base: str, where: str) -> Rule:
    rule = _mapping(data, where, "take or mix, with what it selects")
    _known_keys(rule, _RULE_KEYS, where)
    if ("take" in rule) == ("mix" in rule):
        raise RecipeError("needs either take or mix", where=where, found=", ".join(rule))
    if all(rule.get(key) is None for key in _SELECTORS):
        raise RecipeError(
            "selects nothing", where=where, expected="at least one of " + ", ".join(_SELECTORS), do="components: all"
        )
    if "take" in rule and "normalize" in rule:
        raise RecipeError("normalize belongs to mix", where=where)
    if "take" in rule and "delta" in rule:
        taken = check_parent(rule["take"], parents, f"{where}: take")
        raise RecipeError(
            "delta belongs to mix", where=where, do=f"mix: {{{taken}: 1}} takes units whole where they differ by more"
        )
    return Rule(
        take=check_parent(rule["take"], parents, f"{where}: take") if "take" in rule else None,
        mix=_shares(rule, parents, base, f"{where}: mix") if "mix" in rule else None,
        normalize=_truth(rule.get("normalize"), f"{where}: normalize"),
        delta=_delta(rule.get("delta"), f"{where}: delta"),
        components=_components(rule.get("components"), f"{where}: components"),
        layers=_spans(rule.get("layers"), f"{where}: layers"),
        experts=_spans(rule.get("experts"), f"{where}: experts"),
        tensors=_globs(rule.get("tensors"), f"{where}: tensors"),
        mtp=_truth(rule.get("mtp"), f"{where}: mtp"),
    )


def _shares(rule: Mapping[str, Any], parents: Mapping[str, Any], base: str, where: str) -> dict[str, float | Gradient]:
    written = _mapping(rule["mix"], where, "{PARENT: SHARE, ...}")
    if not written:
        raise RecipeError("names no parents", where=where, expected="{PARENT: SHARE, ...}")
    shares = {check_parent(name, parents, where): _share(value, f"{where}: {name}") for name, value in written.items()}
    check_shares(shares, tuple(parents), base, _truth(rule.get("normalize"), where), where)
    return shares


def _share(value: Any, where: str) -> float | Gradient:
    if isinstance(value, Mapping):
        _known_keys(value, ("from", "to"), where)
        if set(value) != {"from", "to"}:
            raise RecipeError(
                "a gradient needs both ends", where=where, expected="{from: 0.2, to: 0.8}", found=_short(value)
            )
        return Gradient(_number(value["from"], where), _number(value["to"], where))
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    # NaN and infinity fail the comparison, and no huge integer is turned into a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_SHARE:
        raise RecipeError("a share must be a number", where=where, expected="such as 0.75", found=_short(value))
    return float(value)


def _delta(value: Any, where: str) -> float | None:
    if value is None:
        return None
    # NaN fails every comparison, and no huge integer is turned into a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise RecipeError(
            "a delta must be a number from 0 on", where=where, expected="such as 0.0015", found=_short(value)
        )
    return float(value)


def _components(value: Any, where: str) -> tuple[Component, ...] | None:
    if value is None:
        return None
    words = value if isinstance(value, list) else [value]
    if words == ["all"]:
        return COMPONENTS
    if not words:
        raise RecipeError("is empty", where=where, expected=", ".join(COMPONENTS))
    for word in words:
        _one_of(word, COMPONENTS, where, "component")
    return tuple(c for c in COMPONENTS if c in words)


def _spans(value: Any, where: str) -> tuple[Span, ...] | None:
    """Spans of "3-30", 5, "last 4", or a list of them."""
    if value is None:
        return None
    if isinstance(value, str) and "," in value:
        value = [part.strip() for part in value.split(",")]
    items = value if isinstance(value, list) else [value]
    if not items:
        raise RecipeError("is empty", where=where, expected='such as 3-30, "last 4", [3, 8-10]')
    _at_most(_MAX_ITEMS, "ranges", len(items), where)
    return tuple(_span(item, where) for item in items)


def _span(item: Any, where: str) -> Span:
    text = str(item).strip() if isinstance(item, str | int) and not isinstance(item, bool) else ""
    if match := re.fullmatch(r"([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?", text):
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if first <= last:
            return Span(first, last)
        raise RecipeError("runs backwards", where=where, expected=f"{last}-{first}", found=text)
    if (match := re.fullmatch(r"last ([0-9]{1,6})", text)) and int(match[1]) > 0:
        return Span(-int(match[1]), -1)
    colon = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text)
    raise RecipeError(
        "is no range of numbers",
        where=where,
        expected='such as 3-30, "last 4", [3, 8-10]',
        found=_short(item),
        do=f"write {colon[1]}-{colon[2]}; both ends are included" if colon else "",
    )


def _globs(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(i, str) and i for i in items):
        raise RecipeError("must be one pattern or a list of them", where=where, found=_short(value))
    _at_most(_MAX_GLOB, "characters in a pattern", max(map(len, items)), where)
    return tuple(items)


def _truth(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise RecipeError("must be true or false", where=where, found=_short(value))


def _output(data: Any, parents: Mapping[str, Any], where: str) -> Output:
    if data is None:
        return Output()
    found = _mapping(data, where, "{dtype: ..., shards: ..., tokenizer: ..., chat_template: ...}")
    _known_keys(found, OUTPUT_KEYS, where)
    dtype, shards = found.get("dtype", "keep"), found.get("shards", "base")
    _one_of(dtype, _DTYPES, f"{where}: dtype", "dtype")
    _one_of(shards, _SHARDS, f"{where}: shards", "layout")
    limit = _nbytes(found.get("split_max_size"), f"{where}: split_max_size")
    from_parents = {
        key: check_parent(found[key], parents, f"{where}: {key}")
        for key in ("tokenizer", "chat_template")
        if key in found
    }
    return Output(dtype=dtype, shards=shards, split_max_size=limit, **from_parents)


def _nbytes(value: Any, where: str) -> int | None:
    if value is None:
        return None
    found = parse_nbytes(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if not found:
        raise RecipeError("is no size", where=where, expected="bytes, or a text such as 48GB", found=_short(value))
    return found


# ------------------------------------------------------------------------------------------- helpers


def _mapping(data: Any, where: object, expected: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise RecipeError("is not what belongs here", where=where, expected=expected, found=_short(data))
    for key in data:
        if not isinstance(key, str):
            raise RecipeError("a key must be a word", where=where, found=_short(key), do="put it in quotes")
    return data


def _at_most(limit: int, what: str, count: int, where: object) -> None:
    if count > limit:
        raise RecipeError(f"has too many {what}", where=where, expected=f"at most {limit}", found=count)


def _known_keys(data: Mapping[str, Any], known: Sequence[str], where: object) -> None:
    for key in data:
        if key not in known:
            _unknown("key", key, known, where)


def _one_of(value: Any, known: Sequence[str], where: object, what: str) -> None:
    if value not in known:
        _unknown(what, value, known, where)


def check_parent(value: Any, parents: Mapping[str, Any], where: str) -> str:
    """The name of one of the parents, or an error that offers the nearest."""
    if not isinstance(value, str) or value not in parents:
        _unknown("parent", value, tuple(parents), where)
    return value


def _unknown(what: str, value: Any, known: Sequence[str], where: object) -> NoReturn:
    near = difflib.get_close_matches(_short(value).strip("'"), known, n=1, cutoff=0.5)
    raise RecipeError(
        f"no {what} is given" if value is None else f"unknown {what} {_short(value)}",
        where=where,
        expected=", ".join(known),
        do=f"did you mean {near[0]!r}?" if near else "",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
