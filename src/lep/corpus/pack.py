"""Turn documents into training blocks of equal length without losing a token."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from lep.corpus.read import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenize_documents(
    documents: Iterable[Document], tokenizer: "PreTrainedTokenizerFast", batch_documents: int = 256
) -> Iterator[list[int]]:
    """Token ids of each document, with whatever the tokenizer puts first (BOS) and one EOS at the end."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    batch: list[str] = []
    for document in chain(documents, [None]):
        if document is not None:
            batch.append(document.text)
        if batch and (document is None or len(batch) == batch_documents):
            for ids in tokenizer(batch)["input_ids"]:
                yield ids if ids[-len(end) :] == end and end else ids + end
            batch = []


def pack(token_lists: Iterable[list[int]], block_size: int) -> Iterator[np.ndarray]:
    """Concatenate token lists and cut the stream into blocks of `block_size`; the last one may be shorter.

    >>> [b.tolist() for b in pack([[1, 2, 3], [4], [5, 6, 7]], 4)]
    [[1, 2, 3, 4], [5, 6, 7]]
    """
    buffer: list[int] = []
    for tokens in token_lists:
        buffer += tokens
        start = 0
        while len(buffer) - start >= block_size:
            yield np.asarray(buffer[start : start + block_size], dtype=np.int32)
            start += block_size
        del buffer[:start]
    if buffer:
        yield np.asarray(buffer, dtype=np.int32)
