"""Texts read by checkpoints in transformers: how likely each token was, and what each router received.

All models read the same tokens (see `wording`): prompt and answer, without padding, one text after the other.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.compare.states import StatesFile
from chimerakit.errors import CheckpointError
from chimerakit.evaluate.backends.transformers import Transformers
from chimerakit.evaluate.wording import Text
from chimerakit.formats import open_checkpoint
from chimerakit.records import Unit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Surprise(Struct, frozen=True):
    """How unlikely a model finds a text's answer."""

    nats: float
    """-log of its probability, given the prompt."""
    tokens: int


def gates_of(path: Path) -> dict[int, Unit]:
    """The gate of each layer that has one, without those of MTP layers, which read no text."""
    units = Anatomy(open_checkpoint(path)).units().values()
    return {
        unit.role.layer: unit
        for unit in units
        if unit.role.component == "router"
        and not unit.role.mtp
        and len(unit.shape) == 2
        and unit.role.layer is not None
    }


class Reader:
    """A checkpoint that reads texts."""

    def __init__(self, path: Path):
        self._path = path
        self._engine = Transformers(path, batch=1)
        self._gates = gates_of(path)

    def read(self, texts: Sequence[Text], states: Path, source: str) -> Iterator[Surprise]:
        """How unlikely each answer is; what routers receive goes to a file of states, of which `compare` may ask, too."""
        import torch

        if not self._gates:
            raise CheckpointError("has no routers", where=self._path)
        width = {layer: gate.shape[1] for layer, gate in self._gates.items()}
        file = StatesFile(states, source, sum(len(text.tokens) for text in texts), width)
        is_whole, first = False, 0
        try:
            for text in texts:
                with self._listening() as received, torch.inference_mode():
                    logits = self._engine.model(torch.tensor([text.tokens]).to(self._engine.model.device)).logits
                if unheard := self._gates.keys() - received.keys():
                    raise CheckpointError(f"transformers did not ask the routers of layers {unheard}", where=self._path)
                for layer, values in received.items():
                    file.write(layer, first, values)
                first += len(text.tokens)
                yield _surprise(logits[0], text)
            is_whole = True
        finally:
            file.close(whole=is_whole)

    @contextmanager
    def _listening(self) -> "Iterator[dict[int, npt.NDArray[np.float32]]]":
        """What each router receives while a text is read: (tokens, hidden)."""
        received: dict[int, Any] = {}
        handles = []

        def hook(layer: int, width: int) -> Any:
            def keep(_module: Any, arguments: tuple[Any, ...]) -> None:
                received[layer] = arguments[0].detach().float().cpu().reshape(-1, width).numpy()

            return keep

        for layer, gate in self._gates.items():
            name = gate.name.removesuffix(".weight")
            try:
                module = self._engine.model.get_submodule(name)
            except AttributeError as e:
                raise CheckpointError(f"transformers has no router {name!r}", where=self._path) from e
            handles.append(module.register_forward_pre_hook(hook(layer, gate.shape[1])))
        try:
            yield received
        finally:
            for handle in handles:
                handle.remove()

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()


def _surprise(logits: Any, text: Text) -> Surprise:
    import torch

    chances = torch.log_softmax(logits[len(text.prompt) - 1 : -1].double(), dim=-1)
    wanted = torch.tensor(text.answer, device=chances.device)[:, None]
    nats = -float(chances.gather(1, wanted).sum())
    if not math.isfinite(nats):
        raise CheckpointError("gives an answer no probability that is a number", where="perplexity")
    return Surprise(nats, len(text.answer))
