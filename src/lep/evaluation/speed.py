"""Speed as a user feels it: characters per second, time to the first token, what a context holds.

All models read and write the same text, so a better tokenizer takes fewer steps. Writing is timed
by feeding the text's own tokens one by one through the cache: that costs what generating costs, and
does not depend on what the model would say.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any

import torch

from lep.benchmark.scoring import keep_logits
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import Document
from lep.errors import note
from lep.evaluation.records import SpeedRecord
from lep.inference.likelihood import start_token
from lep.inference.models import context_of
from lep.progress import progress

PROMPT_SHARE = 0.75  # of each text is read, the rest is written
WARM, REPEATS = 2, 3


def speed_texts(
    checkpoints: Sequence[Checkpoint], text: dict[str, list[Document]], texts: int
) -> dict[str, list[Document]]:
    """The first `texts` documents of each language that fit into the context of every model.

    A note says where there are fewer.
    """
    chosen: dict[str, list[Document]] = {}
    for language, documents in text.items():
        fitting = (d for d in documents if all(_fits(checkpoint, d) for checkpoint in checkpoints))
        chosen[language] = list(islice(fitting, texts))
        if len(chosen[language]) < min(texts, len(documents)):
            note(
                f"--speed {texts}: {len(chosen[language])} of {len(documents)} texts in "
                f"'{language}' fit into the context of every model, and the others are left out"
            )
    return chosen


def _fits(checkpoint: Checkpoint, document: Document) -> bool:
    return len(_ids(checkpoint, document)) <= context_of(checkpoint)


def _ids(checkpoint: Checkpoint, document: Document) -> list[int]:
    tokenizer = checkpoint.tokenizer
    text = tokenizer(document.text, add_special_tokens=False)["input_ids"]
    return [start_token(tokenizer), *text]


def speed_records(
    model: Any, checkpoint: Checkpoint, text: dict[str, list[Document]]
) -> Iterator[SpeedRecord]:
    """Seconds, characters and bytes of the key-value cache for each text, by language.

    Times are medians of three. `speed_texts` chooses texts that fit into the context.
    """
    tokenizer, context = checkpoint.tokenizer, context_of(checkpoint)
    for language, documents in text.items():
        encoded = [(document, _ids(checkpoint, document)) for document in documents]
        for _, ids in encoded[:WARM]:
            _timed(model, ids)
        for document, ids in progress(encoded, f"{language} speed"):
            prefills, generations, (cache, *_) = zip(
                *(_timed(model, ids) for _ in range(REPEATS)), strict=True
            )
            characters = len(document.text)
            written = len(tokenizer.decode(ids[int(len(ids) * PROMPT_SHARE) :]))
            yield SpeedRecord(
                language=language,
                id=document.id,
                tokens=len(ids) - 1,
                characters=characters,
                read_characters=characters - written,
                written_characters=written,
                prefill_seconds=median(prefills),
                generation_seconds=median(generations),
                cache_bytes=cache,
                context_characters=context * characters,
            )


@torch.inference_mode()
def _timed(model: Any, ids: list[int]) -> tuple[float, float, int]:
    """Seconds to read the first part and to write the rest, and bytes of the cache at the end."""
    tokens = torch.tensor([ids], device=model.device)
    read = int(len(ids) * PROMPT_SHARE)
    began = _now()
    out = model(input_ids=tokens[:, :read], use_cache=True, **keep_logits(model, 1))
    out.logits[0, -1].argmax().item()
    prefilled = _now()
    for token in tokens[:, read:].split(1, dim=1):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        out.logits[0, -1].argmax().item()
    return prefilled - began, _now() - prefilled, cache_bytes(out.past_key_values)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cache_bytes(cache: Any) -> int:
    """Bytes of all keys and values in the cache."""
    tensors = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
