"""llama.cpp's own tools around an imatrix of ours: llama-imatrix measures the parents, llama-quantize reads what is made of that.

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36    # its vendor/llama.cpp holds the sources
    cmake -B build -G Ninja -DCMAKE_BUILD_TYPE=Release && ninja -C build llama-imatrix llama-quantize
    python -m benchmarks.llama_imatrix build/bin

The tiny family's parents are mixed at 0.75. `chimerakit imatrix` puts the child's importance matrix together; with it
llama-quantize stores the float32 mix, and a merge stores the mix at once; every tensor is compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.llama_quantize import FAMILY, compare_files, family_in_gguf, mix, plan_of

from chimerakit.formats.imatrix import encode_imatrix, read_imatrix
from chimerakit.imatrix import blend_imatrix

FILE_TYPES = {"q4_k": "Q4_K_S", "q2_k": "Q2_K", "iq4_xs": "IQ4_XS"}


def call(*arguments: object) -> str:
    """Run a tool; what it says."""
    done = subprocess.run(
        list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{arguments[0]} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", type=Path, help="the folder with llama-imatrix and llama-quantize")
    tools = parser.parse_args().tools
    found = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        parents = family_in_gguf(root)
        text = root / "problems.txt"
        problems = map(json.loads, (FAMILY / "problems.jsonl").read_text().splitlines())
        text.write_text("\n".join(f"{problem['question']} = {problem['answer']}" for problem in problems))
        matrices = {}
        for parent, file in parents.items():
            path = root / f"{parent}.imatrix.gguf"
            call(tools / "llama-imatrix", "-m", file, "-f", text, "-o", path, "-c", 128, "-t", 1, "--no-ppl")
            matrices[parent] = read_imatrix(path)
        merged = blend_imatrix(plan_of(parents, "f32"), matrices)
        print(f"{len(merged.imatrix.entries)} entries: {merged.by_parents}; none for {len(merged.missing)} tensors")
        (root / "child.imatrix.gguf").write_bytes(encode_imatrix(merged.imatrix))
        whole = mix(parents, "f32", root / "f32")
        for dtype, file_type in FILE_TYPES.items():
            theirs = root / f"{dtype}.gguf"
            said = call(
                *(tools / "llama-quantize", "--pure", "--imatrix", root / "child.imatrix.gguf"),
                *(whole, theirs, file_type, 1),
            )
            print(*[line for line in said.splitlines() if "imatrix" in line and "load" in line], sep="\n")
            mine = mix(parents, dtype, root / dtype, root / "child.imatrix.gguf")
            found.append(compare_files(mine, theirs, dtype))
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
