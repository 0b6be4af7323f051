"""llama.cpp's own quantiser against a mix that is stored so at once: whole files, byte for byte.

    npm install --ignore-scripts --omit=optional @node-llama-cpp/linux-x64
    python -m benchmarks.llama_quantize node_modules/@node-llama-cpp/linux-x64/bins/linux-x64

The folder holds libllama and what it needs. The tiny family's parents are mixed at 0.75 into float32 and into Q8_0 and Q4_K; the
float32 file is quantised by `llama_model_quantize` (`--pure`), and every tensor compared.
"""

import argparse
import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.run import ROOT
from gguf import GGUFReader

from chimerakit.formats import open_checkpoint
from chimerakit.formats.imatrix import open_imatrix
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.records import Plan

FAMILY = ROOT / "examples" / "tiny-family"
RECIPE = """
parents: {{v3: null, r1: null}}
base: v3
rules:
- {{mix: {{r1: 0.75}}, components: routed_experts}}
output: {{dtype: {dtype}}}
"""
FILE_TYPES = {"q8_0": 7, "q4_k": 14}
"""llama_ftype: MOSTLY_Q8_0, MOSTLY_Q4_K_S."""


class Params(ctypes.Structure):
    """The beginning of llama_model_quantize_params; what follows keeps its defaults."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("rest", ctypes.c_char * 256),
    ]


def load(folder: Path) -> Any:
    """libllama with its backends."""
    ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(next(folder.glob("libggml.v*.so"))), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
    library = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
    library.llama_model_quantize_default_params.restype = Params
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
    library.llama_model_quantize.restype = ctypes.c_uint32
    return library


def family_in_gguf(folder: Path) -> dict[str, Path]:
    """The tiny family's parents, in BF16."""
    sys.path.insert(0, str(FAMILY))
    import to_gguf

    parents = {parent: folder / f"{parent}.gguf" for parent in ("v3", "r1")}
    for parent, file in parents.items():
        to_gguf.convert(FAMILY / f"{parent}-like", file)
    return parents


def plan_of(parents: dict[str, Path], dtype: str, imatrix: Path | None = None) -> Plan:
    """The plan of the mix, stored as a type."""
    opened = {name: open_checkpoint(path) for name, path in parents.items()}
    matrix = None if imatrix is None else open_imatrix(imatrix)
    return make_plan(parse_recipe(RECIPE.format(dtype=dtype)), opened, imatrix=matrix)


def mix(parents: dict[str, Path], dtype: str, folder: Path, imatrix: Path | None = None) -> Path:
    """The mix itself."""
    merge_parents(plan_of(parents, dtype, imatrix), folder)
    return folder / "model.gguf"


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor."""
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


def compare_files(mine: Path, theirs: Path, says: str) -> bool:
    """Whether all tensors of two files are equal; said."""
    here, there = tensors_of(mine), tensors_of(theirs)
    equal = sum(there.get(tensor) == content for tensor, content in here.items())
    print(f"{says}: {equal} of {len(there)} tensors are equal, type and bytes")
    return equal == len(there) == len(here)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="the folder with libllama")
    library = load(parser.parse_args().library)
    found = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        parents = family_in_gguf(root)
        whole = mix(parents, "f32", root / "f32")
        for dtype, file_type in FILE_TYPES.items():
            params = library.llama_model_quantize_default_params()
            params.nthread, params.ftype, params.pure = 1, file_type, True
            theirs = root / f"{dtype}.gguf"
            if library.llama_model_quantize(os.fsencode(whole), os.fsencode(theirs), ctypes.byref(params)):
                sys.exit(f"llama_model_quantize failed on {dtype}")
            found.append(compare_files(mix(parents, dtype, root / dtype), theirs, dtype))
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
