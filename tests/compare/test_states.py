"""Files of states: what is taken, and what is refused with its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chimerakit.compare import compare_checkpoints, open_states
from chimerakit.errors import CheckpointError
from chimerakit.events import Started
from chimerakit.formats import open_checkpoint
from tests.compare.models import HIDDEN, LAYERS, SOURCE, states_of, tensors_of, write, write_states


def test_a_file_says_what_its_states_are_of(tmp_path: Path) -> None:
    """Its source, and which layers it has."""
    found = open_states(write_states(tmp_path / "x.safetensors"))
    assert (found.said.source, found.said.is_synthetic, tuple(found.layers)) == (SOURCE, False, LAYERS)


@pytest.mark.parametrize("source", ["synthetic", "Synthetic, drawn by me"])
def test_states_that_are_made_up_are_known_as_such(tmp_path: Path, source: str) -> None:
    """By what their file says."""
    path = write_states(tmp_path / "x.safetensors", metadata={"source": source})
    assert open_states(path).said.is_synthetic


SOME = states_of(1, tokens=3)
WRONG: dict[str, tuple[dict[str, Any], dict[str, str] | None, str]] = {
    "no source": ({"layers.1": SOME}, {}, "does not say of what model and prompts its states are"),
    "an empty source": ({"layers.1": SOME}, {"source": " "}, 'expected: "source" in its metadata'),
    "a source without an end": ({"layers.1": SOME}, {"source": "x" * 501}, "found:    501 characters"),
    "a name": ({"model.norm": SOME}, None, "'model.norm' is the name of no layer\n  expected: layers.0, layers.1"),
    "a name with zeros": ({"layers.01": SOME}, None, "'layers.01' is the name of no layer"),
    "one token alone": (
        {"layers.1": SOME[0]},
        None,
        f"'layers.1' holds no states\n.*\n.*found:    \\[{HIDDEN}\\] as F32",
    ),
    "no tokens": ({"layers.1": SOME[:0]}, None, f"found:    \\[0, {HIDDEN}\\] as F32"),
    "whole numbers": ({"layers.1": SOME.astype(np.int32)}, None, "as F32, BF16, F16\n.*as I32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_holds_no_states_is_refused(tmp_path: Path, name: str) -> None:
    """By what is wrong with it, from its header."""
    layers, metadata, says = WRONG[name]
    path = write_states(tmp_path / "x.safetensors", layers, metadata)
    with pytest.raises(CheckpointError, match=says):
        open_states(path)


def test_a_folder_is_no_file_of_states(tmp_path: Path) -> None:
    """Nor is a file of another kind, or none."""
    with pytest.raises(CheckpointError, match="is a folder\n  expected: one safetensors file of states"):
        open_states(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_states(tmp_path / "x.safetensors")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model's": (
        {"layers.1": SOME[:, :-1].copy()},
        f"'layers.1' has the wrong shape\n  expected: \\[tokens, {HIDDEN}\\]\n  found:    \\[3, {HIDDEN - 1}\\]",
    ),
    "a layer without a router": (
        {"layers.0": SOME},
        "'layers.0' is of a layer without a router that both checkpoints have\n  expected: layers among 1, 2, 3",
    ),
    "NaN": (
        {"layers.1": SOME, "layers.2": np.where(np.arange(HIDDEN) == 7, np.float32(np.nan), SOME)},
        "'layers.2' holds NaN or infinity, in tokens 0 to 2",
    ),
    "infinity": (
        {"layers.1": np.where(np.arange(HIDDEN) == 7, np.float32(np.inf), SOME)},
        "'layers.1' holds NaN or infinity, in tokens 0 to 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_that_fit_no_router_are_refused_before_long_work(tmp_path: Path, name: str) -> None:
    """With the name of the tensor; the weights are not gone through."""
    layers, says = REFUSED[name]
    sides = [open_checkpoint(write(tmp_path / side, tensors_of(seed))) for seed, side in enumerate("ab")]
    begun: list[str] = []
    with pytest.raises(CheckpointError, match=says):
        compare_checkpoints(
            *sides,
            states=open_states(write_states(tmp_path / "x.safetensors", layers)),
            listener=lambda event: begun.append(event.work) if isinstance(event, Started) else None,
        )
    assert "comparing" not in begun
