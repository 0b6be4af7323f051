"""Nearly right GGUF files: each is read as gguf-py reads it, or refused with one clear error and next to no memory."""

import ctypes
import tracemalloc
from pathlib import Path

from gguf import GGUFReader

from chimerakit.dtypes import GGML_TYPES
from chimerakit.errors import CheckpointError
from chimerakit.formats import open_checkpoint
from chimerakit.records import Checkpoint
from tests import llama_cpp
from tests.fuzzing import LEAST_ACCEPTED, gguf, is_clear, reproducible, seeds

_REMOVED = {name for name, kind in GGML_TYPES.items() if 31 <= kind.id <= 33 or 36 <= kind.id <= 38}
"""Types that llama.cpp reads no more."""
_OTHERWISE_IN_GGUF_PY = {"Q2_0", "Q8_1"}
"""Types that gguf-py does not know yet, or of another size than llama.cpp."""


def opened(file: Path) -> Checkpoint | str:
    """What we find, or what we refuse the file with."""
    try:
        return open_checkpoint(file)
    except CheckpointError as e:
        return str(e)


def check_as_gguf_py(file: Path, found: Checkpoint) -> None:
    """The same tensors, byte for byte; slices of a stack are in order what the stack is."""
    data = file.read_bytes()
    for tensor in GGUFReader(file).tensors:
        name = str(tensor.name)
        parts = [t for n, t in found.tensors.items() if n == name or (n.rpartition("[")[0] == name and n.endswith("]"))]
        parts = [t for t in parts if t.name == name] or parts
        assert b"".join(data[t.start : t.start + t.nbytes] for t in parts) == tensor.data.tobytes()
        assert {t.dtype for t in parts} <= {tensor.tensor_type.name}


def llama_cpp_opens(file: Path) -> bool:
    """Whether llama.cpp's own reader takes the header."""

    class Params(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

    library = llama_cpp.library()
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_free.argtypes = [ctypes.c_void_p]
    found = library.gguf_init_from_file(str(file).encode(), Params(True, None))
    if found:
        library.gguf_free(found)
    return bool(found)


def is_for_llama_cpp(found: Checkpoint) -> bool:
    """Whether llama.cpp should open a file, too: it knows removed types no more, and names of 63 bytes at most."""
    dtypes = {tensor.dtype for tensor in found.tensors.values()}
    names = [name.partition("[")[0] for name in found.tensors]
    return dtypes.isdisjoint(_REMOVED) and all(len(name.encode()) < 64 and "\0" not in name for name in names)


def test_files_are_read_as_the_references_read_them_or_refused(tmp_path: Path) -> None:
    """What we accept, llama.cpp opens and gguf-py reads as we do; what we refuse is told in one clear error."""
    file, accepted, wanted = tmp_path / "m.gguf", 0, seeds(quick=600, ci=6_000, prove=100_000)
    for seed in wanted:
        data = gguf.make(seed)
        file.write_bytes(data)
        with reproducible(seed, data):
            found = opened(file)
            if isinstance(found, str):
                assert found.startswith(f"{file}: ")
                assert is_clear(found)
                continue
            accepted += 1
            if is_for_llama_cpp(found):
                assert llama_cpp_opens(file)
                if {t.dtype for t in found.tensors.values()}.isdisjoint(_OTHERWISE_IN_GGUF_PY):
                    check_as_gguf_py(file, found)
    assert accepted >= LEAST_ACCEPTED * len(wanted)


def test_no_file_costs_memory_that_it_does_not_justify(tmp_path: Path) -> None:
    """However large the numbers in it."""
    file = tmp_path / "m.gguf"
    for seed in seeds(quick=200, ci=500, prove=5_000):
        data = gguf.make(seed)
        file.write_bytes(data)
        tracemalloc.start()
        opened(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with reproducible(seed, data):
            assert peak < 500_000 + 300 * len(data)
