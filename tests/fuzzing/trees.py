"""Trees of JSON (and flow YAML) that can say what neither should: a key twice, numbers of any spelling, other kinds.

A literal is text as it stands in the file, a string with its quotes. Everything random comes from the `Random` that is
handed in, so one seed gives one input. Trees are changed in place; every change is small, and several may follow each
other.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias


@dataclass(slots=True)
class Pairs:
    """An object, its keys as literals: one may stand twice."""

    items: list[tuple[str, "Node"]] = field(default_factory=list)


Node: TypeAlias = "str | list[Node] | Pairs"

NUMBERS = ("0", "1", "2", "4", "8", "-1", "-0", "-0.0", "1.0", "1e0", "1E3", "01", "+1", ".5", "0x1", "1_0", "9" * 20,
           "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615",
           "18446744073709551616", "1e400", "9" * 400, "NaN", "Infinity", "-Infinity")  # fmt: skip
ODD = ("null", "true", "false", "{}", "[]", '""', '"a"', "[[]]", '{"a":1}', "nothing", "'a'", "")
TEXTS = ('"\\ud83d\\ude00"', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\x7f"', '"\u202e"', '"\\u001b[2J"', '"é"', '"e\u0301"',
         '"\\/"', '"\\x"', '"\t"', '"../../x"', '"' + "a" * 300 + '"', '"\U0001f600"', '"\\n"', '"\\""')  # fmt: skip
PIECES = (b'"', b",", b"{", b"}", b"[", b"]", b":", b" ", b"\n", b"\t", b"\f", b"\\", b"\\u0061", b"\\ud800", b"\0",
          b"\x7f", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc3\xa9", b"\xef\xbb\xbf", b"0", b"-", b".", b"e5", b"NaN", b"//",
          b"/**/", b"#", b"&a ", b"*a", b"!x ", b"<<: ", b"\x1b[2J", b"\xe2\x80\xae", b"\r\n", b"- ", b"? ")  # fmt: skip


def tree_of(data: Any) -> Node:
    """The tree of plain data."""
    if isinstance(data, dict):
        return Pairs([(json.dumps(key, ensure_ascii=False), tree_of(value)) for key, value in data.items()])
    if isinstance(data, list | tuple):
        return [tree_of(item) for item in data]
    return json.dumps(data, ensure_ascii=False)


def copy_of(node: Node) -> Node:
    """A tree that can be changed without changing this one."""
    if isinstance(node, Pairs):
        return Pairs([(key, copy_of(value)) for key, value in node.items])
    return [copy_of(item) for item in node] if isinstance(node, list) else node


def text_of(node: Node, comma: str = ",", colon: str = ":") -> str:
    """The text of a tree."""
    if isinstance(node, Pairs):
        return "{" + comma.join([f"{key}{colon}{text_of(value, comma, colon)}" for key, value in node.items]) + "}"
    if isinstance(node, list):
        return "[" + comma.join([text_of(item, comma, colon) for item in node]) + "]"
    return node


# -------------------------------------------------------------------------------------- changes of trees

Holder = list[Node] | Pairs


def holders_of(node: Node) -> list[Holder]:
    """Every list and object that holds something, the outermost first."""
    found: list[Holder] = []
    todo: list[Node] = [node]
    while todo:
        here = todo.pop()
        if isinstance(here, Pairs) and here.items:
            found.append(here)
            todo += [value for _, value in here.items]
        elif isinstance(here, list) and here:
            found.append(here)
            todo += here
    return found


def change_tree(random: Random, tree: Node) -> None:
    """One random change somewhere in a tree."""
    holders = holders_of(tree)
    if not holders:
        return
    holder = random.choice(holders)
    if isinstance(holder, Pairs):
        random.choice(_OF_PAIRS)(random, holder)
    else:
        random.choice(_OF_LISTS)(random, holder)


def change_literal(random: Random, literal: str) -> Node:
    """Another literal, nearly always of the same kind."""
    if random.random() < 0.15:
        return random.choice(ODD)
    if literal.lstrip("-").isdigit() and len(literal) < 30:
        if random.random() < 0.5:
            return random.choice(NUMBERS)
        number = int(literal)
        return str(random.choice((number - 1, number + 1, number * 2, -number, number + 2**64, number + 2**32)))
    if literal.startswith('"'):
        return respell(random, literal) if random.random() < 0.6 else random.choice(TEXTS)
    return random.choice(NUMBERS)


def respell(random: Random, literal: str) -> str:
    """The same string in another spelling: a character as an escape. Strings that hold escapes stay as they are."""
    at = random.randrange(1, max(2, len(literal) - 1))
    if "\\" in literal or not literal[at : at + 1].isalnum() or ord(literal[at]) > 0xFFFF:
        return literal
    spelled = random.choice(("\\u%04x", "\\u%04X")) % ord(literal[at])
    return literal[:at] + spelled + literal[at + 1 :]


def _change_value(random: Random, value: Node) -> Node:
    if isinstance(value, str):
        return change_literal(random, value)
    choices: list[Node] = [*ODD, [value], Pairs([('"a"', value)])]
    return random.choice(choices)


def _change_of_pair(random: Random, pairs: Pairs) -> None:
    at = random.randrange(len(pairs.items))
    key, value = pairs.items[at]
    pairs.items[at] = (key, _change_value(random, value))


def _change_key(random: Random, pairs: Pairs) -> None:
    at = random.randrange(len(pairs.items))
    key, value = pairs.items[at]
    other = change_literal(random, key)
    pairs.items[at] = (other if isinstance(other, str) else key, value)


def _double_pair(random: Random, pairs: Pairs) -> None:
    key, value = random.choice(pairs.items)
    other = copy_of(value) if random.random() < 0.5 else _change_value(random, copy_of(value))
    pairs.items.insert(random.randrange(len(pairs.items) + 1), (respell(random, key), other))


def _drop_pair(random: Random, pairs: Pairs) -> None:
    del pairs.items[random.randrange(len(pairs.items))]


def _add_pair(random: Random, pairs: Pairs) -> None:
    value = random.choice((*ODD, *NUMBERS, *TEXTS))
    pairs.items.insert(random.randrange(len(pairs.items) + 1), (random.choice((*TEXTS, '"x"', '"scale"')), value))


def _swap_pairs(random: Random, pairs: Pairs) -> None:
    a, b = (random.randrange(len(pairs.items)) for _ in "ab")
    pairs.items[a], pairs.items[b] = (pairs.items[a][0], pairs.items[b][1]), (pairs.items[b][0], pairs.items[a][1])


def _shuffle_pairs(random: Random, pairs: Pairs) -> None:
    random.shuffle(pairs.items)


def _change_item(random: Random, items: list[Node]) -> None:
    at = random.randrange(len(items))
    items[at] = _change_value(random, items[at])


def _double_item(random: Random, items: list[Node]) -> None:
    items.insert(random.randrange(len(items) + 1), copy_of(random.choice(items)))


def _drop_item(random: Random, items: list[Node]) -> None:
    del items[random.randrange(len(items))]


def _shuffle_items(random: Random, items: list[Node]) -> None:
    random.shuffle(items)


_OF_PAIRS: Sequence[Callable[[Random, Pairs], None]] = (
    _change_of_pair, _change_of_pair, _change_of_pair, _change_key, _double_pair, _drop_pair, _add_pair, _swap_pairs,
    _shuffle_pairs, _shuffle_pairs,
)  # fmt: skip
_OF_LISTS: Sequence[Callable[[Random, list[Node]], None]] = (
    _change_item,
    _change_item,
    _double_item,
    _drop_item,
    _shuffle_items,
)


# -------------------------------------------------------------------------------------- changes of bytes


def change_bytes(random: Random, data: bytes) -> bytes:
    """One random change of a text: a bit, a byte, a piece put in, left out or repeated, the end cut off."""
    at = random.randrange(len(data) + 1)
    how = random.randrange(6)
    if how == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if how <= 2:
        return data[:at] + random.choice(PIECES) + data[at:]
    length = random.randrange(1, 40)
    if how == 3:
        return data[:at] + data[at + length :]
    if how == 4:
        to = random.randrange(len(data) + 1)
        return data[:to] + data[at : at + length] + data[to:]
    return data[:at] if random.random() < 0.5 else data[: max(0, len(data) - length)]
