"""YAML as recipes use it: 1.2's core scalars, no aliases, no tags, no key twice."""

import re
from typing import Any

import yaml

from chimerakit.errors import RecipeError

MAX_TEXT = 1 << 16
"""Characters; no recipe comes near, and reading so much takes a moment at most, whatever it says."""
_MAX_DIGITS = 100
_MAX_NODES = 10_000
"""Values, lists and mappings of a text."""
_SHOWN = 200
"""Characters of somebody's text in a message."""
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars, no aliases, no tags, no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the base class has it

    num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A value, list or mapping, if it is such as recipes are made of."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.num_nodes += 1
        if self.num_nodes > _MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MAX_NODES} values", event.start_mark)
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
                    None, None, f"the key {str(key)[:_SHOWN]!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """Text that UTF-8 can write; escapes can say halves of characters."""
        found = super().construct_scalar(node)
        if isinstance(found, str) and _HALF_OF_A_PAIR.search(found):
            raise yaml.constructor.ConstructorError(None, None, "half of a surrogate pair", node.start_mark)
        return found

    def core_int(self, node: Any) -> int:
        """A whole number: decimal, 0o or 0x; never sexagesimal, never octal by a leading 0."""
        text = node.value
        # Longer ones can be made from 0x, and then not even be shown.
        if len(text) > _MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.1 or 1.2 would read as something else than text, or as a line's end."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text in one line."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


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
    Dumper.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.core_int)
Dumper.add_representer(str, Dumper.represent_text)


def load_yaml(text: str, where: object) -> Any:
    """The data that a text says; everything odd is a RecipeError with its line."""
    if len(text) > MAX_TEXT:
        raise RecipeError("is too long for a recipe", where=where, found=f"{len(text)} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        hint = 'put it in quotes: tensors: "*.weight"' if "alias" in str(e) else ""
        raise RecipeError(
            f"is not a valid recipe text: {str(e.problem or e.context)[:_SHOWN]}", where=f"{where}{line}", do=hint
        ) from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise RecipeError(f"is not a valid recipe text: {' '.join(str(e).split())[:_SHOWN]}", where=where) from e
