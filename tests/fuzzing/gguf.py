"""GGUF files: plausible ones, and such with something wrong, each from one seed.

A draft knows keys and tensors and can be made wrong in what it means: numbers, lengths, types, texts, offsets, what is there
twice. The bytes of the header can be changed, and the file around it be cut or made longer.
"""

import struct
from dataclasses import dataclass
from random import Random

from chimerakit.dtypes import GGML_TYPES, nbytes_of

_KEYS = (b"deepseek2.block_count", b"deepseek2.embedding_length", b"k", "é".encode(), b"general.name", b"a" * 300)
_ODD_KEYS = (
    b"general.architecture",
    b"general.alignment",
    b"general.type",
    b"split.no",
    b"split.count",
    b"",
    b"\xff",
    *_KEYS,
)
_NAMES = (
    b"token_embd.weight", b"blk.0.ffn_up_exps.weight", b"blk.1.ffn_down_exps.weight", b"blk.0.attn_q.weight", b"w", b"w[3]", b"",
    b"\xc3", "\u202e".encode(), b"a" * 63, b"a" * 64, b"x\x00y",
)  # fmt: skip
_TEXTS = (b"deepseek2", b"model", b"", b"text", "\U0001f600".encode(), b"a\x00b")
_ODD_TEXTS = (*_TEXTS, b"\x80")
_SIDES = (0, 1, 1, 2, 2, 3, 4, 8)
_LARGE = (2**16, 2**31, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass(slots=True)
class _Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int
    nbytes: int


def make(seed: int) -> bytes:
    """A whole file."""
    random = Random(seed)
    names = random.sample(_KEYS, random.choice((0, 1, 2, 3, 5)))
    keys = [_architecture(random), *(_key(random, name) for name in names)]
    keys += [_experts(random)] * (random.random() < 0.7)
    tensors = _tensors(random)
    wrongs = 0 if random.random() < 0.3 else random.choice((1, 1, 1, 2, 3))
    for _ in range(wrongs):
        random.choice((_change_tensor, _change_tensor, _change_keys))(random, tensors, keys)
    counts = [len(tensors), len(keys)]
    if random.random() < 0.05:
        counts[random.randrange(2)] = random.choice((0, 1, 7, *_LARGE))
    version = 3 if random.random() < 0.95 else random.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(map(_info, tensors))
    if random.random() < 0.15:
        header = _change_bytes(random, header)
    end = max((t.offset + t.nbytes for t in tensors if t.offset < 1 << 20), default=0)
    data = bytes(-len(header) % 32) + random.randbytes(end) + bytes(-end % 32)
    return _cut(random, header + data, len(header))


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _architecture(random: Random) -> bytes:
    text = b"deepseek2" if random.random() < 0.9 else random.choice(_TEXTS)
    return _string(b"general.architecture") + struct.pack("<I", _STRING) + _string(text)


def _experts(random: Random) -> bytes:
    return _string(b"deepseek2.expert_count") + struct.pack("<II", 4, random.choice((0, 2, 2, 2, 3, 2**31)))


def _key(random: Random, name: bytes) -> bytes:
    kind = random.choice((*_WIDTHS, _STRING, _STRING, _ARRAY, _ARRAY))
    return _string(name) + struct.pack("<I", kind) + _value(random, kind)


def _value(random: Random, kind: int) -> bytes:
    if kind == _STRING:
        return _string(random.choice(_TEXTS if random.random() < 0.98 else _ODD_TEXTS))
    if kind == _ARRAY:
        inner, count = random.choice((*_WIDTHS, _STRING, _STRING, _ARRAY)), random.choice((0, 1, 3, 65, 200))
        inner = inner if inner != _ARRAY or random.random() < 0.02 else 4
        stated = count if random.random() < 0.95 else random.choice(_LARGE)
        return struct.pack("<IQ", inner, stated) + b"".join(
            _value(random, inner) for _ in range(count if inner != _ARRAY else 0)
        )
    if kind == 7:
        return bytes([random.choice((0, 1)) if random.random() < 0.99 else 2])
    return random.choice((random.randbytes(_WIDTHS[kind]), b"\x08" + bytes(_WIDTHS[kind] - 1)))


def _tensors(random: Random) -> list[_Tensor]:
    """Tensors that follow each other, at multiples of 32."""
    found: list[_Tensor] = []
    end = 0
    for _ in range(random.choice((0, 1, 1, 2, 3, 5))):
        dtype = random.choice(("F32", "F32", "F16", "BF16", "I8", "Q8_0", "Q4_K", *GGML_TYPES))
        kind = GGML_TYPES[dtype]
        shape = [random.choice(_SIDES) for _ in range(random.choice((0, 1, 1, 2, 3)))] + [
            random.choice((0, 1, 2)) * kind.weights
        ]
        nbytes = nbytes_of(dtype, tuple(shape)) or 0
        name = random.choice(_NAMES[:7])
        found.append(_Tensor(name + b".%d" % len(found), shape[::-1], kind.id, end, nbytes))
        end += nbytes + -nbytes % 32
    return found


def _info(tensor: _Tensor) -> bytes:
    dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
    return _string(tensor.name) + dims + struct.pack("<IQ", tensor.kind, tensor.offset)


def _change_tensor(random: Random, tensors: list[_Tensor], _: list[bytes]) -> None:
    if not tensors:
        return
    tensor = random.choice(tensors)
    what = random.randrange(8)
    if what == 0:
        tensor.kind = random.choice((4, 5, 31, 43, 100, 137, 2**31, 2**32 - 1))
    elif what == 1:
        tensor.offset = random.choice((0, 1, 31, 32, 64, *_LARGE))
    elif what == 2:
        tensor.dims.append(random.choice((1, 1, 2)))
    elif what == 3 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice((*_SIDES, *_LARGE))
    elif what == 4:
        tensor.name = random.choice(tensors).name
    elif what == 5:
        tensor.name = random.choice(_NAMES)
    elif what == 6:
        tensor.name = tensor.name.rpartition(b".")[0]
    else:
        tensors.remove(tensor)


def _change_keys(random: Random, _: list[_Tensor], keys: list[bytes]) -> None:
    number = random.randrange(len(keys))
    what = random.randrange(4)
    if what == 0:
        keys.append(keys[number])
    elif what == 1:
        del keys[number]
        keys.append(_key(random, random.choice(_ODD_KEYS)))
    elif what == 2:
        keys[number] = _change_bytes(random, keys[number])
    else:
        alignment = random.choice((0, 1, 3, 8, 32, 64, 2**31))
        keys.append(_string(b"general.alignment") + struct.pack("<II", 4, alignment))


def _change_bytes(random: Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        if found:
            at = random.randrange(len(found))
            found[at : at + random.choice((0, 1, 1, 8))] = random.choice(
                (b"", random.randbytes(1), b"\xff" * 8, bytes(8), random.choice(_LARGE).to_bytes(8, "little"))
            )
    return bytes(found)


def _cut(random: Random, data: bytes, header: int) -> bytes:
    if random.random() < 0.9:
        return data
    end = random.choice((random.randrange(len(data) + 1), random.randrange(header + 1), len(data) - 1, len(data) + 1))
    return data[:end] + bytes(max(0, end - len(data)))
