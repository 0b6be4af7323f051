"""The recipe language: YAML text -> Recipe, every mistake answered with the right word.

    parents: {v3: /models/V3, r1: /models/R1}
    base: v3
    rules:
      - take: r1
        components: routed_experts

Scalars are read by YAML 1.2's core rules, so that `3:59` is no number of seconds, `no` no truth value, and `1e-3` a
number. Duplicate keys, anchors, aliases and tags are refused. What is written here holds intent only; which tensors a rule
takes is decided by the planner.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import msgspec
import yaml

from chimerakit.errors import CheckpointError, RecipeError
from chimerakit.records import COMPONENTS, Component, Gradient, Output, Recipe, Rule, Span
from chimerakit.stores.local import read_file

_MAX_TEXT = 1 << 20
_SUM_TOLERANCE = 1e-6
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?")
_SELECTORS = ("components", "layers", "experts", "tensors", "mtp")
_RULE_KEYS = ("take", "mix", "normalize", "delta", *_SELECTORS)
_TOP_KEYS = ("parents", "base", "rules", "output")
_OUTPUT_KEYS = ("dtype", "shards", "tokenizer", "chat_template")
_DTYPES = get_args(Output.__annotations__["dtype"])
_SHARDS = get_args(Output.__annotations__["shards"])


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in a file; parents' relative paths are meant from the file's folder."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError("there is no such recipe", where=path)
    if (nbytes := path.stat().st_size) > _MAX_TEXT:
        raise RecipeError("is too long for a recipe", where=path, found=f"{nbytes} bytes")
    try:
        text = read_file(path, _MAX_TEXT).decode("utf-8")
    except UnicodeDecodeError as e:
        raise RecipeError(f"is not UTF-8 text (byte {e.start})", where=path) from e
    except CheckpointError as e:
        raise RecipeError(str(e).splitlines()[0]) from e
    return parse_recipe(text, where=path)


def parse_recipe(text: str, where: object = "recipe") -> Recipe:
    """The recipe that a text says."""
    return recipe_from_data(_yaml(text, where), where)


# ------------------------------------------------------------------------------------------------ YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars, no aliases, no tags, no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the base class has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(
                None,
                None,
                "anchors (&) and aliases (*) are not used in recipes; put a glob in quotes",
                event.start_mark,
            )
        # A tag can ask for any type of any content, which the constructors below it do not expect.
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "tags (!) are not used in recipes", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def core_int(self, node: Any) -> int:
        """A whole number: decimal, 0o or 0x; never sexagesimal, never octal by a leading 0."""
        text = node.value
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.1 or 1.2 would read as something else than text."""


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.core_int)


