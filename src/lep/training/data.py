"""A corpus as blocks of tokens for training, and how many of them make a step."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from lep.checkpoint.reader import Checkpoint
from lep.corpus.blocks import packed, token_pieces
from lep.corpus.read import read_documents
from lep.errors import LepError
from lep.settings import PretrainSettings

LARGEST_BATCH_TOKENS, LEAST_STEPS, LARGEST_BLOCK = 262_144, 500, 1024  # the paper's batch and block


def batch_of(settings: PretrainSettings) -> int:
    """Tokens a step, of settings that name a number of tokens."""
    return settings.batch_tokens or max(
        1, min(LARGEST_BATCH_TOKENS, settings.budget(0) // LEAST_STEPS)
    )


def schedule(
    settings: PretrainSettings, block: int, blocks: int, processes: int = 1
) -> tuple[int, int, int]:
    """Sequences a step (no more than there are), accumulation steps, and optimizer steps for a token budget."""
    sequences = min(blocks, max(1, round(batch_of(settings) / block)))
    accumulation = max(1, math.ceil(sequences * block / (settings.micro_batch_tokens * processes)))
    sequences = math.ceil(sequences / (accumulation * processes)) * accumulation * processes
    passes, rest = divmod(
        settings.budget(0), blocks * block
    )  # the last step of a pass takes what is left of it
    return (
        sequences,
        accumulation,
        passes * math.ceil(blocks / sequences) + math.ceil(rest / (sequences * block)),
    )


def packed_blocks(
    checkpoint: Checkpoint, corpus: list[str | Path], block: int, folder: Path, key: str
) -> Dataset:
    """The corpus as memory-mapped blocks of token ids and the lengths of the pieces in them; no token is lost."""

    def generate() -> Iterator[dict[str, Any]]:
        for pieces in packed(
            token_pieces(read_documents(corpus), checkpoint.tokenizer, block), block
        ):
            yield {
                "input_ids": [token for piece in pieces for token in piece],
                "lengths": [len(p) for p in pieces],
            }

    features = Features({"input_ids": List(Value("int32")), "lengths": List(Value("int32"))})
    try:
        return Dataset.from_generator(
            generate, features=features, cache_dir=str(folder), fingerprint=key
        )
    except DatasetGenerationError as error:  # datasets wraps what the reader has to say
        if isinstance(error.__cause__, LepError):
            raise error.__cause__ from None
        raise


def collate(samples: list[dict[str, Any]], *, isolated: bool = True) -> dict[str, torch.Tensor]:
    """Stack blocks; a shorter one is filled at its end, where the loss does not look.

    Positions begin again with each piece, which keeps pieces apart; what a piece begins with is not predicted from the
    one before.
    """
    width = max(len(sample["input_ids"]) for sample in samples)
    ids, positions = torch.zeros(2, len(samples), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        tokens = torch.as_tensor(sample["input_ids"], dtype=torch.int64)
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
        lengths = [*sample["lengths"], width - len(tokens)]
        positions[row] = torch.cat([torch.arange(length) for length in lengths])
        labels[row, torch.tensor([0, *lengths[:-2]]).cumsum(0)] = -100
    return {"input_ids": ids, "labels": labels} | ({"position_ids": positions} if isolated else {})


def tokens_of(blocks: Dataset) -> int:
    return int(
        pyarrow.compute.sum(
            pyarrow.compute.list_value_length(blocks.data.column("input_ids"))
        ).as_py()
    )


@torch.no_grad()
def isolates(model: Any) -> bool:
    """Whether position ids that begin again keep the pieces of a block apart in this architecture."""
    ids = torch.arange(16, device=model.device)[None] % model.config.get_text_config().vocab_size
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    try:
        together = (
            model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 8:].float()
        )
    except (TypeError, ValueError):  # knows no position ids
        return False
    alone = model(input_ids=ids[:, 8:], use_cache=False).logits.float()
    return bool((together - alone).abs().max() <= 0.02 * alone.abs().max())
