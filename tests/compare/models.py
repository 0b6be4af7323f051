"""Small models with routers that choose in groups, their states, and their routers in float64."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests import synthetic

CONFIG = synthetic.CONFIG | {"hidden_size": 72, "n_routed_experts": 8, "n_group": 4, "topk_group": 2}
EXPERTS, HIDDEN = 8, 72
LAYERS = (1, 2, 3)
"""Those with a router; the last is an MTP layer."""
SOURCE = "v3 on 4 problems"


def gate_of(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.weight"


def bias_of(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


def tensors_of(seed: int, storage: str = "bf16", **changes: Any) -> dict[str, synthetic.Array]:
    """All tensors; the routers of two seeds choose alike for some tokens, and not for others."""
    return synthetic.tensors_of(seed, storage, config=CONFIG | changes, spread=0.5)


def write(root: Path, tensors: Mapping[str, synthetic.Array], **changes: Any) -> Path:
    return synthetic.write_checkpoint(root, tensors, CONFIG | changes, shards=2, shuffle=3)


def states_of(layer: int, tokens: int = 300) -> npt.NDArray[np.float32]:
    """What the router of a layer receives, large enough that scores are not all a half."""
    return (np.random.default_rng(layer).normal(size=(tokens, HIDDEN)) * 8).astype(np.float32)


def write_states(
    path: Path, layers: Mapping[str, synthetic.Array] | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """A file of states; by default float32 ones for every router."""
    found = {f"layers.{layer}": states_of(layer) for layer in LAYERS} if layers is None else layers
    synthetic.write_shard(path, found, {"source": SOURCE} if metadata is None else metadata)
    return path


def chosen_by(tensors: Mapping[str, synthetic.Array], layer: int, states: synthetic.Array) -> list[set[int]]:
    """The experts that DeepSeek-V3's router chooses, token by token, as its code reads; in float64 by torch."""
    gate = torch.from_numpy(tensors[gate_of(layer)].astype(np.float64))
    scores = (torch.from_numpy(states.astype(np.float64)) @ gate.T).sigmoid()
    scores = scores + torch.from_numpy(tensors[bias_of(layer)].astype(np.float64))
    groups = scores.view(len(states), CONFIG["n_group"], -1).topk(2, dim=-1).values.sum(-1)
    used = torch.zeros_like(groups).scatter(1, groups.topk(CONFIG["topk_group"]).indices, 1.0)
    size = EXPERTS // CONFIG["n_group"]
    open_scores = scores.masked_fill(used.repeat_interleave(size, 1) == 0, -torch.inf)
    return [set(line) for line in open_scores.topk(CONFIG["num_experts_per_tok"]).indices.tolist()]