def _yaml(text: str, where: object) -> Any:
    if len(text) > _MAX_TEXT:
        raise RecipeError("is too long for a recipe", where=where, found=f"{len(text)} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        hint = 'put it in quotes: tensors: "*.weight"' if "alias" in str(e) else ""
        raise RecipeError(
            f"is not a valid recipe text: {e.problem or e.context}", where=f"{where}{line}", do=hint
        ) from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise RecipeError(f"is not a valid recipe text: {' '.join(str(e).split())}", where=where) from e


# -------------------------------------------------------------------------------------- data -> Recipe


def recipe_from_data(data: Any, where: object = "recipe") -> Recipe:
    """The recipe that parsed YAML or JSON says."""
    top = _mapping(data, where, "a recipe with parents, base and rules")
    if not top.keys().isdisjoint(("merge_method", "models", "slices", "modules", "base_model")):
        _answer_mergekit(top, where)
    _known_keys(top, _TOP_KEYS, where)
    parents = _parents(top.get("parents"), where)
    base = _parent(top.get("base"), parents, f"{where}: base")
    rules = [] if top.get("rules") is None else top["rules"]
    if not isinstance(rules, list):
        raise RecipeError("rules must be a list", where=where, expected="- take: ...", found=_short(rules))
    return Recipe(
        parents=parents,
        base=base,
        rules=tuple(_rule(r, parents, base, f"{where}: rule {i}") for i, r in enumerate(rules, 1)),
        output=_output(top.get("output"), parents, f"{where}: output"),
    )


def _parents(data: Any, where: object) -> dict[str, str | None]:
    found = _mapping(data, f"{where}: parents", "{NAME: PATH, ...}")
    if not found:
        raise RecipeError("names no parents", where=where, expected="parents: {NAME: PATH, ...}")
    for name, path in found.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise RecipeError("a parent's name is a short word", where=f"{where}: parents", found=repr(name))
        if path is not None and not isinstance(path, str):
            raise RecipeError(f"the path of {name!r} must be text", where=f"{where}: parents", found=_short(path))
    return found


def _rule(data: Any, parents: Mapping[str, Any], base: str, where: str) -> Rule:
    rule = _mapping(data, where, "take or mix, with what it selects")
    _known_keys(rule, _RULE_KEYS, where)
    if ("take" in rule) == ("mix" in rule):
        raise RecipeError("needs either take or mix", where=where, found=", ".join(rule))
    if "delta" in rule:
        raise RecipeError(
            "delta is not supported yet: it needs the difference map of a parent pair",
            where=where,
            do="leave delta out; every selected unit is then mixed",
        )
    if all(rule.get(key) is None for key in _SELECTORS):
        raise RecipeError(
            "selects nothing", where=where, expected="at least one of " + ", ".join(_SELECTORS), do="components: all"
        )
    if "take" in rule and "normalize" in rule:
        raise RecipeError("normalize belongs to mix", where=where)
    return Rule(
        take=_parent(rule["take"], parents, f"{where}: take") if "take" in rule else None,
        mix=_shares(rule, parents, base, f"{where}: mix") if "mix" in rule else None,
        normalize=_truth(rule.get("normalize"), f"{where}: normalize"),
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
    shares = {_parent(name, parents, where): _share(value, f"{where}: {name}") for name, value in written.items()}
    check_shares(shares, tuple(parents), base, _truth(rule.get("normalize"), where), where)
    return shares


def check_shares(
    shares: Mapping[str, float | Gradient], parents: Sequence[str], base: str, normalize: bool | None, where: str
) -> None:
    """Refuse shares that do not say what the whole is."""
    ends = [[s.start if isinstance(s, Gradient) else s for s in shares.values()]]
    ends.append([s.stop if isinstance(s, Gradient) else s for s in shares.values()])
    if normalize is True:
        # A sum that changes its sign between the ends is 0, or nearly, in a layer between them.
        totals = [math.fsum(numbers) for numbers in ends]
        if min(map(abs, totals)) < _SUM_TOLERANCE or (totals[0] < 0) != (totals[1] < 0):
            raise RecipeError("shares that sum to 0 can't be normalized", where=where)
        return
    for numbers in ends:
        total = math.fsum(numbers)
        everyone = all(p in shares for p in parents)
        beyond = [n for n in numbers if not 0 <= n <= 1] or (
            [total] if base not in shares and total > 1 + _SUM_TOLERANCE else []
        )
        if beyond and not everyone:
            raise RecipeError(
                "a share below 0 or above 1 needs every parent written out, or normalize: true",
                where=where,
                expected=", ".join(parents),
                found=f"{', '.join(shares)} (with {beyond[0]:g})",
            )
        if normalize is None and base in shares and abs(total - 1) > _SUM_TOLERANCE:
            raise RecipeError(
                "the shares do not sum to 1",
                where=where,
                expected="1",
                found=f"{total:g}",
                do=f"leave {base!r} out and it gets the rest; normalize: true divides by the sum, false takes them as is",
            )


def shares_at(rule: Rule, recipe: Recipe, layer: int | None, num_layers: int) -> dict[str, float]:
    """The shares of a rule in one layer: base first, then in the rule's order; parents with a share of 0 left out."""
    if rule.take is not None:
        return {rule.take: 1.0}
    written = {
        name: share.at(layer or 0, num_layers) if isinstance(share, Gradient) else share
        for name, share in (rule.mix or {}).items()
    }
    if rule.normalize is None and recipe.base not in written:
        # Rounded, so that 1 - 0.75 - 0.25 is nothing, not a speck of it.
        written[recipe.base] = round(1 - math.fsum(written.values()), 12)
    if rule.normalize:
        total = math.fsum(written.values())
        written = {name: share / total for name, share in written.items()}
    ordered = sorted(written, key=lambda name: name != recipe.base)
    return {name: written[name] for name in ordered if written[name] != 0}


def _share(value: Any, where: str) -> float | Gradient:
    if isinstance(value, Mapping):
        _known_keys(value, ("from", "to"), where)
        if set(value) != {"from", "to"}:
            raise RecipeError("a gradient needs both ends", where=where, expected="{from: 0.2, to: 0.8}", found=value)
        return Gradient(_number(value["from"], where), _number(value["to"], where))
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e6:
        raise RecipeError("a share must be a number", where=where, expected="such as 0.75", found=_short(value))
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
    return tuple(_span(item, where) for item in items)


def _span(item: Any, where: str) -> Span:
    text = str(item).strip() if isinstance(item, str | int) and not isinstance(item, bool) else ""
    if match := re.fullmatch(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", text):
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if first <= last:
            return Span(first, last)
        raise RecipeError("runs backwards", where=where, expected=f"{last}-{first}", found=text)
    if (match := re.fullmatch(r"last (\d{1,6})", text)) and int(match[1]) > 0:
        return Span(-int(match[1]), -1)
    colon = re.fullmatch(r"(\d+):(\d+)", text)
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
    return tuple(items)


def _truth(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise RecipeError("must be true or false", where=where, found=_short(value))


def _output(data: Any, parents: Mapping[str, Any], where: str) -> Output:
    if data is None:
        return Output()
    found = _mapping(data, where, "{dtype: ..., shards: ..., tokenizer: ..., chat_template: ...}")
    _known_keys(found, _OUTPUT_KEYS, where)
    dtype, shards = found.get("dtype", "keep"), found.get("shards", "base")
    _one_of(dtype, _DTYPES, f"{where}: dtype", "dtype")
    _one_of(shards, _SHARDS, f"{where}: shards", "layout")
    from_parents = {
        key: _parent(found[key], parents, f"{where}: {key}") for key in ("tokenizer", "chat_template") if key in found
    }
    return Output(dtype=dtype, shards=shards, **from_parents)


# -------------------------------------------------------------------------------------- Recipe -> data


def recipe_to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe in its own language; parsing it gives the recipe back."""
    data: dict[str, Any] = {"parents": dict(recipe.parents), "base": recipe.base}
    if recipe.rules:
        data["rules"] = [_rule_to_data(rule) for rule in recipe.rules]
    default = Output()
    output = {k: getattr(recipe.output, k) for k in _OUTPUT_KEYS if getattr(recipe.output, k) != getattr(default, k)}
    if output:
        data["output"] = output
    return data


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as text."""
    return str(yaml.dump(recipe_to_data(recipe), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100))


def _rule_to_data(rule: Rule) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if rule.take is not None:
        data["take"] = rule.take
    if rule.mix is not None:
        data["mix"] = {
            name: {"from": share.start, "to": share.stop} if isinstance(share, Gradient) else share
            for name, share in rule.mix.items()
        }
    if rule.normalize is not None:
        data["normalize"] = rule.normalize
    if rule.components is not None:
        data["components"] = "all" if rule.components == COMPONENTS else _one_or_list(rule.components)
    for key in ("layers", "experts"):
        if (spans := getattr(rule, key)) is not None:
            data[key] = _one_or_list([str(s) for s in spans])
    if rule.tensors is not None:
        data["tensors"] = _one_or_list(rule.tensors)
    if rule.mtp is not None:
        data["mtp"] = rule.mtp
    return data


def _one_or_list(items: Sequence[str]) -> str | list[str]:
    return items[0] if len(items) == 1 else list(items)


def say_rule(rule: Rule) -> str:
    """A rule in one line."""
    data = _rule_to_data(rule)
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6)).strip()[1:-1]


# --------------------------------------------------------------------------------------------- parents


def locate_parents(recipe: Recipe, given: Mapping[str, Path], folder: Path) -> tuple[Recipe, dict[str, Path]]:
    """Where each parent lies, and the recipe without paths of this machine.

    given: from the command line, and it wins; folder: where the recipe's own relative paths are meant from. A hub name
    stays in the recipe (it says what the parent is), but can't be read from.
    """
    for name in given:
        _parent(name, recipe.parents, "--parent")
    paths, names = dict[str, Path](), dict[str, str | None]()
    for name, written in recipe.parents.items():
        here = None if written is None else folder / os.path.expanduser(written)  # noqa: PTH111 - leaves ~nobody as it is
        is_there = here is not None and os.path.exists(here)  # noqa: PTH110 - False for what can't be a path
        if name in given:
            paths[name] = given[name]
            is_hub_name = written is not None and not is_there and _HUB_NAME.fullmatch(written)
            names[name] = written if is_hub_name else None
        elif here is not None and is_there:
            paths[name], names[name] = here, None
        elif written is not None and _HUB_NAME.fullmatch(written):
            raise RecipeError(
                f"the parent {name!r} is {written!r}, which is no folder here; parents on a hub can't be read yet",
                where="parents",
                do=f"download it and say where it is: --parent {name}=PATH",
            )
        else:
            raise RecipeError(
                f"where is the parent {name!r}?",
                where="parents",
                found="nothing said" if written is None else f"{here}: no such file or folder",
                do=f"--parent {name}=PATH",
            )
    return msgspec.structs.replace(recipe, parents=names), paths


# ---------------------------------------------------------------------------------------- command line


def recipe_from_flags(
    parents: Sequence[str], base: str | None, takes: Sequence[str], mixes: Sequence[str], dtype: str | None
) -> Recipe:
    """The recipe that `--parent --base --take --mix --dtype` say, in the order of the rules as given.

    takes: "PARENT:COMPONENTS"; mixes: "PARENT:COMPONENTS=SHARE"; components are joined by commas.
    """
    if base is None and len(parents) == 1:
        base = parents[0]
    if base is None:
        raise RecipeError("which parent is the base?", where="command line", expected="--base NAME", found="no --base")
    rules = [_flag_rule("--take", text, r"(?P<parent>[^:]+):(?P<what>[^=]+)", "r1:routed_experts") for text in takes]
    rules += [
        _flag_rule("--mix", text, r"(?P<parent>[^:]+):(?P<what>[^=]+)=(?P<share>.+)", "r1:routed_experts=0.75")
        for text in mixes
    ]
    data = {
        "parents": dict.fromkeys(parents),
        "base": base,
        "rules": rules,
        "output": {} if dtype is None else {"dtype": dtype},
    }
    return recipe_from_data(data, "command line")


def _flag_rule(flag: str, text: str, pattern: str, example: str) -> dict[str, Any]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise RecipeError("can't be read", where=f"{flag} {text}", expected=f"{flag} {example}")
    rule: dict[str, Any] = {"components": match["what"].split(",")}
    if flag == "--take":
        return {"take": match["parent"], **rule}
    try:
        share = float(match["share"])
    except ValueError as e:
        raise RecipeError("the share is no number", where=f"{flag} {text}", expected=f"{flag} {example}") from e
    return {"mix": {match["parent"]: share}, **rule}


# --------------------------------------------------------------------------------------------- helpers


def _mapping(data: Any, where: object, expected: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise RecipeError("is not what belongs here", where=where, expected=expected, found=_short(data))
    for key in data:
        if not isinstance(key, str):
            raise RecipeError("a key must be a word", where=where, found=repr(key), do="put it in quotes")
    return data


def _known_keys(data: Mapping[str, Any], known: Sequence[str], where: object) -> None:
    for key in data:
        if key not in known:
            _unknown("key", key, known, where)


def _one_of(value: Any, known: Sequence[str], where: object, what: str) -> None:
    if value not in known:
        _unknown(what, value, known, where)


def _parent(value: Any, parents: Mapping[str, Any], where: str) -> str:
    if not isinstance(value, str) or value not in parents:
        _unknown("parent", value, tuple(parents), where)
    return value


def _unknown(what: str, value: Any, known: Sequence[str], where: object) -> NoReturn:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    raise RecipeError(
        f"no {what} is given" if value is None else f"unknown {what} {_short(value)}",
        where=where,
        expected=", ".join(known),
        do=f"did you mean {near[0]!r}?" if near else "",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# -------------------------------------------------------------------------------------------- mergekit


def _answer_mergekit(top: Mapping[str, Any], where: object) -> NoReturn:
    """Refuse a mergekit configuration, saying what it would be here where that can be said."""
    method = top.get("merge_method")
    build: Callable[[Mapping[str, Any]], Recipe | None] = {
        "linear": _from_linear,
        "passthrough": _from_passthrough,
    }.get(str(method), lambda _: None)
    try:
        recipe = build(top)
    except (RecipeError, TypeError, ValueError, AttributeError, LookupError):
        recipe = None
    if recipe is None:
        raise RecipeError(
            "is a mergekit configuration",
            where=where,
            expected="a recipe with parents, base and rules",
            found=f"merge_method: {method}",
            do="chimerakit takes tensors whole or mixes them linearly; no rule says exactly this",
        )
    says = "\n            ".join(recipe_to_yaml(recipe).splitlines())
    raise RecipeError(
        "is a mergekit configuration", where=where, do=f"the recipe that says the same:\n            {says}"
    )


def _from_linear(top: Mapping[str, Any]) -> Recipe | None:
    """A linear merge of whole models, weights as numbers, gradients of two ends, or substring filters."""
    models = top.get("models")
    if not isinstance(models, list) or not models:
        return None
    names = _mergekit_names(models)
    weights = [(m.get("parameters") or top.get("parameters") or {}).get("weight", 1.0) for m in models]
    base = next((n for n, path in names.items() if path == top.get("base_model")), "m1")
    normalize = bool((top.get("parameters") or {}).get("normalize", True))
    filters = dict.fromkeys(
        w["filter"] for ws in weights if isinstance(ws, list) for w in ws if isinstance(w, dict) and "filter" in w
    )
    rules: list[dict[str, Any]] = []
    for substring in [*(f for f in filters if f not in (None, "*")), None]:
        mix = {name: _mergekit_weight(ws, substring) for name, ws in zip(names, weights, strict=True)}
        if substring is not None:
            rules.append({"mix": mix, "normalize": normalize, "tensors": f"*{substring}*"})
            continue
        if any(isinstance(share, dict) for share in mix.values()):
            # A gradient knows layers only; there, what lies before them has the first value and what lies after, the last.
            ends = [{n: s[end] if isinstance(s, dict) else s for n, s in mix.items()} for end in ("from", "to")]
            rules.append({"mix": mix, "normalize": normalize, "tensors": "*.layers.*"})
            rules.append({"mix": ends[0], "normalize": normalize, "components": "embedding"})
            mix = ends[1]
        rules.append({"mix": mix, "normalize": normalize, "components": "all"})
    return _mergekit_recipe(top, names, base, rules)


def _from_passthrough(top: Mapping[str, Any]) -> Recipe | None:
    """One whole model as it is."""
    models = top.get("models")
    if not isinstance(models, list) or len(models) != 1 or models[0].get("parameters") or top.get("parameters"):
        return None
    return _mergekit_recipe(top, _mergekit_names(models), "m1", [{"take": "m1", "components": "all"}])


def _mergekit_recipe(
    top: Mapping[str, Any], names: Mapping[str, str], base: str, rules: Sequence[Mapping[str, Any]]
) -> Recipe:
    dtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(top.get("out_dtype") or top.get("dtype")))
    output = {} if dtype is None else {"output": {"dtype": dtype}}
    return recipe_from_data({"parents": dict(names), "base": base, "rules": list(rules), **output})


def _mergekit_names(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    paths = [m["model"] for m in models]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(paths)
    return {f"m{i}": path for i, path in enumerate(paths, 1)}


def _mergekit_weight(weight: Any, substring: str | None) -> Any:
    if not isinstance(weight, list):
        return weight
    if all(isinstance(w, int | float) for w in weight) and len(weight) == 2:
        return {"from": weight[0], "to": weight[1]}
    for choice in weight:
        if choice.get("filter") in (substring, None, "*"):
            return choice["value"]
    raise ValueError(weight)
