"""What storing weights anew in quants costs: time, and how many bits are left of each."""

from collections import Counter
from collections.abc import Iterable, Iterator

from chimerakit.dtypes import GGML_TYPES, QUANTS, numel_of
from chimerakit.records import Kind

_RATES = {
    "Q4_0": 160, "Q4_1": 75, "Q5_0": 90, "Q5_1": 60, "Q8_0": 95, "Q2_K": 11, "Q3_K": 44, "Q4_K": 13, "Q5_K": 18, "Q6_K": 16,
    "IQ2_XXS": 3.7, "IQ2_XS": 2, "IQ3_XXS": 3.1, "IQ1_S": 8.5, "IQ4_NL": 6, "IQ3_S": 4, "IQ2_S": 5.2, "IQ4_XS": 5, "IQ1_M": 1.6,
    "TQ1_0": 220, "TQ2_0": 370, "MXFP4": 50,
}  # fmt: skip
"""Million weights that a core of the machine in docs/gguf.md encodes in a second, without an imatrix."""
_FEW_BITS = 4


def bits_of(dtype: str) -> float:
    """Bits that a weight takes in a quant, scales counted in."""
    return 8 * GGML_TYPES[dtype].nbytes / GGML_TYPES[dtype].weights


def encoded_weights(stored: Iterable[tuple[Kind, str, tuple[int, ...]]]) -> Counter[str]:
    """Weights that are encoded in each quant; of each unit what is done, how it is stored, and its shape."""
    found = Counter[str]()
    for kind, storage, shape in stored:
        if kind != "copy" and storage in QUANTS:
            found[storage] += numel_of(shape)
    return found


def encoding_seconds(weights: Counter[str], threads: int) -> float:
    """About how long encoding takes, if all threads have a core each."""
    return sum(count / (1e6 * _RATES[dtype]) for dtype, count in weights.items()) / max(1, threads)


def note_few_bits(weights: Counter[str]) -> Iterator[str]:
    """A warning for each quant of so few bits that every new rounding costs."""
    for dtype in weights:
        if (bits := bits_of(dtype)) < _FEW_BITS:
            yield (
                f"{weights[dtype]:,} weights are rounded anew to {dtype}, {bits:.2f} bits each: below {_FEW_BITS} bits a mix of "
                "quants loses much; take what can be taken whole, or name a larger type in output: dtype"
            )
