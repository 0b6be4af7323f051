"""safetensors files: plausible ones, and such with something wrong, each from one seed.

A draft knows tensors and ranges and can be made wrong in what it means; the tree of its header can be made wrong in what
it says, the text in how it is written, and the file around it in length.
"""

from dataclasses import dataclass
from random import Random

from tests.formats.bits import BITS
from tests.fuzzing.trees import Node, Pairs, change_bytes, change_tree, respell, text_of

_DTYPES = tuple(BITS)
_NAMES = (
    "model.layers.0.mlp.experts.7.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight", "w", "a.b", "x_scale_inv",
    "", " ", "é", "e\u0301", "\U0001f600", "\u202e", "\x7f", "../../x", "/etc/passwd", "a" * 200, "__metadata", "dtype",
)  # fmt: skip
_SIDES = (0, 1, 1, 2, 2, 3, 4, 5, 7, 16)
_LARGE = (2**20, 2**31, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
_LENGTHS = (0, 1, 7, 8, 100_000_000, 100_000_001, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(slots=True)
class _Tensor:
    name: str
    """A JSON literal, with its quotes."""
    dtype: str
    shape: list[int]
    begin: int
    end: int


def make(seed: int) -> bytes:
    """A whole file."""
    random = Random(seed)
    tensors = _tensors(random)
    nbytes = tensors[-1].end if tensors else 0
    wrongs = 0 if random.random() < 0.3 else random.choice((1, 1, 1, 2, 3))
    kinds = [random.randrange(8) for _ in range(wrongs)]
    for _ in range(sum(kind < 3 for kind in kinds)):
        _change_meaning(random, tensors)
    tree = _tree(random, tensors)
    for _ in range(sum(3 <= kind < 6 for kind in kinds)):
        change_tree(random, tree)
    text = text_of(tree, random.choice((",", ",", ", ", ",\n\t")), random.choice((":", ":", ": ", " :\r\n")))
    data = text.encode("utf-8", "surrogatepass")
    data += b" " * random.choice((0, -len(data) % 8, 8))
    for _ in range(sum(kind == 6 for kind in kinds)):
        data = change_bytes(random, data)
    return _file(random, data, nbytes, is_wrong=7 in kinds)


def _tensors(random: Random) -> list[_Tensor]:
    """Tensors that follow each other; their names may be the same now and then."""
    found: list[_Tensor] = []
    end = 0
    for number in range(random.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        dtype = random.choice(_DTYPES)
        shape = [random.choice(_SIDES) for _ in range(random.choice((0, 1, 1, 2, 2, 3)))]
        if BITS[dtype] % 8:
            shape.append(4)
        if random.random() < 0.04:
            shape += random.sample((0, random.choice(_LARGE)), 2)  # no bytes, however large the other side
        elements = 1
        for side in shape:
            elements *= side
        name = random.choice(_NAMES) + (str(number) if random.random() < 0.95 else "")
        begin, end = end, end + elements * BITS[dtype] // 8
        found.append(_Tensor(f'"{name}"', dtype, shape, begin, end))
    return found


def _change_meaning(random: Random, tensors: list[_Tensor]) -> None:
    """Well-formed, and in most cases wrong: ranges, dtypes and shapes that do not agree; or another order, which may be."""
    if not tensors:
        return
    at = random.randrange(len(tensors))
    tensor, other = tensors[at], random.choice(tensors)
    how = random.randrange(9)
    if how == 0:
        tensor.begin, tensor.end, other.begin, other.end = other.begin, other.end, tensor.begin, tensor.end
    elif how == 1:  # a gap, or an overlap
        step = random.choice((-8, -4, -1, 1, 4, 8, 2**63, 2**64))
        for later in tensors[at:]:
            later.begin, later.end = later.begin + step, later.end + step
    elif how == 2:
        tensor.end += random.choice((-4, -1, 1, 4, 2**64))
    elif how == 3:
        tensor.begin, tensor.end = tensor.end, tensor.begin
    elif how == 4:
        tensor.dtype = random.choice((*_DTYPES, "f32", "F8_E4M3FN", "F33", "F4_X2", "", "F32\\u0000"))
    elif how == 5:
        tensor.shape.insert(random.randrange(len(tensor.shape) + 1), random.choice((0, 1, 1, 2, -1, *_LARGE)))
    elif how == 6:  # another shape of as many elements
        random.shuffle(tensor.shape)
    elif how == 7:
        tensor.name = other.name
    else:
        tensor.begin, tensor.end = other.begin, other.end


def _tree(random: Random, tensors: list[_Tensor]) -> Pairs:
    top = Pairs()
    for tensor in tensors:
        offsets: Node = [str(tensor.begin), str(tensor.end)]
        entry: list[tuple[str, Node]] = [
            ('"dtype"', f'"{tensor.dtype}"'),
            ('"shape"', [str(s) for s in tensor.shape]),
            ('"data_offsets"', offsets),
        ]
        if random.random() < 0.2:
            random.shuffle(entry)
        top.items.append((respell(random, tensor.name) if random.random() < 0.2 else tensor.name, Pairs(entry)))
    if random.random() < 0.5:
        metadata = {f'"{random.choice(_NAMES)}"': f'"{random.choice(_NAMES)}"' for _ in range(random.randrange(3))}
        top.items.insert(0, ('"__metadata__"', Pairs([*metadata.items()])))
    if random.random() < 0.3:  # the order in a header says nothing
        random.shuffle(top.items)
    return top


def _file(random: Random, header: bytes, nbytes: int, *, is_wrong: bool) -> bytes:
    """The file around a header; wrong: another length, missing or more bytes, something before it."""
    length, how = len(header), random.randrange(5) if is_wrong else None
    if how == 0:
        length = random.choice((*_LENGTHS, length - 1, length + 1, length + 8))
    if how == 1:
        header = random.choice((b" ", b"\n", b"\t", b"\xef\xbb\xbf", b"\0", b"PK\3\4")) + header
        length = len(header)
    if how == 2:
        nbytes = max(0, nbytes + random.choice((-8, -1, 1, 4, 100)))
    content = (max(0, length) % 2**64).to_bytes(8, "little") + header + random.randbytes(nbytes)
    if how == 3:
        return content[: random.randrange(len(content) + 1)]
    return content + b"\0" * random.choice((1, 8)) if how == 4 else content
