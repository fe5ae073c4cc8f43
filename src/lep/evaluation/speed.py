"""Speed as a user feels it: characters a second, the wait for the first token, and what a context holds.

Both models read and write the same text, so that a better tokenizer shows as it would in use: fewer steps for the same
words. Writing is timed by feeding the text's own tokens one by one through the cache, which costs what generating costs
and does not depend on what the model would say.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from lep.benchmark.scoring import keep_logits
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import Document
from lep.inference.likelihood import start_token
from lep.inference.models import context_of

PROMPT_SHARE = 0.75  # of each text is read, the rest is written
WARM, REPEATS = 2, 3


def speed_records(
    model: Any, checkpoint: Checkpoint, text: dict[str, list[Document]], texts: int
) -> Iterator[dict[str, Any]]:
    """Seconds, characters and bytes of the key-value cache for the first `texts` documents of each language.

    Times are medians of three; texts longer than the model's context are left out.
    """
    context, start = context_of(checkpoint), start_token(checkpoint.tokenizer)
    for language, documents in text.items():
        encoded = [
            checkpoint.tokenizer(d.text, add_special_tokens=False)["input_ids"] for d in documents
        ]
        pairs = list(zip(documents, encoded, strict=True))[:texts]
        fitting = [(document, [start, *ids]) for document, ids in pairs if len(ids) < context]
        for _, ids in fitting[:WARM]:
            _timed(model, ids)
        for document, ids in fitting:
            runs = [_timed(model, ids) for _ in range(REPEATS)]
            read = int(len(ids) * PROMPT_SHARE)
            written = len(checkpoint.tokenizer.decode(ids[read:]))
            yield {
                "kind": "speed",
                "language": language,
                "id": document.id,
                "tokens": len(ids) - 1,
                "characters": len(document.text),
                "read_characters": len(document.text) - written,
                "written_characters": written,
                "prefill_seconds": median(run[0] for run in runs),
                "generation_seconds": median(run[1] for run in runs),
                "cache_bytes": runs[0][2],
                "context_characters": context * len(document.text),
            }


@torch.inference_mode()
def _timed(model: Any, ids: list[int]) -> tuple[float, float, int]:
    """Seconds to read the first part, seconds to write the rest, and bytes of the cache at the end."""
    tokens = torch.tensor([ids], device=model.device)
    read = int(len(ids) * PROMPT_SHARE)
    began = _now()
    out = model(input_ids=tokens[:, :read], use_cache=True, **keep_logits(model, 1))
    out.logits[0, -1].argmax().item()
    prefilled = _now()
    for i in range(read, len(ids)):
        out = model(
            input_ids=tokens[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True
        )
        out.logits[0, -1].argmax().item()
    return prefilled - began, _now() - prefilled, cache_bytes(out.past_key_values)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cache_bytes(cache: Any) -> int:
    """Bytes of all keys and values that a model keeps of what it has seen."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    )
