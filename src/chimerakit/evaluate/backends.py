"""Models that answer. A backend is a callable: questions in, what was generated out.

In-process transformers decodes greedily in batches. FP8 checkpoints are dequantised by transformers when it loads them. GGUF
runs in llama.cpp, in this process, too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chimerakit.errors import CheckpointError, MissingExtraError
from chimerakit.evaluate.score import Generated
from chimerakit.formats import open_checkpoint

Backend = Callable[[Sequence[str]], list[Generated]]

_CONTEXT = 2048
"""Tokens of a question and its answer at most, in llama.cpp."""


def load_backend(path: Path, *, max_new_tokens: int) -> Backend:
    """The engine for a checkpoint: llama.cpp for GGUF, transformers for safetensors."""
    checkpoint = open_checkpoint(path)
    if checkpoint.format == "gguf":
        return load_llama_cpp(Path(checkpoint.root, checkpoint.shards[0].name), max_new_tokens=max_new_tokens)
    return load_transformers(path, max_new_tokens=max_new_tokens)


def load_llama_cpp(file: Path, *, max_new_tokens: int) -> Backend:
    """A GGUF file in llama.cpp, greedy, one question after the other; each goes through the file's chat template."""
    try:
        import xllamacpp
    except ImportError as e:
        raise MissingExtraError("xllamacpp", "eval") from e
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.use_jinja, params.warmup, params.verbosity = True, False, 0
    params.n_ctx, params.n_parallel = _CONTEXT, 1
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as e:
        raise CheckpointError(f"llama.cpp can't load it: {e}", where=file) from e

    def answer(questions: Sequence[str]) -> list[Generated]:
        return [_answered(server, question, max_new_tokens) for question in questions]

    return answer


def _answered(server: Any, question: str, max_new_tokens: int) -> Generated:
    asked = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_new_tokens,
        "temperature": 0,
        "reasoning_format": "none",  # traces stay in the text
    }
    found = server.handle_chat_completions(asked)
    if "choices" not in found:
        why = found.get("error", found)
        raise CheckpointError(
            "llama.cpp does not answer",
            where=repr(question[:80]),
            found=why.get("message", why) if isinstance(why, dict) else why,
        )
    choice = found["choices"][0]
    is_ended = choice["finish_reason"] == "stop"
    return Generated(choice["message"]["content"] or "", found["usage"]["completion_tokens"], is_ended)


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
