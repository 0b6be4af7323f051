"""Models that answer. A backend is a callable: questions in, what was generated out.

In-process transformers decodes greedily in batches. FP8 checkpoints are dequantised by transformers when it loads them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chimerakit.errors import MissingExtraError
from chimerakit.evaluate.score import Generated

Backend = Callable[[Sequence[str]], list[Generated]]


def load_transformers(path: Path, *, max_new_tokens: int) -> Backend:
    """A checkpoint in transformers, greedy; each question goes through the tokenizer's chat template."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as e:
        raise MissingExtraError(e.name or "transformers", "eval") from e
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    # FP8 weights come dequantised to bfloat16, whatever dtype is asked for.
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).float().eval()

    def answer(questions: Sequence[str]) -> list[Generated]:
        chats = [[{"role": "user", "content": question}] for question in questions]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return [_generated(tokenizer, line) for line in tokens[:, inputs["input_ids"].shape[1] :].tolist()]

    return answer


def _generated(tokenizer: Any, tokens: list[int]) -> Generated:
    end = tokenizer.eos_token_id
    is_ended = end in tokens
    kept = tokens[: tokens.index(end)] if is_ended else tokens
    return Generated(tokenizer.decode(kept, skip_special_tokens=False), len(kept) + is_ended, is_ended)
