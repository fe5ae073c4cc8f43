"""A corpus as blocks of tokens, and how many of them make a training step."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.corpus.blocks import packed, token_pieces
from lep.corpus.files import Paths
from lep.corpus.prepare import unit_hash
from lep.corpus.read import Document, read_documents
from lep.errors import CorpusError, LepError, TrainingError
from lep.settings import JointSettings, PretrainSettings

LARGEST_BATCH_TOKENS, LEAST_STEPS, LARGEST_BLOCK = 262_144, 500, 1024
# New rows are to see many steps, rather than large ones.
JOINT_BATCH_TOKENS, JOINT_STEPS = 1_024, 1_500
MOST_GROWTH = 1.5  # of a step, where several processes share its blocks
# Documents for SPARE times the tokens of a training are drawn, if that is at most LARGEST_SHARE of
# the corpus.
SPARE, LARGEST_SHARE, BUCKETS = 2, 0.25, 10_000
PROBED_DOCUMENTS, PROBED_CHARACTERS = 200, 5_000
LOOK_SHARE = 0.1  # of the time of a training
PROBED, MOST_LEAK = 8, 0.01  # tokens of a piece; share of a context's effect


def batch_of(settings: PretrainSettings) -> int:
    """Tokens per step; `settings` must give a number of tokens, not of epochs."""
    is_joint = isinstance(settings, JointSettings)
    least, steps = (JOINT_BATCH_TOKENS, JOINT_STEPS) if is_joint else (1, LEAST_STEPS)
    tokens = max(least, min(LARGEST_BATCH_TOKENS, settings.budget(0) // steps))
    return settings.batch_tokens or tokens


def schedule(
    settings: PretrainSettings, block: int, blocks: int, processes: int = 1
) -> tuple[int, int, int]:
    """Sequences per step (at most `blocks`), accumulation steps, and optimizer steps."""
    sequences = min(blocks, max(1, round(batch_of(settings) / block)))
    accumulation = max(1, math.ceil(sequences * block / (settings.micro_batch_tokens * processes)))
    sequences = math.ceil(sequences / (accumulation * processes)) * accumulation * processes
    passes, rest = divmod(settings.budget(0), blocks * block)
    # The last step of each pass takes the blocks that are left.
    steps = passes * math.ceil(blocks / sequences) + math.ceil(rest / (sequences * block))
    return sequences, accumulation, steps


def check_sharing(settings: PretrainSettings, block: int, blocks: int, processes: int) -> None:
    """Raise `TrainingError` where so many processes make a step far larger than it should be.

    Each takes as many blocks of it as the others, and at least one.
    """
    alone, shared = (schedule(settings, block, blocks, n)[0] * block for n in (1, processes))
    wanted = max(batch_of(settings), alone)
    if shared > MOST_GROWTH * wanted:
        raise TrainingError(
            f"{processes} processes would train {shared:,} tokens a step, in blocks of {block:,}, "
            f"instead of {wanted:,}: start fewer processes, give a smaller block_size "
            f"(--block-size), or accept such steps with batch_tokens (--batch-tokens {shared})"
        )


def look_tokens(settings: PretrainSettings) -> int | None:
    """Tokens of a look in each language for which all looks take a tenth of the training.

    A trained token costs a forward and a backward pass, a look at one a forward pass. None where
    the user says how many characters to look at; `settings` must give a number of tokens.
    """
    if "eval_characters" in settings.model_fields_set or not settings.eval_text:
        return None
    looks = (1 + settings.checkpoints) * len(settings.eval_text)  # with one at the start
    return int(LOOK_SHARE * 2 * settings.budget(0) / looks)


def packed_blocks(
    checkpoint: Checkpoint,
    corpus: Paths,
    block: int,
    folder: Path,
    key: str,
    tokens: int | None = None,
) -> Dataset:
    """The corpus as memory-mapped blocks of at most `block` token ids; no token is lost.

    Each block lists the lengths of the document pieces that it holds. Of a corpus far larger than
    a training of so many `tokens` needs, documents are drawn.
    """

    def generate() -> Iterator[dict[str, Any]]:
        documents = documents_for(checkpoint, corpus, tokens)
        pieces = token_pieces(documents, checkpoint.tokenizer, block)
        for inside in packed(pieces, block):
            yield {"input_ids": [*chain(*inside)], "lengths": [len(piece) for piece in inside]}

    features = Features({"input_ids": List(Value("int32")), "lengths": List(Value("int32"))})
    return generated(generate, features, folder, key)


def generated(
    generate: Callable[[], Iterator[dict[str, Any]]], features: Features, folder: Path, key: str
) -> Dataset:
    """A memory-mapped data set, kept in a folder under a key; raises what the generator raises.

    Raises `CorpusError` if there is nothing to learn.
    """

    def rows() -> Iterator[dict[str, Any]]:
        row = None
        for row in generate():
            yield row
        if row is None:
            raise CorpusError("the text holds no token to learn: give other text")

    try:
        return Dataset.from_generator(rows, features, str(folder), fingerprint=key)
    except DatasetGenerationError as error:  # datasets wraps the reader's own error
        if isinstance(error.__cause__, LepError):
            raise error.__cause__ from None
        raise


def documents_for(checkpoint: Checkpoint, corpus: Paths, tokens: int | None) -> Iterator[Document]:
    """Documents for `SPARE` times the tokens, drawn by hash; all documents of a small corpus."""
    if tokens is None:
        return read_documents(corpus)
    first = islice(read_documents(corpus), PROBED_DOCUMENTS)
    texts = [document.text[:PROBED_CHARACTERS] for document in first]
    known = sum(map(len, checkpoint.tokenizer(texts)["input_ids"]))
    enough = SPARE * tokens * sum(map(len, texts)) / max(1, known)
    characters = Counter[int]()  # by the bucket of a document
    for document in read_documents(corpus):
        characters[_bucket(document)] += len(document.text)
    if enough > LARGEST_SHARE * characters.total():
        return read_documents(corpus)
    sums = accumulate(characters[bucket] for bucket in range(BUCKETS))
    last = next(bucket for bucket, total in enumerate(sums) if total >= enough)
    return (document for document in read_documents(corpus) if _bucket(document) <= last)


def _bucket(document: Document) -> int:
    return int(BUCKETS * unit_hash(f"pack/{document.id}"))


def collate(samples: list[dict[str, Any]], *, isolated: bool = True) -> dict[str, Tensor]:
    """Stack blocks into (n, longest) ids and labels; shorter ones are padded and not learned there.

    With `isolated`, position ids restart at each piece, which keeps pieces from seeing each other.
    The first token of a piece is never a label, nor are the other `prompt_tokens` of a
    conversation. In a mixture, `streams` (n, longest) are the numbers of each token's stream.
    """
    width = max(len(sample["input_ids"]) for sample in samples)
    ids, positions = torch.zeros(2, len(samples), width, dtype=torch.int64)
    labels, streams = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        tokens = torch.as_tensor(sample["input_ids"], dtype=torch.int64)
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
        lengths = [*sample["lengths"], width - len(tokens)]
        positions[row] = torch.cat([torch.arange(length) for length in lengths])
        starts = torch.tensor([0, *lengths[:-2]]).cumsum(0)
        labels[row, starts] = -100
        if "streams" in sample:
            streams[row, : len(tokens)] = torch.tensor(sample["streams"]).repeat_interleave(
                torch.tensor(sample["lengths"])
            )
            for start, count in zip(starts.tolist(), sample["prompt_tokens"], strict=True):
                labels[row, start : start + count] = -100
    batch = {"input_ids": ids, "labels": labels}
    batch |= {"position_ids": positions} if isolated else {}
    return batch | ({"streams": streams} if "streams" in samples[0] else {})


def tokens_of(blocks: Dataset) -> int:
    """Tokens in all blocks together."""
    lengths = pyarrow.compute.list_value_length(blocks.data.column("input_ids"))
    return int(pyarrow.compute.sum(lengths).as_py())


@torch.no_grad()
def isolates(model: Any) -> bool:
    """Whether restarting position ids keep the pieces of a block apart in this architecture.

    The logits of a piece must not change with the piece before it. Both blocks have one shape, so
    that rounding is the same, in any dtype; where the logits of experts round with their number of
    tokens, a hundredth of what the model sees without restarts is allowed.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ordinary = vocabulary // 2 + torch.arange(3 * PROBED)  # the first ids are special tokens
    before, other, piece = (ordinary % vocabulary).split(PROBED)
    rows = [torch.cat([first, piece]) for first in (before, other)]
    lengths = [PROBED, PROBED]
    logits = []
    for isolated in (True, False):
        samples = [
            collate([{"input_ids": row, "lengths": lengths}], isolated=isolated) for row in rows
        ]
        inputs = [{n: t.to(model.device) for n, t in s.items() if n != "labels"} for s in samples]
        try:
            outputs = [model(**each, use_cache=False).logits[0, PROBED:].float() for each in inputs]
        except (TypeError, ValueError):  # the model takes no position ids
            return False
        logits.append((outputs[0] - outputs[1]).norm())
    leak, context = logits
    return bool(leak <= MOST_LEAK * context)
