"""The merge as one would write it for a model that fits in memory: safetensors and torch, nothing of ours."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

CASTS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
Stored = tuple[torch.Tensor, ...]  # a weight, with its scales if it is FP8


def load(folder: Path) -> tuple[dict[str, Stored], bool]:
    """Weights with their scales, and whether scales are powers of two."""
    found = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    weights = [name for name in found if not name.endswith("_scale_inv")]
    quantization = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    return {
        n: tuple(found[x] for x in (n, n + "_scale_inv") if x in found) for n in weights
    }, "scale_fmt" in quantization


def spread(scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: like.shape[0], : like.shape[1]]


def term(share: float, weight: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
    """share * value in float32; of FP8 the scale is multiplied first."""
    factor = torch.tensor(share, dtype=torch.float32)
    return (spread(factor * scales[0].float(), weight) if scales else factor) * weight.float()


def distances(a: Path, b: Path) -> dict[str, float]:
    """||A - B||_F / sqrt(numel) of the float32 values, by a weight's name; in float64."""
    mine, theirs = (load(folder)[0] for folder in (a, b))
    apart = {n: term(1.0, *own).double() - term(1.0, *theirs[n]).double() for n, own in mine.items()}
    return {n: float(difference.norm()) / difference.numel() ** 0.5 for n, difference in apart.items()}


def to_blocks(values: torch.Tensor, powers_of_two: bool, dtype: torch.dtype) -> Stored:
    """FP8 codes, and a scale for each 128x128 block."""
    high, wide = (-(-side // 128) for side in values.shape)
    padded = torch.zeros(high * 128, wide * 128)
    padded[: values.shape[0], : values.shape[1]] = values
    amax = padded.abs().reshape(high, 128, wide, 128).amax((1, 3))
    scales, inverses = amax / 448, torch.tensor(448.0) / amax
    if powers_of_two:
        mantissas, exponents = torch.frexp(scales)
        scales = torch.ldexp(torch.ones_like(scales), exponents - (mantissas == 0.5).int())
        inverses = 1 / scales
    scales[amax == 0] = inverses[amax == 0] = 1
    return (values * spread(inverses, values)).to(torch.float8_e4m3fn), scales.to(dtype)


def merge(
    parents: Mapping[str, Path], base: str, shares_of: Callable[[str], dict[str, float]], dtype: str = "keep"
) -> dict[str, torch.Tensor]:
    """The child's tensors. shares_of: a weight's name -> {parent: share}, base first; {parent: 1} takes it whole."""
    loaded = {name: load(folder) for name, folder in parents.items()}
    child: dict[str, torch.Tensor] = {}
    for name, own in loaded[base][0].items():
        shares = shares_of(name)
        parts = [loaded[parent][0][name] for parent in shares]
        kinds = [t.dtype for t in own]
        if dtype == "fp8-block" and "_proj" in name and "eh_proj" not in name and len(own) == 1:
            kinds = [torch.float8_e4m3fn, torch.float32]
        elif dtype in CASTS and not name.endswith("bias"):
            kinds = [CASTS[dtype]]
        is_equal = all(list(map(bytes_of, part)) == list(map(bytes_of, parts[0])) for part in parts)
        if is_equal and abs(sum(shares.values()) - 1) < 1e-9:
            shares, parts = {next(iter(shares)): 1.0}, parts[:1]
        is_power = [loaded[parent][1] for parent in (base, *shares)]
        made = parts[0]
        if list(shares.values()) != [1] or [t.dtype for t in made] != kinds or is_power[0] > is_power[1]:
            first, *others = (term(share, *part) for share, part in zip(shares.values(), parts, strict=True))
            total = sum(others, start=first)
            made = to_blocks(total, is_power[0], kinds[1]) if len(kinds) == 2 else (total.to(kinds[0]),)
        child |= dict(zip((name, name + "_scale_inv"), made, strict=False))
    return child


def bytes_of(tensor: torch.Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
