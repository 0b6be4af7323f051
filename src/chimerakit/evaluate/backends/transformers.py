"""A checkpoint in transformers, in this process. FP8 checkpoints are dequantised by transformers when it loads them.

Sampling is made greedy: to each token's logit, divided by the temperature, a Gumbel number is added that depends on the answer's
own seed and on the place only (Gumbel, 1954: the largest is then a sample of the softmax). So an answer does not depend on what
else is in its batch, and a call that goes on after an interruption draws what the whole one would have drawn.

Of a checkpoint's generation_config.json only the special tokens are kept: with a repetition penalty, a shortest length
or suppressed tokens out of it, greedy is not the likeliest token, and parents are decoded unlike each other.
"""

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chimerakit.errors import CheckpointError, MissingExtraError
from chimerakit.evaluate.records import Ask, Generated, Settings
from chimerakit.evaluate.wording import prompt_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Transformers:
    """A model, its tokenizer, and how many answers are written together."""

    def __init__(self, path: Path, *, batch: int):
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
            from transformers.utils import logging
        except ImportError as e:
            raise MissingExtraError(e.name or "transformers", "eval") from e
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._torch = torch
        self._path = path
        self._batch = batch
        device = "cuda" if is_on_gpu() else "cpu"
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
            # On a CPU float32: what is stored in fewer bits is exact in it, and nothing is rounded on the way.
            kind = torch.float32 if device == "cpu" else "auto"
            model = AutoModelForCausalLM.from_pretrained(path, dtype=kind)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
            raise CheckpointError(f"transformers can't load it: {e}", where=path) from e
        self.model: Any = (model.float() if device == "cpu" else model).to(device).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # It takes the place of the model's own: what a config given to generate() leaves open is filled in from there.
        told = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            bos_token_id=told.bos_token_id, eos_token_id=told.eos_token_id, pad_token_id=self.tokenizer.pad_token_id
        )

    def answer(self, asks: Sequence[Ask], settings: Settings) -> Iterator[tuple[Ask, Generated]]:
        """Batches of questions of about the same length, so that little is padded."""
        prompts = {id(ask): self.prompt(ask) for ask in asks}
        ordered = sorted(asks, key=lambda ask: len(prompts[id(ask)]))
        for first in range(0, len(ordered), self._batch):
            batch = ordered[first : first + self._batch]
            yield from zip(batch, self._generate([prompts[id(ask)] for ask in batch], batch, settings), strict=True)

    def close(self) -> None:
        """Let go of the model."""
        del self.model

    def prompt(self, ask: Ask) -> str:
        """A question as the chat template puts it."""
        return prompt_of(self.tokenizer, ask, self._path)

    def _generate(self, prompts: Sequence[str], asks: Sequence[Ask], settings: Settings) -> list[Generated]:
        torch = self._torch
        inputs = self.tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(self.model.device)
        width = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {}
        if settings.temperature > 0:
            options["logits_processor"] = [_Drawn([ask.seed for ask in asks], width, settings)]
        begun = time.monotonic()
        with torch.inference_mode():
            tokens = self.model.generate(
                **{name: inputs[name] for name in ("input_ids", "attention_mask")},
                max_new_tokens=settings.max_tokens,
                do_sample=False,
                **options,
            )
        seconds = time.monotonic() - begun
        lines = tokens[:, width:].tolist()
        return [self._said(line, prompt, seconds, settings) for line, prompt in zip(lines, prompts, strict=True)]

    def _said(self, tokens: list[int], prompt: str, seconds: float, settings: Settings) -> Generated:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends, self.tokenizer.eos_token_id])
        at = next((number for number, token in enumerate(tokens) if token in ends), None)
        kept = tokens[:at]
        text = self.tokenizer.decode(kept, skip_special_tokens=False)
        is_opened = prompt.rstrip().endswith(settings.opens)
        return Generated(
            text=text,
            output_tokens=len(kept) + (at is not None),
            is_ended=at is not None,
            seconds=seconds,
            reasoning_tokens=self._count_reasoning(kept, text, settings, is_opened=is_opened),
            opened=is_opened,
        )

    def _count_reasoning(self, tokens: list[int], text: str, settings: Settings, *, is_opened: bool) -> int:
        """How many tokens there are up to the end of the last trace: the fewest whose text has as many closing tags."""
        closes = settings.closes
        if not (wanted := text.count(closes)):
            return len(tokens) if is_opened or settings.opens in text else 0
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            found = self.tokenizer.decode(tokens[:middle], skip_special_tokens=False).count(closes)
            low, high = (low, middle) if found >= wanted else (middle + 1, high)
        return low


def is_on_gpu() -> bool:
    """Whether models are loaded onto a GPU, in the numbers that they are stored in; else they are float32."""
    try:
        if version("torch").endswith("+cpu"):  # a build that never sees one; known without loading it for seconds
            return False
        import torch
    except ImportError:  # nothing can be loaded, but answers that are kept can be measured
        return False
    return bool(torch.cuda.is_available())


class _Drawn:
    """Logits -> those whose largest is a sample; transformers calls it with (batch, places) tokens and (batch, vocabulary)."""

    def __init__(self, seeds: Sequence[int], width: int, settings: Settings):
        self._seeds = seeds
        self._width = width
        self._settings = settings

    def __call__(self, tokens: Any, logits: Any) -> Any:
        import numpy as np
        import torch

        logits = logits.float() / self._settings.temperature
        if self._settings.top_p < 1:
            ordered, places = torch.sort(logits, dim=-1, descending=True)
            shares = torch.softmax(ordered, dim=-1)
            is_cut = shares.cumsum(dim=-1) - shares >= self._settings.top_p  # the most likely one always stays
            logits = logits.masked_fill(is_cut.scatter(-1, places, is_cut), -torch.inf)
        drawn = [draw(seed, tokens.shape[1] - self._width, logits.shape[1]) for seed in self._seeds]
        return logits + torch.from_numpy(np.stack(drawn)).to(logits)


def draw(seed: int, place: int, count: int) -> "npt.NDArray[np.float64]":
    """Gumbel numbers for one token of one answer: others for each place, which has 2^64 steps of the generator's to itself."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=seed, counter=[0, place, 0, 0])).gumbel(size=count)
